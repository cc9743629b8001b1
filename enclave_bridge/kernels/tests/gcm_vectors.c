/* Runs test vectors from standard input on every kernel this CPU supports; gcm_vectors.py feeds it.
 * A line: valid|invalid KEY NONCE AAD CIPHERTEXT TAG PLAINTEXT, in hex, "-" for nothing.
 * A tag may be truncated (CAVP): then only its head is compared, on a sealed copy. */
#include "eb_gcm_kernel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FIELD 65536u

typedef struct {
  uint8_t bytes[MAX_FIELD];
  size_t len;
} field;

enum { KEY, NONCE, AAD, CIPHERTEXT, TAG, PLAINTEXT, FIELDS };

static void fail(const char *what, unsigned long line) {
  (void)fprintf(stderr, "gcm_vectors: line %lu: %s\n", line, what);
  exit(1);
}

static unsigned nibble(char c) { return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'a') + 10; }

static void parse(field *f, const char *text, unsigned long line) {
  const size_t digits = strcmp(text, "-") == 0 ? 0 : strlen(text);
  if (digits % 2 != 0 || digits / 2 > MAX_FIELD || strspn(text, "0123456789abcdef") < digits) {
    fail("not hex", line);
  }
  f->len = digits / 2;
  for (size_t i = 0; i < f->len; i++) {
    f->bytes[i] = (uint8_t)(nibble(text[2 * i]) << 4 | nibble(text[2 * i + 1]));
  }
}

static void run(eb_gcm_kernel kernel, const field *f, int valid, unsigned long line) {
  static eb_gcm_key ctx;
  static uint8_t plain[MAX_FIELD];
  static uint8_t again[MAX_FIELD];
  uint8_t tag[EB_GCM_TAG_SIZE];
  if (eb_gcm_key_init(&ctx, kernel, f[KEY].bytes, f[KEY].len) != EB_GCM_OK) {
    fail("key refused", line);
  }
  eb_gcm_message m = {f[NONCE].bytes, f[NONCE].len, f[AAD].bytes, f[AAD].len, f[CIPHERTEXT].bytes, plain,
                      f[CIPHERTEXT].len, tag};
  if (f[NONCE].len == 0) {
    if (valid || eb_gcm_message_seal(&ctx, &m) != EB_GCM_ERR_ARGUMENT) {
      fail("an empty nonce must be refused", line);
    }
    return;
  }
  if (f[TAG].len == EB_GCM_TAG_SIZE) {
    memcpy(tag, f[TAG].bytes, sizeof tag);
    if (eb_gcm_message_open(&ctx, &m) != (valid ? EB_GCM_OK : EB_GCM_ERR_TAG)) {
      fail(valid ? "a valid vector was refused" : "an invalid vector was accepted", line);
    }
    if (valid && memcmp(plain, f[PLAINTEXT].bytes, m.len) != 0) {
      fail("wrong plaintext", line);
    }
  }
  /* Counter mode is its own inverse: sealing the ciphertext gives the plaintext, whatever the tag. */
  if (eb_gcm_message_seal(&ctx, &m) != EB_GCM_OK || (valid && memcmp(plain, f[PLAINTEXT].bytes, m.len) != 0)) {
    fail("wrong key stream", line);
  }
  m.in = plain;
  m.out = again;
  if (eb_gcm_message_seal(&ctx, &m) != EB_GCM_OK || memcmp(again, f[CIPHERTEXT].bytes, m.len) != 0) {
    fail("wrong ciphertext", line);
  }
  if ((memcmp(tag, f[TAG].bytes, f[TAG].len) == 0) != valid) {
    fail("wrong tag", line);
  }
}

int main(void) {
  static char text[FIELDS * 2 * MAX_FIELD];
  static field f[FIELDS];
  unsigned long line = 0;
  unsigned long runs = 0;
  while (fgets(text, sizeof text, stdin) != NULL) {
    line++;
    text[strcspn(text, "\n")] = '\0';
    char *rest = NULL;
    const char *verdict = strtok_r(text, " ", &rest);
    for (int i = 0; i < FIELDS; i++) {
      const char *value = strtok_r(NULL, " ", &rest);
      if (verdict == NULL || value == NULL) {
        fail("a field is missing", line);
      }
      parse(&f[i], value, line);
    }
    for (int kernel = EB_GCM_KERNEL_AESNI; kernel <= EB_GCM_KERNEL_AVX512; kernel++) {
      if (eb_gcm_kernel_supported((eb_gcm_kernel)kernel)) {
        run((eb_gcm_kernel)kernel, f, strcmp(verdict, "valid") == 0, line);
        runs++;
      }
    }
  }
  printf("%lu vectors", line);
  for (int kernel = EB_GCM_KERNEL_AESNI; kernel <= EB_GCM_KERNEL_AVX512; kernel++) {
    const int able = eb_gcm_kernel_supported((eb_gcm_kernel)kernel);
    printf(", %s %s", eb_gcm_kernel_name((eb_gcm_kernel)kernel), able ? "passed" : "skipped: not in this CPU");
  }
  putchar('\n');
  return line == 0 ? 1 : runs == 0 ? 77 : 0;
}
