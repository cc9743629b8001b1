/* Several threads on one session, many sessions on few lanes, and a close in the middle. */
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pair.h"

#define THREADS 12u
#define ROUNDS 40u

typedef struct {
  eb_pair *pair;
  size_t page;
} worker;

static void *seal_and_open(void *argument) {
  worker *me = argument;
  eb_pair *pair = me->pair;
  uint8_t *records = malloc(2 * EB_RECORD_SIZE);
  CHECK(records != NULL);
  for (unsigned i = 0; i < ROUNDS; i++) {
    size_t len = 0;
    eb_result sealed, opened;
    CHECK_OK(eb_pages_seal(pair->client, pair->sent, REGION, BASE_GPA + me->page * EB_PAGE_SIZE,
                           pair->plain + me->page * EB_PAGE_SIZE, 2 * EB_PAGE_SIZE, records, 2 * EB_RECORD_SIZE, &len,
                           &sealed));
    CHECK_OK(eb_pages_open(pair->server, pair->received, records, len, &opened));
    CHECK(opened.sequence == sealed.sequence);
  }
  free(records);
  return NULL;
}

static void test_session_when_used_by_many_threads_uses_each_number_once(void) {
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  static worker workers[THREADS];
  pthread_t threads[THREADS];
  eb_session_stats stats;
  for (size_t i = 0; i < THREADS; i++) {
    workers[i] = (worker){.pair = pair, .page = 2 * i};
    CHECK(pthread_create(&threads[i], NULL, seal_and_open, &workers[i]) == 0);
  }
  for (size_t i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK_OK(eb_session_get_stats(pair->server, &stats));
  CHECK(stats.opened_pages == 2 * THREADS * ROUNDS && stats.replayed == 0 && stats.tampered == 0);
  CHECK(memcmp(pair->target, pair->plain, 2 * THREADS * EB_PAGE_SIZE) == 0);
  pair_free(pair);
}

static void *until_closed(void *argument) {
  worker *me = argument;
  uint8_t *records = malloc(EB_RECORD_SIZE);
  uint8_t mac[EB_MAX_MAC_SIZE];
  size_t len = 0;
  CHECK(records != NULL);
  eb_status status;
  do {
    status = eb_pages_seal(me->pair->client, NULL, REGION, 0, me->pair->plain, EB_PAGE_SIZE, records, EB_RECORD_SIZE,
                           &len, NULL);
    CHECK(status == EB_OK || status == EB_ERR_SESSION_CLOSED);
    eb_status control = eb_session_mac(me->pair->client, EB_MAC_RECEIPT, mac, 1, mac, sizeof mac, &len);
    CHECK(control == EB_OK || control == EB_ERR_SESSION_CLOSED);
  } while (status == EB_OK);
  free(records);
  return NULL;
}

static void test_session_when_closed_by_another_thread_ends_every_caller(void) {
  eb_pair *pair = pair_new(EB_SUITE_P256_SHA256_AES128GCM, NULL);
  worker shared = {.pair = pair};
  pthread_t threads[4];
  eb_session_stats stats;
  for (size_t i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, until_closed, &shared) == 0);
  do CHECK_OK(eb_session_get_stats(pair->client, &stats));
  while (stats.sent_pages < 50);
  CHECK_OK(eb_session_close(pair->client));
  for (size_t i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  pair_free(pair);
}

static void *whole_pair(void *argument) {
  (void)argument;
  eb_pair *pair = pair_new(EB_SUITE_P256_SHA256_AES128GCM, NULL);
  eb_result result;
  pair_seal(pair, 0, 8);
  CHECK_OK(pair_open(pair, &result));
  pair_free(pair);
  return NULL;
}

static void test_bridges_when_opened_by_many_threads_are_independent(void) {
  pthread_t threads[4];
  for (size_t i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, whole_pair, NULL) == 0);
  for (size_t i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

typedef struct {
  eb_pair *pair;
  eb_source *source;
} reader;

static void *seal_from_file(void *argument) {
  const reader *shared = argument;
  const size_t room = WINDOW_PAGES * EB_RECORD_SIZE;
  uint8_t *records = malloc(room);
  size_t len = 0;
  CHECK(records != NULL);
  for (int i = 0; i < 20; i++)
    CHECK_OK(eb_pages_seal_from(shared->pair->client, NULL, REGION, BASE_GPA, shared->source, 0,
                                WINDOW_PAGES * EB_PAGE_SIZE, records, room, &len, NULL));
  free(records);
  return NULL;
}

static void test_source_when_more_threads_than_slots_seal_from_it_serves_all(void) {
  _Static_assert(THREADS > EB_STAGING_SLOTS, "or none waits");
  eb_pair *pair = pair_new(EB_SUITE_P256_SHA256_AES128GCM, NULL);
  reader shared = {.pair = pair};
  pthread_t threads[THREADS];
  const int fd = memfd_create("source", MFD_CLOEXEC);
  CHECK(fd >= 0 && write(fd, pair->plain, sizeof pair->plain) == sizeof pair->plain);
  CHECK_OK(eb_source_open(pair->bridge, fd, 0, sizeof pair->plain, &shared.source));
  close(fd);
  for (size_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, seal_from_file, &shared) == 0);
  for (size_t i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK(pair->client->send_sequence == THREADS * 20 * WINDOW_PAGES);
  CHECK(pool_is_zero(pair->bridge, EB_POOL_STAGING));
  eb_source_free(shared.source);
  pair_free(pair);
}

typedef struct {
  eb_arena *arena;
  void *slot;
} waiter;

static void *wait_for_lane(void *argument) {
  waiter *me = argument;
  me->slot = eb_arena_wait(me->arena, EB_POOL_LANES);
  return NULL;
}

static void test_lanes_when_all_are_used_make_callers_wait(void) {
  const eb_pool_plan plan[EB_POOLS] = {{64, 1}, {64, 1}, {64, 1}, {64, 1}, {64, 1}};
  eb_arena arena;
  pthread_t thread;
  CHECK_OK(eb_arena_open(&arena, plan, true));
  void *only = eb_arena_take(&arena, EB_POOL_LANES);
  waiter me = {&arena, NULL};
  CHECK(pthread_create(&thread, NULL, wait_for_lane, &me) == 0);
  eb_arena_give(&arena, EB_POOL_LANES, only);
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(me.slot == only);
  eb_arena_close(&arena);
}

int main(void) {
  RUN(test_bridges_when_opened_by_many_threads_are_independent);
  RUN(test_session_when_used_by_many_threads_uses_each_number_once);
  RUN(test_session_when_closed_by_another_thread_ends_every_caller);
  RUN(test_source_when_more_threads_than_slots_seal_from_it_serves_all);
  RUN(test_lanes_when_all_are_used_make_callers_wait);
  return 0;
}
