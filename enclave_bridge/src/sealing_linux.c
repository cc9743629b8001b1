/*
 * Where the sealing key comes from on Linux. It is read or derived straight into secret memory and never leaves it.
 *
 * SNP: SNP_GET_DERIVED_KEY of /dev/sev-guest (linux/sev-guest.h, Documentation/virt/coco/sev-guest.rst); the
 * messages are MSG_KEY_REQ and MSG_KEY_RSP of AMD 56860.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"
#include "sealing.h"
#include "shared_io.h"

/* ---- a file ------------------------------------------------------------------------------ */

static eb_status key_of_file(void *context, uint8_t key[EB_SEALING_KEY_SIZE], uint8_t *room) {
  const int fd = *(const int *)context;
  eb_status status = EB_OK;
  struct stat facts;
  (void)room;
  EB_ENSURE(fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode), EB_ERR_SEALING);
  EB_ENSURE(facts.st_uid == geteuid() && (facts.st_mode & 077) == 0, EB_ERR_SEALING);
  if (facts.st_size == 0) { /* made once, here */
    EB_TRY(eb_platform_random(key, EB_SEALING_KEY_SIZE));
    EB_ENSURE(eb_file_put(fd, 0, key, EB_SEALING_KEY_SIZE) == EB_OK && fsync(fd) == 0, EB_ERR_SEALING);
  } else {
    EB_ENSURE(facts.st_size == EB_SEALING_KEY_SIZE, EB_ERR_SEALING);
    EB_ENSURE(eb_file_get(fd, 0, key, EB_SEALING_KEY_SIZE), EB_ERR_SEALING);
  }
done:
  return status;
}

eb_status eb_sealing_open_file(eb_bridge *bridge, int fd, eb_sealing **sealing) {
  return eb_sealing_from(bridge, key_of_file, &fd, sealing);
}

/* ---- SEV-SNP ----------------------------------------------------------------------------- */

typedef struct {
  uint32_t root_key_select, reserved;
  uint64_t guest_field_select;
  uint32_t vmpl, guest_svn;
  uint64_t tcb_version;
} snp_derived_key_req;

typedef struct {
  uint32_t status;
  uint8_t reserved[28];
  uint8_t key[EB_SEALING_KEY_SIZE];
} snp_derived_key_resp;

typedef struct {
  uint8_t msg_version;
  uint64_t req_data, resp_data;
  uint32_t fw_error, vmm_error; /* exitinfo2 */
} snp_guest_request_ioctl;

_Static_assert(sizeof(snp_derived_key_req) == 32 && sizeof(snp_derived_key_resp) == 64, "the kernel's layouts");
_Static_assert(sizeof(snp_guest_request_ioctl) == 32, "the kernel's layout");

#define SNP_GET_DERIVED_KEY _IOWR('S', 0x1, snp_guest_request_ioctl)
#define SNP_NO_FIRMWARE_CALL 0xFFFFFFFFu
#define SNP_VMM_BUSY 2u

typedef struct {
  int fd;
  const eb_snp_key_options *options;
  eb_snp_failure *failure;
} snp_context;

static bool is_busy(const eb_snp_failure *failure) {
  return failure->vmm_error == SNP_VMM_BUSY || failure->system_error == EAGAIN || failure->system_error == EBUSY;
}

/* Half of each pause is random, so that many guests that a host throttles do not come back all at once. */
static void pause_for(unsigned milliseconds) {
  uint16_t dice = 0;
  if (eb_platform_random((uint8_t *)&dice, sizeof dice) != EB_OK) dice = 0;
  const uint64_t nanoseconds = milliseconds * UINT64_C(500000) * (65536u + dice) / 65536u;
  struct timespec left = {(time_t)(nanoseconds / 1000000000u), (long)(nanoseconds % 1000000000u)};
  int outcome = 0;
  do outcome = nanosleep(&left, &left);
  while (outcome != 0 && errno == EINTR);
}

static bool ask_firmware(const snp_context *snp, const snp_derived_key_req *request, snp_derived_key_resp *response) {
  eb_snp_failure *failure = snp->failure;
  snp_guest_request_ioctl call = {.msg_version = 1,
                                  .req_data = (uintptr_t)request,
                                  .resp_data = (uintptr_t)response,
                                  .fw_error = SNP_NO_FIRMWARE_CALL};
  const int outcome = ioctl(snp->fd, SNP_GET_DERIVED_KEY, &call);
  failure->system_error = outcome == 0 ? 0 : errno;
  failure->fw_error = call.fw_error == SNP_NO_FIRMWARE_CALL ? 0 : call.fw_error;
  failure->vmm_error = call.vmm_error;
  failure->status = response->status;
  return outcome == 0 && failure->fw_error == 0 && failure->vmm_error == 0 && failure->status == 0;
}

static eb_status key_of_snp(void *context, uint8_t key[EB_SEALING_KEY_SIZE], uint8_t *room) {
  static const unsigned pauses[] = {50, 100, 200, 400, 800, 1600};
  const snp_context *snp = context;
  const eb_snp_key_options *options = snp->options;
  eb_status status = EB_OK;
  snp_derived_key_resp *response = (snp_derived_key_resp *)(void *)room;
  const snp_derived_key_req request = {.root_key_select = options->root_key,
                                       .guest_field_select = options->guest_fields,
                                       .vmpl = options->vmpl,
                                       .guest_svn = options->guest_svn,
                                       .tcb_version = options->tcb_version};
  bool given = ask_firmware(snp, &request, response);
  for (size_t i = 0; !given && is_busy(snp->failure) && i < sizeof pauses / sizeof pauses[0]; i++) {
    pause_for(pauses[i]);
    given = ask_firmware(snp, &request, response);
  }
  EB_ENSURE(given, EB_ERR_SEALING);
  memcpy(key, response->key, EB_SEALING_KEY_SIZE);
done:
  return status;
}

eb_status eb_sealing_open_snp(eb_bridge *bridge, int fd, const eb_snp_key_options *options, eb_snp_failure *failure,
                              eb_sealing **sealing) {
  eb_status status = EB_OK;
  snp_context context = {fd, options, failure};
  EB_ENSURE(options != NULL && failure != NULL, EB_ERR_ARGUMENT);
  memset(failure, 0, sizeof *failure);
  EB_ENSURE(options->root_key <= EB_SNP_ROOT_VMRK && options->vmpl <= 3, EB_ERR_ARGUMENT);
  EB_ENSURE((options->guest_fields & ~(uint64_t)EB_SNP_FIELDS_KNOWN) == 0, EB_ERR_ARGUMENT);
  EB_TRY(eb_sealing_from(bridge, key_of_snp, &context, sealing));
done:
  return status;
}
