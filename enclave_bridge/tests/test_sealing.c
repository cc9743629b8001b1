/* Where the sealing key comes from. The SNP device is a stand-in for ioctl(2): this program defines it. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bridge.h"
#include "check.h"
#include "page_guard.h"
#include "sealing.h"

static eb_bridge *bridge;

static int key_file(mode_t mode, size_t size) {
  static const uint8_t bytes[64] = {7, 7, 7};
  const int fd = memfd_create("key", MFD_CLOEXEC);
  CHECK(fd >= 0 && fchmod(fd, mode) == 0 && write(fd, bytes, size) == (ssize_t)size);
  return fd;
}

static eb_status open_file(int fd, eb_sealing **sealing) {
  const eb_status status = eb_sealing_open_file(bridge, fd, sealing);
  close(fd);
  return status;
}

static void test_file_when_it_holds_a_key_gives_it(void) {
  eb_sealing *sealing = NULL;
  const uint8_t expected[EB_SEALING_KEY_SIZE] = {7, 7, 7};
  CHECK_OK(open_file(key_file(0600, 32), &sealing));
  CHECK(memcmp(sealing->key, expected, sizeof expected) == 0);
  const uint8_t *arena = bridge->arena.pools[EB_POOL_GUARDS].base;
  CHECK(sealing->key >= arena && sealing->key < arena + bridge->arena.pools[EB_POOL_GUARDS].slot_size * 64);
  eb_sealing_free(sealing);
  eb_sealing_free(NULL);
}

static void test_file_when_it_is_empty_gets_a_key_once(void) {
  eb_sealing *first = NULL, *second = NULL;
  const uint8_t zero[EB_SEALING_KEY_SIZE] = {0};
  const int fd = key_file(0600, 0);
  CHECK_OK(eb_sealing_open_file(bridge, fd, &first));
  CHECK_OK(eb_sealing_open_file(bridge, fd, &second));
  CHECK(memcmp(first->key, zero, sizeof zero) != 0 && memcmp(first->key, second->key, sizeof zero) == 0);
  eb_sealing_free(first);
  eb_sealing_free(second);
  close(fd);
}

static void test_file_when_others_may_use_it_or_it_is_wrong_is_refused(void) {
  eb_sealing *sealing = NULL;
  int pipes[2];
  CHECK_STATUS(EB_ERR_SEALING, open_file(key_file(0640, 32), &sealing));
  CHECK_STATUS(EB_ERR_SEALING, open_file(key_file(0602, 32), &sealing));
  CHECK_STATUS(EB_ERR_SEALING, open_file(key_file(0600, 31), &sealing));
  CHECK_STATUS(EB_ERR_SEALING, open_file(key_file(0600, 33), &sealing));
  CHECK_STATUS(EB_ERR_SEALING, open_file(-1, &sealing));
  CHECK(pipe(pipes) == 0);
  CHECK_STATUS(EB_ERR_SEALING, open_file(pipes[0], &sealing));
  close(pipes[1]);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sealing_open_file(NULL, 0, &sealing));
  CHECK(eb_arena_live(&bridge->arena, EB_POOL_GUARDS) == 0);
}

static void test_file_when_it_cannot_be_written_is_refused(void) {
  char path[] = "/tmp/eb-key-XXXXXX";
  eb_sealing *sealing = NULL;
  close(mkstemp(path));
  CHECK_STATUS(EB_ERR_SEALING, open_file(open(path, O_RDONLY | O_CLOEXEC), &sealing));
  CHECK(truncate(path, 32) == 0);
  CHECK_STATUS(EB_ERR_SEALING, open_file(open(path, O_WRONLY | O_CLOEXEC), &sealing));
  CHECK(unlink(path) == 0);
}

static void test_key_when_slots_are_used_up_is_refused(void) {
  const eb_bridge_options small = {.max_sessions = 1, .max_handshakes = 1, .max_guards = 1};
  const eb_bridge_options huge = {.max_sessions = 1, .max_handshakes = 1, .max_guards = 65537};
  eb_bridge *tiny = NULL;
  eb_sealing *sealing = NULL;
  const int fd = key_file(0600, 32);
  CHECK_OK(eb_bridge_open(&small, &tiny));
  CHECK_STATUS(EB_ERR_LIMIT, eb_sealing_open_file(tiny, fd, &sealing));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_bridge_open(&huge, &tiny));
  eb_bridge_free(tiny);
  close(fd);
}

/* ---- SNP ------------------------------------------------------------------------------------- */

/* What linux/sev-guest.h says, byte for byte. */
static struct {
  int fail_errno;     /* the ioctl's failure, for `failures` calls */
  uint32_t fw, vmm, status;
  int failures, calls;
  unsigned long command;
  uint8_t request[32], version;
} firmware;

static const int device = 1000000; /* no descriptor has that number */

static uint64_t u64_at(const uint8_t *at) {
  uint64_t value = 0;
  memcpy(&value, at, 8);
  return value;
}

int ioctl(int fd, unsigned long command, ...) {
  va_list arguments;
  va_start(arguments, command);
  uint8_t *call = va_arg(arguments, uint8_t *);
  va_end(arguments);
  CHECK(fd == device);
  firmware.calls++;
  firmware.command = command;
  firmware.version = call[0];
  memcpy(firmware.request, (void *)(uintptr_t)u64_at(call + 8), sizeof firmware.request);
  uint8_t *response = (void *)(uintptr_t)u64_at(call + 16);
  const uint32_t none = 0;
  memcpy(call + 24, &none, 4);
  if (firmware.failures-- > 0) {
    memcpy(call + 24, &firmware.fw, 4);
    memcpy(call + 28, &firmware.vmm, 4);
    memcpy(response, &firmware.status, 4);
    errno = firmware.fail_errno;
    return firmware.fail_errno != 0 ? -1 : 0;
  }
  memset(response, 0, 32);
  for (int i = 0; i < 32; i++) response[32 + i] = (uint8_t)(firmware.request[i] ^ i);
  memcpy(call + 28, &none, 4);
  return 0;
}

static const eb_snp_key_options options = {.root_key = EB_SNP_ROOT_VMRK,
                                           .guest_fields = EB_SNP_FIELD_MEASUREMENT | EB_SNP_FIELD_GUEST_POLICY,
                                           .vmpl = 2,
                                           .guest_svn = 0x01020304,
                                           .tcb_version = UINT64_C(0x0807060504030201)};

static eb_status ask(int failures, int fail_errno, uint32_t fw, uint32_t vmm, uint32_t status, eb_snp_failure *failure,
                     eb_sealing **sealing) {
  memset(&firmware, 0, sizeof firmware);
  firmware.failures = failures;
  firmware.fail_errno = fail_errno;
  firmware.fw = fw;
  firmware.vmm = vmm;
  firmware.status = status;
  return eb_sealing_open_snp(bridge, device, &options, failure, sealing);
}

static void test_snp_when_the_firmware_answers_gives_its_key(void) {
  static const uint8_t expected[32] = {1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0,
                                       2, 0, 0, 0, 4, 3, 2, 1, 1, 2, 3, 4, 5, 6, 7, 8};
  eb_snp_failure failure;
  eb_sealing *sealing = NULL;
  CHECK_OK(ask(0, 0, 0, 0, 0, &failure, &sealing));
  CHECK(firmware.command == 0xC0205301UL && firmware.version == 1);
  CHECK(memcmp(firmware.request, expected, sizeof expected) == 0);
  for (int i = 0; i < 32; i++) CHECK(sealing->key[i] == (uint8_t)(expected[i] ^ i));
  CHECK(failure.system_error == 0 && failure.fw_error == 0 && failure.vmm_error == 0 && failure.status == 0);
  eb_sealing_free(sealing);
}

static void test_snp_when_the_host_is_busy_asks_again(void) {
  eb_snp_failure failure;
  eb_sealing *sealing = NULL;
  CHECK_OK(ask(2, EIO, 0, 2, 0, &failure, &sealing));
  CHECK(firmware.calls == 3);
  eb_sealing_free(sealing);
  CHECK_OK(ask(1, EAGAIN, 0, 0, 0, &failure, &sealing));
  CHECK(firmware.calls == 2);
  eb_sealing_free(sealing);
}

static void test_snp_when_it_stays_busy_gives_up(void) {
  eb_snp_failure failure;
  eb_sealing *sealing = NULL;
  CHECK_STATUS(EB_ERR_SEALING, ask(100, EBUSY, 0, 2, 0, &failure, &sealing));
  CHECK(firmware.calls == 7 && failure.system_error == EBUSY && failure.vmm_error == 2);
}

static void test_snp_when_it_refuses_says_why(void) {
  eb_snp_failure failure;
  eb_sealing *sealing = NULL;
  CHECK_STATUS(EB_ERR_SEALING, ask(1, EIO, 0x16, 0, 0, &failure, &sealing));
  CHECK(failure.system_error == EIO && failure.fw_error == 0x16 && firmware.calls == 1);
  CHECK_STATUS(EB_ERR_SEALING, ask(1, 0, 0, 0, 0x16, &failure, &sealing));
  CHECK(failure.status == 0x16 && firmware.calls == 1);
  CHECK_STATUS(EB_ERR_SEALING, ask(1, ENOTTY, 0xFFFFFFFF, 0, 0, &failure, &sealing));
  CHECK(failure.system_error == ENOTTY && failure.fw_error == 0);
  CHECK(eb_arena_live(&bridge->arena, EB_POOL_GUARDS) == 0);
}

static void test_snp_when_asked_wrongly_is_refused(void) {
  eb_snp_failure failure;
  eb_sealing *sealing = NULL;
  eb_snp_key_options wrong = options;
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sealing_open_snp(bridge, device, NULL, &failure, &sealing));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sealing_open_snp(bridge, device, &options, NULL, &sealing));
  wrong.root_key = 2;
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sealing_open_snp(bridge, device, &wrong, &failure, &sealing));
  wrong = options;
  wrong.vmpl = 4;
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sealing_open_snp(bridge, device, &wrong, &failure, &sealing));
  wrong = options;
  wrong.guest_fields = 64;
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sealing_open_snp(bridge, device, &wrong, &failure, &sealing));
}

int main(void) {
  CHECK_OK(eb_bridge_open(NULL, &bridge));
  RUN(test_file_when_it_holds_a_key_gives_it);
  RUN(test_file_when_it_is_empty_gets_a_key_once);
  RUN(test_file_when_others_may_use_it_or_it_is_wrong_is_refused);
  RUN(test_file_when_it_cannot_be_written_is_refused);
  RUN(test_key_when_slots_are_used_up_is_refused);
  RUN(test_snp_when_the_firmware_answers_gives_its_key);
  RUN(test_snp_when_the_host_is_busy_asks_again);
  RUN(test_snp_when_it_stays_busy_gives_up);
  RUN(test_snp_when_it_refuses_says_why);
  RUN(test_snp_when_asked_wrongly_is_refused);
  eb_bridge_free(bridge);
  return 0;
}
