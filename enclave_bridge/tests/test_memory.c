/* Secret memory: where it is, that it is zeroised, and that it does not cross fork. */
#include <openssl/crypto.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pair.h"

/* Runs `body` in a child; true when it returns true there. */
static bool in_child(bool (*body)(void *), void *argument) {
  fflush(NULL);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) _exit(body(argument) ? 0 : 1);
  int how = 0;
  CHECK(waitpid(child, &how, 0) == child);
  return WIFEXITED(how) && WEXITSTATUS(how) == 0;
}

static void check_arena(bool allow_secret) {
  const eb_pool_plan plan[EB_POOLS] = {{100, 3}, {5000, 1}, {EB_PAGE_SIZE, 2}, {EB_PAGE_SIZE, 1}, {64, 1}};
  eb_arena arena;
  CHECK_OK(eb_arena_open(&arena, plan, allow_secret));
  CHECK(allow_secret || arena.memory.kind == EB_MEMORY_LOCKED);
  uint8_t *slots[3];
  for (int i = 0; i < 3; i++) {
    slots[i] = eb_arena_take(&arena, EB_POOL_SESSIONS);
    CHECK(slots[i] != NULL && (uintptr_t)slots[i] % 64 == 0);
    memset(slots[i], 0xaa, 100);
  }
  CHECK(eb_arena_take(&arena, EB_POOL_SESSIONS) == NULL);
  CHECK(eb_arena_live(&arena, EB_POOL_SESSIONS) == 3);
  eb_arena_give(&arena, EB_POOL_SESSIONS, slots[1]);
  for (int i = 0; i < 100; i++) CHECK(slots[1][i] == 0);
  CHECK(slots[0][99] == 0xaa && slots[2][0] == 0xaa);
  CHECK(eb_arena_take(&arena, EB_POOL_SESSIONS) == slots[1]);
  eb_arena_close(&arena);
}

static void test_arena_when_slots_are_given_back_zeroises_them(void) { check_arena(true); }

static void test_arena_when_the_kernel_has_no_secret_memory_locks_pages(void) { check_arena(false); }

static bool touch(void *address) {
  signal(SIGSEGV, SIG_DFL); /* the sanitizer's handler would print a report */
  volatile uint8_t *byte = address;
  (void)*byte;
  return true;
}

static void test_arena_when_overrun_hits_a_guard_page(void) {
  const eb_pool_plan plan[EB_POOLS] = {{EB_PAGE_SIZE, 1}, {EB_PAGE_SIZE, 1}, {EB_PAGE_SIZE, 1}, {EB_PAGE_SIZE, 1}, {64, 1}};
  eb_arena arena;
  CHECK_OK(eb_arena_open(&arena, plan, true));
  for (int i = 0; i < EB_POOLS; i++) {
    CHECK(!in_child(touch, arena.pools[i].base + EB_PAGE_SIZE));
    CHECK(!in_child(touch, arena.pools[i].base - 1));
    CHECK(!in_child(touch, arena.pools[i].base)); /* not inherited */
  }
  eb_arena_close(&arena);
}

static bool open_without_memlock(void *nothing) {
  (void)nothing;
  const struct rlimit none = {0, 0};
  eb_bridge *bridge = NULL;
  if (setrlimit(RLIMIT_MEMLOCK, &none) != 0) return false;
  if (geteuid() == 0 && setuid(65534) != 0) return false; /* root may lock what it likes */
  return eb_bridge_open(NULL, &bridge) == EB_ERR_MEMORY_LOCK && bridge == NULL;
}

__attribute__((unused)) static bool open_arena_without_memlock(void *nothing) {
  (void)nothing;
  const eb_pool_plan plan[EB_POOLS] = {{100, 3}, {100, 1}, {EB_PAGE_SIZE, 2}, {EB_PAGE_SIZE, 1}, {64, 1}};
  const struct rlimit none = {0, 0};
  eb_arena arena;
  if (setrlimit(RLIMIT_MEMLOCK, &none) != 0) return false;
  if (geteuid() == 0 && setuid(65534) != 0) return false;
  return eb_arena_open(&arena, plan, true) == EB_ERR_MEMORY_LOCK;
}

static void test_bridge_when_memory_cannot_be_locked_refuses_to_open(void) {
  CHECK(in_child(open_without_memlock, NULL)); /* before any other test makes the secure heap */
#if !defined(EB_SANITIZE_ADDRESS) && !defined(EB_SANITIZE_THREAD) /* they replace mlock by nothing */
  CHECK(in_child(open_arena_without_memlock, NULL));
#endif
}

__attribute__((unused)) static bool allocate_too_much(void *argument) {
  const eb_window huge = {REGION, 0, UINT64_C(1) << 28};
  const uint8_t id[EB_TRANSFER_ID_SIZE] = {0};
  const struct rlimit little = {1 << 20, 1 << 20};
  eb_transfer *transfer = NULL;
  if (setrlimit(RLIMIT_AS, &little) != 0) return false;
  eb_bridge *bridge = NULL;
  (void)argument;
  if (eb_bridge_open(NULL, &bridge) == EB_OK) return eb_transfer_new(bridge, id, &huge, &transfer) == EB_ERR_MEMORY;
  return true; /* not even the bridge had room */
}

static void test_transfer_when_memory_runs_out_says_so(void) {
#if !defined(EB_SANITIZE_ADDRESS) && !defined(EB_SANITIZE_THREAD) /* their shadow does not fit either */
  CHECK(in_child(allocate_too_much, NULL));
#endif
}

static void test_bridge_when_options_are_out_of_range_refuses(void) {
  eb_bridge *bridge = NULL;
  eb_bridge_options options = {.max_sessions = 0, .max_handshakes = 1};
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_bridge_open(&options, &bridge));
  options = (eb_bridge_options){.max_sessions = 1, .max_handshakes = 65537};
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_bridge_open(&options, &bridge));
  options = (eb_bridge_options){.max_sessions = 1, .max_handshakes = 1, .gcm_kernel = "avx51"};
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_bridge_open(&options, &bridge));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_bridge_open(NULL, NULL));
  eb_bridge_free(NULL);
}

static void test_bridge_when_a_kernel_is_named_uses_it(void) {
  const eb_gcm_ops *const best_first[] = {&eb_gcm_avx512, &eb_gcm_vaes256, &eb_gcm_aesni, &eb_gcm_openssl};
  const eb_gcm_ops *best = NULL;
  eb_bridge_options options = {.max_sessions = 1, .max_handshakes = 1};
  eb_bridge *bridge = NULL;
  for (size_t i = 0; i < 4; i++) {
    options.gcm_kernel = best_first[i]->name;
    if (!best_first[i]->usable()) {
      CHECK_STATUS(EB_ERR_ARGUMENT, eb_bridge_open(&options, &bridge));
      continue;
    }
    if (best == NULL) best = best_first[i];
    CHECK_OK(eb_bridge_open(&options, &bridge));
    CHECK(bridge->gcm == best_first[i]);
    CHECK(pool_is_zero(bridge, EB_POOL_SESSIONS) && pool_is_zero(bridge, EB_POOL_LANES));
    eb_bridge_free(bridge);
    bridge = NULL;
  }
  options.gcm_kernel = NULL;
  CHECK_OK(eb_bridge_open(&options, &bridge));
  CHECK(bridge->gcm == best);
  eb_bridge_free(bridge);
}

static void test_bridge_info_when_asked_says_what_holds_the_secrets(void) {
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  eb_bridge_info info;
  CHECK_OK(eb_bridge_get_info(pair->bridge, &info));
  CHECK(info.memory == EB_MEMORY_SECRET || info.memory == EB_MEMORY_LOCKED);
  CHECK(info.sessions_live == 2 && info.handshakes_live == 0 && info.secret_bytes > 256 * sizeof(eb_session_secret));
  CHECK(strcmp(info.gcm_kernel, pair->bridge->gcm->name) == 0 && strncmp(info.libcrypto, "OpenSSL", 7) == 0);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_bridge_get_info(pair->bridge, NULL));
  pair_free(pair);
}

static void test_random_when_asked_twice_differs(void) {
  uint8_t a[EB_NONCE_SIZE] = {0}, b[EB_NONCE_SIZE] = {0};
  eb_bridge *bridge = NULL;
  CHECK_OK(eb_bridge_open(NULL, &bridge));
  CHECK_OK(eb_random(bridge, a, sizeof a));
  CHECK_OK(eb_random(bridge, b, sizeof b));
  CHECK(memcmp(a, b, sizeof a) != 0);
  CHECK_OK(eb_random(bridge, NULL, 0));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_random(bridge, NULL, 1));
  CHECK_STATUS(EB_ERR_LENGTH, eb_random(bridge, a, EB_MAX_MESSAGE_SIZE + 1));
  eb_bridge_free(bridge);
}

static void test_secrets_when_handles_end_are_zeroised(void) {
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  eb_bridge *bridge = pair->bridge;
  eb_result result;
  pair_seal(pair, 0, 4);
  CHECK_OK(pair_open(pair, &result));
  CHECK(pool_is_zero(bridge, EB_POOL_LANES));      /* plaintext and ciphertext */
  CHECK(pool_is_zero(bridge, EB_POOL_HANDSHAKES)); /* spent */
  CHECK(!pool_is_zero(bridge, EB_POOL_SESSIONS));
  CHECK_OK(eb_session_close(pair->client));
  CHECK(!pool_is_zero(bridge, EB_POOL_SESSIONS));
  eb_session_free(pair->server);
  CHECK(pool_is_zero(bridge, EB_POOL_SESSIONS));
  pair->server = NULL;
  pair_free(pair);
}

/* A closed session's slot may be another's: freeing the closed one must leave it alone. */
static void test_session_when_freed_after_close_leaves_the_next_owner_alone(void) {
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  CHECK_OK(eb_session_close(pair->client));
  eb_session_secret *slot = eb_arena_take(&pair->bridge->arena, EB_POOL_SESSIONS);
  memset(slot, 0x5a, sizeof *slot);
  eb_session_free(pair->client);
  pair->client = NULL;
  for (size_t i = 0; i < sizeof *slot; i++) CHECK(((uint8_t *)slot)[i] == 0x5a);
  eb_arena_give(&pair->bridge->arena, EB_POOL_SESSIONS, slot);
  pair_free(pair);
}

static void test_key_schedule_when_done_keeps_no_shared_secret_and_no_private_key(void) {
  static const uint8_t zero[EB_MAX_SECRET_SIZE];
  eb_pair pair = {0};
  CHECK_OK(eb_bridge_open(NULL, &pair.bridge));
  pair_derive(&pair, EB_SUITE_P384_SHA384_AES256GCM);
  CHECK(memcmp(pair.client_handshake->secret->shared, zero, sizeof zero) == 0);
  CHECK(memcmp(pair.client_handshake->secret->prk, zero, sizeof zero) == 0);
  CHECK(memcmp(pair.client_handshake->secret->finished[0], zero, sizeof zero) != 0);
  CHECK(pair.client_handshake->keys[0] == NULL && pair.client_handshake->keys[1] == NULL);
  CHECK(CRYPTO_secure_malloc_initialized() == 1);
  eb_handshake_free(pair.client_handshake);
  eb_handshake_free(pair.server_handshake);
  CHECK(pool_is_zero(pair.bridge, EB_POOL_HANDSHAKES));
  eb_bridge_free(pair.bridge);
}

static bool every_call_is_forked(void *argument) {
  eb_pair *pair = argument;
  const eb_window window = {REGION, BASE_GPA, 1};
  const eb_suite suite = EB_SUITE_P256_SHA256_AES128GCM;
  uint8_t buffer[128] = {0};
  size_t len = 0;
  uint64_t pages = 0;
  eb_bridge_info info;
  eb_result result;
  eb_session_stats stats;
  eb_handshake *handshake = NULL;
  eb_transfer *transfer = NULL;
  eb_session *session = NULL;
#define FORKED(call) \
  if ((call) != EB_ERR_FORKED) return fprintf(stderr, "not EB_ERR_FORKED: %s\n", #call), false
  FORKED(eb_bridge_get_info(pair->bridge, &info));
  FORKED(eb_random(pair->bridge, buffer, 1));
  FORKED(eb_handshake_new(pair->bridge, EB_ROLE_CLIENT, &suite, 1, &handshake));
  FORKED(eb_handshake_public_key(pair->client_handshake, suite, buffer, sizeof buffer, &len));
  FORKED(eb_handshake_absorb(pair->client_handshake, buffer, 1));
  FORKED(eb_handshake_select(pair->client_handshake, suite));
  FORKED(eb_handshake_binding(pair->client_handshake, EB_ROLE_CLIENT, buffer));
  FORKED(eb_handshake_derive(pair->client_handshake, buffer, 65));
  FORKED(eb_handshake_finished(pair->client_handshake, buffer, sizeof buffer, &len));
  FORKED(eb_handshake_check_finished(pair->client_handshake, buffer, 48));
  FORKED(eb_handshake_session(pair->client_handshake, buffer, &session));
  FORKED(eb_session_close(pair->client));
  FORKED(eb_session_get_stats(pair->client, &stats));
  FORKED(eb_session_rekey(pair->client));
  FORKED(eb_session_mac(pair->client, EB_MAC_CONTROL, buffer, 1, buffer, sizeof buffer, &len));
  FORKED(eb_session_check_mac(pair->client, EB_MAC_CONTROL, buffer, 1, buffer, 48));
  FORKED(eb_transfer_new(pair->bridge, buffer, &window, &transfer));
  FORKED(eb_transfer_set_target_fd(pair->sent, 0, 0));
  FORKED(eb_transfer_set_target_memory(pair->sent, pair->target, sizeof pair->target));
  FORKED(eb_transfer_pages(pair->sent, &pages));
  FORKED(eb_transfer_forget(pair->sent, BASE_GPA, 1));
  FORKED(eb_transfer_commit_mac(pair->client, pair->sent, buffer, sizeof buffer, &len));
  FORKED(eb_transfer_check_commit_mac(pair->client, pair->sent, buffer, 48));
  FORKED(eb_pages_seal(pair->client, NULL, REGION, 0, pair->plain, EB_PAGE_SIZE, pair->records, sizeof pair->records,
                       &len, NULL));
  FORKED(eb_pages_open(pair->server, pair->received, pair->records, pair->records_len, &result));
  pair_free(pair); /* freeing what was inherited is allowed */
  eb_bridge *own = NULL;
  if (eb_bridge_open(NULL, &own) != EB_OK) return false;
  eb_bridge_free(own);
  return true;
}

static void test_calls_when_made_in_a_forked_child_all_fail(void) {
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  eb_result result;
  pair_seal(pair, 0, 1);
  CHECK(in_child(every_call_is_forked, pair));
  CHECK_OK(pair_open(pair, &result)); /* the parent goes on */
  pair_free(pair);
}

int main(void) {
  RUN(test_bridge_when_memory_cannot_be_locked_refuses_to_open);
  RUN(test_arena_when_slots_are_given_back_zeroises_them);
  RUN(test_arena_when_the_kernel_has_no_secret_memory_locks_pages);
  RUN(test_arena_when_overrun_hits_a_guard_page);
  RUN(test_transfer_when_memory_runs_out_says_so);
  RUN(test_bridge_when_options_are_out_of_range_refuses);
  RUN(test_bridge_when_a_kernel_is_named_uses_it);
  RUN(test_bridge_info_when_asked_says_what_holds_the_secrets);
  RUN(test_random_when_asked_twice_differs);
  RUN(test_secrets_when_handles_end_are_zeroised);
  RUN(test_session_when_freed_after_close_leaves_the_next_owner_alone);
  RUN(test_key_schedule_when_done_keeps_no_shared_secret_and_no_private_key);
  RUN(test_calls_when_made_in_a_forked_child_all_fail);
  return 0;
}
