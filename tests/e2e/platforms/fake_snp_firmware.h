/* What both shims share: the SNP firmware behind the kernel, played by a simulated chip's key.
 *
 * $FAKE_SNP_DIR holds template.bin (bytes 0 to 0x29F of a report), key.pem (P-384), table.bin (the host's
 * certificates, may be missing) and script: one line for each thing that is to go wrong, used up in order.
 * Calls are noted in the file calls. Source of layouts: AMD 56860. */
#ifndef FAKE_SNP_FIRMWARE_H
#define FAKE_SNP_FIRMWARE_H

#include <limits.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPORT_BYTES = 1184, BODY_BYTES = 0x2A0, USER_DATA_BYTES = 64, COMPONENT_BYTES = 72, PAGE_BYTES = 4096 };
enum { STATUS_INVALID_PARAM = 0x16 };

static FILE *fake_file(const char *name, const char *mode)
{
    char path[PATH_MAX];
    const char *directory = getenv("FAKE_SNP_DIR");

    snprintf(path, sizeof path, "%s/%s", directory ? directory : ".", name);
    return fopen(path, mode);
}

static size_t fake_load(const char *name, uint8_t *buffer, size_t size)
{
    FILE *file = fake_file(name, "rbe");
    size_t length = file ? fread(buffer, 1, size, file) : 0;

    if (file)
        fclose(file);
    return length;
}

static unsigned long fake_setting(const char *name, unsigned long otherwise)
{
    const char *value = getenv(name);

    return value ? strtoul(value, NULL, 0) : otherwise;
}

__attribute__((format(printf, 1, 2))) static void fake_note(const char *format, ...)
{
    FILE *file = fake_file("calls", "ae");
    va_list arguments;

    if (!file)
        return;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fputc('\n', file);
    fclose(file);
}

/* The script's next line if it starts with `operation`, which uses it up; else an empty string. */
static const char *fake_next(const char *operation)
{
    static char line[256];
    static unsigned used;
    FILE *file = fake_file("script", "re");
    int found = 0;

    for (unsigned at = 0; file && at <= used; at++)
        found = fgets(line, sizeof line, file) != NULL;
    if (file)
        fclose(file);
    if (!found || strncmp(line, operation, strlen(operation)) != 0)
        return "";
    used++;
    return line;
}

/* The number after "name=" in a line of the script, or `otherwise`. */
static unsigned long fake_number(const char *line, const char *name, unsigned long otherwise)
{
    const char *at = strstr(line, name);

    return at ? strtoul(at + strlen(name), NULL, 0) : otherwise;
}

static void fake_reverse(const BIGNUM *number, uint8_t *out)
{
    BN_bn2lebinpad(number, out, COMPONENT_BYTES);
}

/* Makes a signed report. Returns the firmware's status. */
static uint32_t fake_report(const uint8_t *user_data, uint32_t vmpl, uint8_t *report)
{
    uint8_t der[256];
    const uint8_t *cursor = der;
    size_t der_length = sizeof der;
    FILE *file = fake_file("key.pem", "re");
    EVP_PKEY *key = file ? PEM_read_PrivateKey(file, NULL, NULL, NULL) : NULL;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    ECDSA_SIG *signature = NULL;

    if (file)
        fclose(file);
    memset(report, 0, REPORT_BYTES);
    if (vmpl > 3 || vmpl < fake_setting("FAKE_SNP_VMPL", 0)) {
        EVP_MD_CTX_free(context);
        EVP_PKEY_free(key);
        return STATUS_INVALID_PARAM;
    }
    if (fake_load("template.bin", report, BODY_BYTES) != BODY_BYTES || !key || !context)
        abort();
    report[0x30] = (uint8_t)vmpl;
    memcpy(report + 0x50, user_data, USER_DATA_BYTES);
    if (EVP_DigestSignInit(context, NULL, EVP_sha384(), NULL, key) != 1 ||
        EVP_DigestSign(context, der, &der_length, report, BODY_BYTES) != 1 ||
        !(signature = d2i_ECDSA_SIG(NULL, &cursor, (long)der_length)))
        abort();
    fake_reverse(ECDSA_SIG_get0_r(signature), report + BODY_BYTES);
    fake_reverse(ECDSA_SIG_get0_s(signature), report + BODY_BYTES + COMPONENT_BYTES);
    ECDSA_SIG_free(signature);
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    return 0;
}

#endif
