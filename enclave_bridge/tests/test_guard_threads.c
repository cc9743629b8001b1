/* One guard and many threads: writes in place, reads, checks and renewals at once. */
#include <sys/mman.h>
#include <unistd.h>

#include "page_guard.h"
#include "pair.h"

enum { ROUNDS = 60 };

static eb_pair *pair;
static eb_guard *guard;
static const eb_window window = {REGION, BASE_GPA, WINDOW_PAGES};
static const uint8_t id[EB_TRANSFER_ID_SIZE] = {3};

static void *write_pages(void *nothing) {
  static uint8_t plain[4 * EB_PAGE_SIZE], records[4 * EB_RECORD_SIZE];
  eb_transfer *transfer = NULL;
  eb_result result;
  size_t len = 0;
  CHECK_OK(eb_transfer_new(pair->bridge, id, &window, &transfer));
  CHECK_OK(eb_transfer_set_guard(transfer, guard));
  for (size_t i = 0; i < ROUNDS; i++) {
    memset(plain, (int)i + 1, sizeof plain);
    CHECK_OK(eb_pages_seal(pair->client, NULL, REGION, BASE_GPA + i % 32 * EB_PAGE_SIZE, plain, sizeof plain, records,
                           sizeof records, &len, NULL));
    CHECK_OK(eb_pages_open(pair->server, transfer, records, len, &result));
  }
  eb_transfer_free(transfer);
  return nothing;
}

static void *read_pages(void *nothing) {
  static uint8_t records[WINDOW_PAGES * EB_RECORD_SIZE];
  eb_transfer *transfer = NULL;
  eb_result result;
  size_t len = 0;
  CHECK_OK(eb_transfer_new(pair->bridge, id, &window, &transfer));
  for (size_t i = 0; i < ROUNDS; i++)
    CHECK_OK(eb_guard_seal(guard, pair->server, transfer, BASE_GPA, WINDOW_PAGES, records, sizeof records, &len,
                           &result));
  eb_transfer_free(transfer);
  return nothing;
}

static void *check_pages(void *nothing) {
  eb_verify_result result;
  for (size_t i = 0; i < ROUNDS; i++) {
    CHECK_OK(eb_guard_verify(guard, 0, WINDOW_PAGES, NULL, 0, &result));
    CHECK(result.bad_pages == 0);
  }
  return nothing;
}

static void *renew(void *nothing) {
  uint64_t bad = 0;
  for (uint64_t i = 0; i < ROUNDS / 4; i++) CHECK_OK(eb_guard_renew(guard, i + 2, &bad));
  return nothing;
}

static void run_all(int fd) {
  void *(*const bodies[])(void *) = {write_pages, read_pages, check_pages, renew};
  pthread_t threads[sizeof bodies / sizeof bodies[0]];
  const eb_guard_scope scope = {"book", 1, WINDOW_PAGES};
  pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  CHECK(fd >= 0 && ftruncate(fd, WINDOW_PAGES * EB_PAGE_SIZE) == 0);
  CHECK_OK(eb_guard_new(pair->bridge, NULL, &scope, fd, 0, &guard));
  for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++)
    CHECK(pthread_create(&threads[i], NULL, bodies[i], NULL) == 0);
  for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  check_pages(NULL);
  eb_guard_free(guard);
  close(fd);
  pair_free(pair);
}

static void test_guard_when_used_by_many_threads_finds_nothing_wrong(void) { run_all(memfd_create("region", MFD_CLOEXEC)); }

static void test_guard_of_a_file_when_read_ahead_of_a_write_reads_again(void) {
  char path[] = "/tmp/eb-region-XXXXXX";
  const int fd = mkstemp(path);
  CHECK(fd >= 0 && unlink(path) == 0);
  run_all(fd);
}

static void *renew_once(void *nothing) {
  uint64_t bad = 0;
  CHECK_OK(eb_guard_renew(guard, 2, &bad));
  return nothing;
}

/* Whoever opens pages has a lane and waits for the guard; were it the other way round here, both would wait for ever. */
static void test_guard_when_renewal_waits_for_a_lane_is_not_locked(void) {
  const eb_guard_scope scope = {"book", 1, WINDOW_PAGES};
  uint8_t *lanes[EB_LANES];
  eb_verify_result found;
  pthread_t waiting;
  pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  const int fd = memfd_create("region", MFD_CLOEXEC);
  CHECK(ftruncate(fd, WINDOW_PAGES * EB_PAGE_SIZE) == 0);
  CHECK_OK(eb_guard_new(pair->bridge, NULL, &scope, fd, 0, &guard));
  for (size_t i = 0; i < EB_LANES; i++) CHECK((lanes[i] = eb_arena_take(&pair->bridge->arena, EB_POOL_LANES)) != NULL);
  CHECK(pthread_create(&waiting, NULL, renew_once, NULL) == 0);
  usleep(50000);
  CHECK_OK(eb_guard_verify(guard, 0, WINDOW_PAGES, NULL, 0, &found));
  for (size_t i = 0; i < EB_LANES; i++) eb_arena_give(&pair->bridge->arena, EB_POOL_LANES, lanes[i]);
  CHECK(pthread_join(waiting, NULL) == 0);
  eb_guard_free(guard);
  close(fd);
  pair_free(pair);
}

int main(void) {
  RUN(test_guard_when_used_by_many_threads_finds_nothing_wrong);
  RUN(test_guard_of_a_file_when_read_ahead_of_a_write_reads_again);
  RUN(test_guard_when_renewal_waits_for_a_lane_is_not_locked);
  return 0;
}
