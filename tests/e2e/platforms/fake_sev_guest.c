/* A preloaded stand-in for /dev/sev-guest, by linux/sev-guest.h and the driver's behaviour.
 *
 * Kept from the driver: a zero message version is EINVAL; the certificate length must be whole pages and at most
 * SEV_FW_BLOB_MAX_SIZE; a short certificate buffer makes the ioctl fail with EIO and vmm_error INVALID_LEN, with
 * the length wanted written into the request; the whole response is copied out, as is exitinfo2 in every case.
 * A line of the script, "ioctl errno=N fw=N vmm=N status=N size=N flip", is one outcome. */
#define _GNU_SOURCE
#include "fake_snp_firmware.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct snp_report_req {
    uint8_t user_data[USER_DATA_BYTES];
    uint32_t vmpl;
    uint8_t rsvd[28];
};
struct snp_report_resp {
    uint8_t data[4000];
};
struct snp_derived_key_req {
    uint32_t root_key_select;
    uint32_t rsvd;
    uint64_t guest_field_select;
    uint32_t vmpl;
    uint32_t guest_svn;
    uint64_t tcb_version;
};
struct snp_derived_key_resp {
    uint8_t data[64];
};
struct snp_guest_request_ioctl {
    uint8_t msg_version;
    uint64_t req_data;
    uint64_t resp_data;
    uint32_t fw_error;
    uint32_t vmm_error;
};
struct snp_ext_report_req {
    struct snp_report_req data;
    uint64_t certs_address;
    uint32_t certs_len;
};
#define SNP_GET_REPORT _IOWR('S', 0x0, struct snp_guest_request_ioctl)
#define SNP_GET_DERIVED_KEY _IOWR('S', 0x1, struct snp_guest_request_ioctl)
#define SNP_GET_EXT_REPORT _IOWR('S', 0x2, struct snp_guest_request_ioctl)
enum { VMM_ERROR_INVALID_LEN = 1, MESSAGE_HEADER = 32, BLOB_MAX = 0x4000, TABLE_MAX = 256 * 1024 };
#define NO_FIRMWARE_CALL 0xFFFFFFFFu

static int device = -1;

static int open_device(const char *path, int flags)
{
    if (strcmp(path, "/dev/sev-guest") != 0)
        return -1;
    if ((flags & O_ACCMODE) != O_RDWR)
        abort();
    return device = memfd_create("sev-guest", MFD_CLOEXEC);
}

#define INTERPOSE_OPEN(name)                                                                                           \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);                \
        va_list arguments;                                                                                             \
        int mode, opened = open_device(path, flags);                                                                   \
                                                                                                                       \
        va_start(arguments, flags);                                                                                    \
        mode = va_arg(arguments, int);                                                                                 \
        va_end(arguments);                                                                                             \
        return opened >= 0 ? opened : real(path, flags, mode);                                                         \
    }
INTERPOSE_OPEN(open)
INTERPOSE_OPEN(open64)

int close(int descriptor)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "close");

    if (descriptor == device)
        device = -1;
    return real(descriptor);
}

static int copy_certificates(struct snp_guest_request_ioctl *call, struct snp_ext_report_req *request)
{
    static uint8_t table[TABLE_MAX];
    size_t length = fake_load("table.bin", table, sizeof table);
    uint32_t needed = (uint32_t)((length + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES);

    needed = (uint32_t)fake_setting("FAKE_SNP_CERTS_WANTED", needed);
    if (!request->certs_len || !request->certs_address)
        return 0;
    if (request->certs_len > fake_setting("FAKE_SNP_BLOB_MAX", BLOB_MAX) || request->certs_len % PAGE_BYTES)
        return EINVAL;
    if (request->certs_len < needed) {
        call->vmm_error = VMM_ERROR_INVALID_LEN;
        request->certs_len = needed;
        return EIO;
    }
    memset((void *)(uintptr_t)request->certs_address, 0, request->certs_len);
    memcpy((void *)(uintptr_t)request->certs_address, table, length);
    return 0;
}

static int reserved_is_zero(const struct snp_report_req *request)
{
    static const uint8_t zero[sizeof request->rsvd];

    return memcmp(request->rsvd, zero, sizeof zero) == 0;
}

static void answer_report(const struct snp_report_req *request, const char *line, struct snp_report_resp *response)
{
    uint32_t status = reserved_is_zero(request) ? 0 : STATUS_INVALID_PARAM, size = REPORT_BYTES;

    memset(response, 0, sizeof *response);
    if (!status)
        status = fake_report(request->user_data, request->vmpl, response->data + MESSAGE_HEADER);
    status = (uint32_t)fake_number(line, "status=", status);
    size = (uint32_t)fake_number(line, "size=", size);
    if (strstr(line, "flip"))
        response->data[MESSAGE_HEADER + 0x50] ^= 1;
    memcpy(response->data, &status, sizeof status);
    memcpy(response->data + 4, &size, sizeof size);
}

/* The key is a hash of what it is bound to: another request, another key. */
static void answer_key(const struct snp_derived_key_req *request, const char *line, struct snp_derived_key_resp *response)
{
    uint32_t status = (uint32_t)fake_number(line, "status=", request->rsvd ? STATUS_INVALID_PARAM : 0);

    memset(response, 0, sizeof *response);
    memcpy(response->data, &status, sizeof status);
    if (!status)
        EVP_Digest(request, sizeof *request, response->data + MESSAGE_HEADER, NULL, EVP_sha256(), NULL);
}

static int guest_request(unsigned long command, struct snp_guest_request_ioctl *call)
{
    const char *line = fake_next("ioctl");
    int failure = (int)fake_number(line, "errno=", 0);
    void *request = (void *)(uintptr_t)call->req_data, *response = (void *)(uintptr_t)call->resp_data;

    call->fw_error = NO_FIRMWARE_CALL;
    call->vmm_error = 0;
    if (call->msg_version == 0)
        return EINVAL;
    if (!failure && command == SNP_GET_EXT_REPORT)
        failure = copy_certificates(call, request);
    if (!failure)
        call->fw_error = 0;
    call->fw_error = (uint32_t)fake_number(line, "fw=", call->fw_error);
    call->vmm_error = (uint32_t)fake_number(line, "vmm=", call->vmm_error);
    if (failure)
        return failure;
    if (command == SNP_GET_DERIVED_KEY)
        answer_key(request, line, response);
    else
        answer_report(request, line, response); /* an extended request starts with a plain one */
    return 0;
}

int ioctl(int descriptor, unsigned long command, ...)
{
    int (*real)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    struct snp_guest_request_ioctl *call;
    va_list arguments;

    va_start(arguments, command);
    call = va_arg(arguments, void *);
    va_end(arguments);
    if (descriptor != device || device < 0)
        return real(descriptor, command, call);
    if (command != SNP_GET_REPORT && command != SNP_GET_DERIVED_KEY && command != SNP_GET_EXT_REPORT) {
        errno = ENOTTY;
        return -1;
    }
    if (command == SNP_GET_EXT_REPORT)
        fake_note("ioctl %lu certs_len %u", command & 0xff,
                  ((struct snp_ext_report_req *)(uintptr_t)call->req_data)->certs_len);
    else
        fake_note("ioctl %lu", command & 0xff);
    errno = guest_request(command, call);
    return errno ? -1 : 0;
}
