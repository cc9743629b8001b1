/* The trusted part behind its border, in the simulation: it works, and nothing outside can reach in. */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "enclave_bridge_sgx.h"
#include "enclave_bridge_u.h"
#include "sgx_edger8r.h"
#include "runtime.h"

#define REGION 7u
#define BASE UINT64_C(0x100000)
#define PAGES 40u
#define EID 1 /* the simulation's only enclave; the bridge in it was opened by the application */

static const uint8_t session_id[EB_SESSION_ID_SIZE] = "session-0123456";
static const uint8_t transfer_id[EB_TRANSFER_ID_SIZE] = "transfer-012345";
static const eb_window window = {REGION, BASE, PAGES};
static uint8_t plain[PAGES * EB_PAGE_SIZE], target[PAGES * EB_PAGE_SIZE], records[PAGES * EB_RECORD_SIZE];

typedef struct {
  eb_bridge *bridge;
  eb_handshake *shakes[2];
  eb_session *client, *server;
  eb_transfer *sent, *received;
} scene;

static void shake(scene *s) {
  const eb_suite suite = EB_SUITE_P384_SHA384_AES256GCM;
  uint8_t keys[2][EB_MAX_PUBLIC_KEY_SIZE], mac[EB_MAX_MAC_SIZE];
  size_t len = 0;
  for (int i = 0; i < 2; i++) {
    CHECK_OK(eb_handshake_new(s->bridge, i == 0 ? EB_ROLE_CLIENT : EB_ROLE_SERVER, &suite, 1, &s->shakes[i]));
    CHECK_OK(eb_handshake_absorb(s->shakes[i], (const uint8_t *)"hello", 5));
    CHECK_OK(eb_handshake_select(s->shakes[i], suite));
    CHECK_OK(eb_handshake_public_key(s->shakes[i], suite, keys[i], sizeof keys[i], &len));
  }
  for (int i = 0; i < 2; i++) CHECK_OK(eb_handshake_derive(s->shakes[i], keys[1 - i], len));
  for (int i = 0; i < 2; i++) {
    CHECK_OK(eb_handshake_finished(s->shakes[i], mac, sizeof mac, &len));
    CHECK_OK(eb_handshake_check_finished(s->shakes[1 - i], mac, len));
  }
}

static scene open_scene(void) {
  scene s = {0};
  for (size_t i = 0; i < sizeof plain; i++) plain[i] = (uint8_t)(1 + i / EB_PAGE_SIZE + i * 13);
  memset(target, 0, sizeof target);
  CHECK_OK(eb_bridge_open(NULL, &s.bridge));
  shake(&s);
  CHECK_OK(eb_handshake_session(s.shakes[0], session_id, &s.client));
  CHECK_OK(eb_handshake_session(s.shakes[1], session_id, &s.server));
  CHECK_OK(eb_transfer_new(s.bridge, transfer_id, &window, &s.sent));
  CHECK_OK(eb_transfer_new(s.bridge, transfer_id, &window, &s.received));
  CHECK_OK(eb_transfer_set_target_memory(s.received, target, sizeof target));
  return s;
}

static void close_scene(scene *s) {
  eb_bridge_free(s->bridge); /* first: the others keep the enclave */
  eb_handshake_free(s->shakes[0]);
  eb_handshake_free(s->shakes[1]);
  eb_session_free(s->client);
  eb_session_free(s->server);
  eb_transfer_free(s->sent);
  eb_transfer_free(s->received);
}

static size_t seal_all(const scene *s) {
  size_t len = 0;
  CHECK_OK(eb_pages_seal(s->client, s->sent, REGION, BASE, plain, sizeof plain, records, sizeof records, &len, NULL));
  return len;
}

/* ---- it works -------------------------------------------------------------------------------- */

static void test_pages_when_sealed_and_opened_inside_arrive(void) {
  scene s = open_scene();
  uint8_t mac[EB_MAX_MAC_SIZE];
  size_t len = seal_all(&s), mac_len = 0;
  uint64_t pages = 0;
  eb_result result;
  eb_session_stats stats;
  CHECK_OK(eb_pages_open(s.server, s.received, records, len, &result));
  CHECK(result.pages == PAGES && memcmp(target, plain, sizeof plain) == 0);
  CHECK_STATUS(EB_ERR_REPLAYED, eb_pages_open(s.server, s.received, records, len, &result));
  CHECK_OK(eb_session_rekey(s.client));
  seal_all(&s);
  records[100] ^= 1;
  CHECK_STATUS(EB_ERR_TAMPERED, eb_pages_open(s.server, s.received, records, len, &result));
  records[100] ^= 1;
  CHECK_OK(eb_pages_open(s.server, s.received, records, len, &result));
  CHECK_OK(eb_transfer_commit_mac(s.client, s.sent, mac, sizeof mac, &mac_len));
  CHECK_OK(eb_transfer_check_commit_mac(s.server, s.received, mac, mac_len));
  CHECK_OK(eb_session_mac(s.client, EB_MAC_CONTROL, plain, 10, mac, sizeof mac, &mac_len));
  CHECK_OK(eb_session_check_mac(s.server, EB_MAC_CONTROL, plain, 10, mac, mac_len));
  CHECK_STATUS(EB_ERR_MAC, eb_session_check_mac(s.server, EB_MAC_CONTROL, plain, 11, mac, mac_len));
  CHECK_OK(eb_transfer_forget(s.received, BASE, 1));
  CHECK_OK(eb_transfer_pages(s.received, &pages));
  CHECK(pages == PAGES - 1);
  CHECK_OK(eb_session_get_stats(s.server, &stats));
  CHECK(stats.opened_pages == 2 * PAGES && stats.replayed == 1 && stats.tampered == 1);
  CHECK_OK(eb_session_close(s.server));
  CHECK_STATUS(EB_ERR_SESSION_CLOSED, eb_session_rekey(s.server));
  close_scene(&s);
}

static void test_bridge_when_asked_says_what_it_runs_on(void) {
  scene s = open_scene();
  eb_bridge_info info;
  uint8_t bytes[32] = {0}, zero[32] = {0};
  CHECK_OK(eb_bridge_get_info(s.bridge, &info));
  CHECK(info.memory == EB_MEMORY_ENCLAVE && info.sessions_live == 2 && info.gcm_kernel[0] != 0);
  CHECK_OK(eb_random(s.bridge, bytes, sizeof bytes));
  CHECK(memcmp(bytes, zero, sizeof zero) != 0);
  close_scene(&s);
}

static void test_every_kernel_of_this_cpu_works_inside(void) {
  const char *names[] = {"avx512", "vaes256", "aesni", "openssl", "none such"};
  unsigned worked = 0;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    const eb_bridge_options options = {.max_sessions = 4, .max_handshakes = 4, .gcm_kernel = names[i]};
    eb_bridge *bridge = NULL;
    eb_bridge_info info;
    eb_status status = eb_bridge_open(&options, &bridge); /* with its self-test */
    CHECK(status == EB_OK || (status == EB_ERR_ARGUMENT && i != 3 && bridge == NULL));
    if (status != EB_OK) continue;
    CHECK_OK(eb_bridge_get_info(bridge, &info));
    CHECK(strcmp(info.gcm_kernel, names[i]) == 0);
    eb_bridge_free(bridge);
    worked++;
  }
  CHECK(worked >= 1 && worked <= 4);
}

static void test_report_when_made_carries_the_binding_and_nothing_else(void) {
  scene s = {0};
  const eb_suite suite = EB_SUITE_P256_SHA256_AES128GCM;
  const sgx_target_info_t quoting = {0};
  uint8_t binding[EB_BINDING_SIZE];
  sgx_report_t report;
  CHECK_OK(eb_bridge_open(NULL, &s.bridge));
  CHECK_OK(eb_handshake_new(s.bridge, EB_ROLE_SERVER, &suite, 1, &s.shakes[0]));
  CHECK_STATUS(EB_ERR_STATE, eb_sgx_handshake_report(s.shakes[0], EB_ROLE_SERVER, &quoting, &report));
  CHECK_OK(eb_handshake_select(s.shakes[0], suite));
  CHECK_OK(eb_handshake_binding(s.shakes[0], EB_ROLE_SERVER, binding));
  CHECK_OK(eb_sgx_handshake_report(s.shakes[0], EB_ROLE_SERVER, &quoting, &report));
  CHECK(memcmp(report.body.report_data.d, binding, sizeof binding) == 0);
  close_scene(&s);
}

static void test_target_when_a_file_is_mapped_outside(void) {
  scene s = open_scene();
  eb_transfer *into_file = NULL;
  eb_result result;
  const int fd = memfd_create("target", 0);
  uint8_t page[EB_PAGE_SIZE];
  CHECK(fd >= 0 && ftruncate(fd, sizeof target) == 0);
  CHECK_OK(eb_transfer_new(s.bridge, transfer_id, &window, &into_file));
  CHECK_STATUS(EB_ERR_TARGET, eb_transfer_set_target_fd(into_file, fd, EB_PAGE_SIZE));
  CHECK_STATUS(EB_ERR_UNALIGNED, eb_transfer_set_target_fd(into_file, fd, 1));
  CHECK_OK(eb_transfer_set_target_fd(into_file, fd, 0));
  CHECK_STATUS(EB_ERR_STATE, eb_transfer_set_target_fd(into_file, fd, 0));
  CHECK_OK(eb_pages_open(s.server, into_file, records, seal_all(&s), &result));
  CHECK(pread(fd, page, sizeof page, 5 * EB_PAGE_SIZE) == EB_PAGE_SIZE);
  CHECK(memcmp(page, plain + 5 * EB_PAGE_SIZE, sizeof page) == 0);
  eb_transfer_free(into_file);
  close(fd);
  close_scene(&s);
}

static void test_source_when_a_file_is_sealed_arrives_padded(void) {
  scene s = open_scene();
  const size_t len = 3 * EB_PAGE_SIZE, cut = 100;
  const int fd = memfd_create("source", 0);
  static const uint8_t zero[EB_PAGE_SIZE];
  eb_source *source = NULL;
  eb_result result;
  size_t records_len = 0;
  CHECK(fd >= 0 && pwrite(fd, plain, len - cut, 0) == (ssize_t)(len - cut));
  CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE, eb_source_open(s.bridge, fd, 0, len, &source)); /* shorter */
  CHECK_OK(eb_source_open(s.bridge, fd, 0, len - cut, &source));
  CHECK_STATUS(EB_ERR_LENGTH, eb_pages_seal_from(s.client, s.sent, REGION, BASE, source, 0, len + EB_PAGE_SIZE, records,
                                                 sizeof records, &records_len, NULL));
  CHECK_OK(eb_pages_seal_from(s.client, s.sent, REGION, BASE, source, 0, len, records, sizeof records, &records_len,
                              &result));
  CHECK(result.pages == 3);
  CHECK_OK(eb_pages_open(s.server, s.received, records, records_len, &result));
  CHECK(memcmp(target, plain, len - cut) == 0 && memcmp(target + len - cut, zero, cut) == 0);
  CHECK(ftruncate(fd, 10) == 0);
  CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE, eb_pages_seal_from(s.client, s.sent, REGION, BASE, source, 0, len, records,
                                                            sizeof records, &records_len, NULL));
  eb_source_free(source);
  close(fd);
  close_scene(&s);
}

/* ---- hostile pointers and lengths ------------------------------------------------------------- */

static uint64_t some_session(void) { return UINT64_C(1) << 32 | 2; } /* after two handshakes, first tenant */
static uint64_t some_transfer(int i) { return UINT64_C(1) << 32 | (uint32_t)(4 + i); }

/* All of it inside, its end inside, its start inside, wrapping round. */
static void hostile_ranges(const void *ranges[4], size_t len) {
  uint8_t *inside = stub_address_inside();
  ranges[0] = inside;
  ranges[1] = inside - 4096 - len + 1; /* the heap starts a page below */
  ranges[2] = inside - 4096 + ((size_t)64 << 20) - 1;
  ranges[3] = (const void *)(UINTPTR_MAX - len / 2);
}

static void test_user_check_pointers_when_any_byte_is_inside_are_refused(void) {
  scene s = open_scene();
  const size_t len = seal_all(&s), one = EB_RECORD_SIZE;
  const void *ranges[4];
  size_t records_len = 0;
  eb_result result;
  int status = 0;
  eb_transfer *bare = NULL;
  eb_session_stats stats;
  CHECK_OK(eb_transfer_new(s.bridge, transfer_id, &window, &bare));
  hostile_ranges(ranges, EB_PAGE_SIZE);
  for (int i = 0; i < 4; i++)
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_seal(s.client, NULL, REGION, BASE, ranges[i], EB_PAGE_SIZE, records, one,
                                                &records_len, NULL));
  hostile_ranges(ranges, one);
  for (int i = 0; i < 4; i++) {
    uint8_t *at = (uint8_t *)(uintptr_t)ranges[i];
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_seal(s.client, NULL, REGION, BASE, plain, EB_PAGE_SIZE, at, one, &records_len, NULL));
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_open(s.server, s.received, at, one, &result));
  }
  hostile_ranges(ranges, sizeof target);
  for (int i = 0; i < 4; i++)
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_set_target_memory(bare, (uint8_t *)(uintptr_t)ranges[i], sizeof target));
  CHECK(ecall_pages_open(EID, &status, some_session() + 1, some_transfer(1), NULL, len, &result) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_ARGUMENT, status);
  CHECK(ecall_pages_open(EID, &status, some_session() + 1, some_transfer(1), records, SIZE_MAX, &result) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_ARGUMENT, status);
  CHECK_OK(eb_session_get_stats(s.server, &stats));
  CHECK(stats.opened_pages == 0 && stats.refused == 0); /* none of it got to the page path */
  eb_transfer_free(bare);
  close_scene(&s);
}

static void test_copied_pointers_when_inside_or_too_long_are_refused(void) {
  scene s = open_scene();
  uint8_t mac[EB_MAX_MAC_SIZE], before[64];
  uint8_t *inside = stub_address_inside();
  const void *ranges[4];
  size_t len = 0;
  int status = 0;
  memcpy(before, inside, sizeof before);
  hostile_ranges(ranges, sizeof mac);
  for (int i = 0; i < 4; i++) {
    uint8_t *at = (uint8_t *)(uintptr_t)ranges[i];
    CHECK(ecall_random(EID, &status, at, sizeof mac) == SGX_ERROR_INVALID_PARAMETER);
    CHECK(ecall_session_mac(EID, &status, some_session(), 1, at, sizeof mac, mac, sizeof mac, &len) == SGX_ERROR_INVALID_PARAMETER);
    CHECK(ecall_session_mac(EID, &status, some_session(), 1, mac, 1, at, sizeof mac, &len) == SGX_ERROR_INVALID_PARAMETER);
  }
  CHECK(ecall_session_mac(EID, &status, some_session(), 1, mac, 1, mac, sizeof mac, (size_t *)(void *)inside) == SGX_ERROR_INVALID_PARAMETER);
  CHECK(ecall_session_get_stats(EID, &status, some_session(), (eb_session_stats *)(void *)inside) == SGX_ERROR_INVALID_PARAMETER);
  CHECK(ecall_bridge_info(EID, &status, (eb_bridge_info *)(void *)inside) == SGX_ERROR_INVALID_PARAMETER);
  CHECK(ecall_random(EID, &status, mac, SIZE_MAX) == SGX_ERROR_INVALID_PARAMETER);
  const int suite = 1;
  uint64_t handle = 0;
  CHECK(ecall_handshake_new(EID, &status, 1, &suite, SIZE_MAX / 2, &handle) == SGX_ERROR_INVALID_PARAMETER);
  CHECK(ecall_handshake_new(EID, &status, 1, NULL, 1, &handle) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_ARGUMENT, status);
  CHECK(memcmp(before, inside, sizeof before) == 0);
  close_scene(&s);
}

static void test_parameter_block_when_inside_is_refused(void) {
  scene s = open_scene();
  CHECK(sgx_ecall(EID, 0, NULL, stub_address_inside()) == SGX_ERROR_INVALID_PARAMETER);
  CHECK(sgx_ecall(EID, 0, NULL, NULL) == SGX_ERROR_INVALID_PARAMETER);
  CHECK(sgx_ecall(EID, 1000, NULL, &s) == SGX_ERROR_INVALID_FUNCTION);
  close_scene(&s);
}

static void test_null_when_a_pointer_is_needed_is_refused(void) {
  scene s = open_scene();
  int status = EB_OK;
  uint64_t handle = 0;
  CHECK(ecall_transfer_new(EID, &status, NULL, &window, &handle) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_ARGUMENT, status);
  CHECK(ecall_transfer_new(EID, &status, transfer_id, NULL, &handle) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_ARGUMENT, status);
  CHECK(ecall_transfer_new(EID, &status, transfer_id, &window, NULL) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_ARGUMENT, status);
  CHECK(ecall_bridge_info(EID, &status, NULL) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_ARGUMENT, status);
  CHECK(ecall_session_mac(EID, &status, some_session(), 1, NULL, 5, NULL, 48, NULL) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_ARGUMENT, status);
  close_scene(&s);
}

/* ---- hostile handles ---------------------------------------------------------------------------- */

static void test_handles_when_made_up_freed_or_of_another_kind_are_refused(void) {
  scene s = open_scene();
  const uint64_t made_up[] = {0, 1, UINT64_MAX, (uint64_t)(uintptr_t)stub_address_inside(), some_session() + (UINT64_C(1) << 32),
                              some_transfer(0), UINT64_C(1) << 32 | 100000};
  int status = EB_OK;
  eb_session_stats stats;
  CHECK(ecall_session_get_stats(EID, &status, some_session(), &stats) == SGX_SUCCESS);
  CHECK_OK(status); /* so the others are refused for what they are */
  for (size_t i = 0; i < sizeof made_up / sizeof made_up[0]; i++) {
    CHECK(ecall_session_get_stats(EID, &status, made_up[i], &stats) == SGX_SUCCESS);
    CHECK_STATUS(EB_ERR_ARGUMENT, status);
    CHECK(ecall_session_free(EID, &status, made_up[i]) == SGX_SUCCESS);
    CHECK_STATUS(EB_ERR_ARGUMENT, status);
  }
  CHECK(ecall_session_free(EID, &status, some_session()) == SGX_SUCCESS);
  CHECK_OK(status);
  CHECK(ecall_session_free(EID, &status, some_session()) == SGX_SUCCESS); /* twice */
  CHECK_STATUS(EB_ERR_ARGUMENT, status);
  CHECK(ecall_session_rekey(EID, &status, some_session()) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_ARGUMENT, status);
  close_scene(&s);
}

static void test_bridge_when_opened_twice_in_one_enclave_is_refused(void) {
  scene s = open_scene();
  int status = EB_OK;
  CHECK(ecall_bridge_open(EID, &status, 4, 4, NULL) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_STATE, status);
  close_scene(&s);
}

/* A host that frees what other threads are using: each call works or is refused. */
static void *use_until_gone(void *unused) {
  uint8_t mac[EB_MAX_MAC_SIZE];
  size_t len = 0;
  int status = EB_OK;
  (void)unused;
  while (status == EB_OK) CHECK(ecall_session_mac(EID, &status, some_session(), 1, plain, 100, mac, sizeof mac, &len) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_ARGUMENT, status);
  return NULL;
}

static void test_session_when_freed_while_in_use_lives_until_the_last_call_ends(void) {
  scene s = open_scene();
  pthread_t threads[4];
  int status = EB_OK;
  for (size_t i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, use_until_gone, NULL) == 0);
  usleep(20000);
  CHECK(ecall_session_free(EID, &status, some_session()) == SGX_SUCCESS);
  CHECK_OK(status);
  for (size_t i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  close_scene(&s);
}

/* ---- life --------------------------------------------------------------------------------------- */

static void test_heap_when_every_handle_is_freed_is_as_before(void) {
  scene s = {0};
  CHECK_OK(eb_bridge_open(NULL, &s.bridge));
  const size_t before = stub_heap_used();
  shake(&s);
  CHECK_OK(eb_handshake_session(s.shakes[0], session_id, &s.client));
  CHECK_OK(eb_transfer_new(s.bridge, transfer_id, &window, &s.sent));
  CHECK(stub_heap_used() > before);
  eb_handshake_free(s.shakes[0]);
  eb_handshake_free(s.shakes[1]);
  eb_session_free(s.client);
  eb_transfer_free(s.sent);
  CHECK(stub_heap_used() == before);
  eb_bridge_free(s.bridge);
}

static void test_calls_when_made_by_a_forked_child_fail(void) {
  scene s = open_scene();
  fflush(NULL);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    eb_bridge_info info;
    _exit(eb_bridge_get_info(s.bridge, &info) == EB_ERR_FORKED && eb_session_rekey(s.client) == EB_ERR_FORKED ? 0 : 1);
  }
  int how = 0;
  CHECK(waitpid(child, &how, 0) == child && WIFEXITED(how) && WEXITSTATUS(how) == 0);
  close_scene(&s);
}

static void test_calls_when_the_enclave_is_gone_say_so(void) {
  scene s = open_scene();
  CHECK(sgx_destroy_enclave(EID) == SGX_SUCCESS);
  CHECK_STATUS(EB_ERR_BRIDGE_DIED, eb_session_rekey(s.client));
  close_scene(&s);
}

int main(void) {
  RUN(test_pages_when_sealed_and_opened_inside_arrive);
  RUN(test_bridge_when_asked_says_what_it_runs_on);
  RUN(test_every_kernel_of_this_cpu_works_inside);
  RUN(test_report_when_made_carries_the_binding_and_nothing_else);
  RUN(test_target_when_a_file_is_mapped_outside);
  RUN(test_source_when_a_file_is_sealed_arrives_padded);
  RUN(test_user_check_pointers_when_any_byte_is_inside_are_refused);
  RUN(test_copied_pointers_when_inside_or_too_long_are_refused);
  RUN(test_parameter_block_when_inside_is_refused);
  RUN(test_null_when_a_pointer_is_needed_is_refused);
  RUN(test_handles_when_made_up_freed_or_of_another_kind_are_refused);
  RUN(test_bridge_when_opened_twice_in_one_enclave_is_refused);
  RUN(test_session_when_freed_while_in_use_lives_until_the_last_call_ends);
  RUN(test_heap_when_every_handle_is_freed_is_as_before);
  RUN(test_calls_when_made_by_a_forked_child_fail);
  RUN(test_calls_when_the_enclave_is_gone_say_so);
  return 0;
}
