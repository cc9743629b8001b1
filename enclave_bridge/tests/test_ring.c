/* The ring between threads, between processes, and against a peer that writes what it likes. */
#include "ring.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define CAPACITY ((size_t)8192)
#define MESSAGES 20000u
#define SOON (eb_ring_now() + UINT64_C(5000000))
#define LATE (eb_ring_now() + UINT64_C(60000000000))

/* Where things are in the shared memory: what a hostile peer knows. */
enum { PRODUCER_POSITION = 128, PRODUCER_SLEEPING = 256, PRODUCER_CLOSED = 260, CONSUMER_POSITION = 384, CONSUMER_SLEEPING = 512 };
#define MESSAGE UINT64_C(0x4547534d)
#define GROWING UINT64_C(0x574f5247)
#define SKIP UINT64_C(0x50494b53)

typedef struct {
  uint8_t *memory;
  size_t bytes;
  eb_ring producer, consumer;
} rings;

static rings open_rings(size_t capacity) {
  rings made = {.bytes = eb_ring_bytes(capacity)};
  int fd = memfd_create("ring", MFD_CLOEXEC);
  CHECK(fd >= 0 && ftruncate(fd, (off_t)made.bytes) == 0);
  made.memory = mmap(NULL, made.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(made.memory != MAP_FAILED);
  close(fd);
  CHECK_OK(eb_ring_format(made.memory, made.bytes));
  CHECK_OK(eb_ring_attach(&made.producer, EB_RING_PRODUCER, made.memory, made.bytes));
  CHECK_OK(eb_ring_attach(&made.consumer, EB_RING_CONSUMER, made.memory, made.bytes));
  return made;
}

static void close_rings(rings *open) { munmap(open->memory, open->bytes); }

static void scribble64(rings *open, size_t at, uint64_t value) { memcpy(open->memory + at, &value, sizeof value); }

static void scribble32(rings *open, size_t at, uint32_t value) { memcpy(open->memory + at, &value, sizeof value); }

static void put(rings *open, const void *message, size_t len) {
  uint8_t *room = NULL;
  CHECK_OK(eb_ring_reserve(&open->producer, len, 0, &room));
  memcpy(room, message, len);
  CHECK_OK(eb_ring_publish(&open->producer, len));
}

static void take(rings *open, const void *expected, size_t expected_len) {
  const uint8_t *message = NULL;
  size_t len = 0;
  CHECK_OK(eb_ring_peek(&open->consumer, 0, &message, &len));
  CHECK(len == expected_len && memcmp(message, expected, len) == 0);
  eb_ring_consume(&open->consumer);
}

static void fill(rings *open, size_t len) {
  uint8_t *room = NULL;
  while (eb_ring_reserve(&open->producer, len, 0, &room) == EB_OK) CHECK_OK(eb_ring_publish(&open->producer, len));
}

/* ---- one thread --------------------------------------------------------------------------- */

static void test_capacity_when_not_a_power_of_two_in_range_is_refused(void) {
  const size_t bad[] = {0, 1, 2048, 4097, 5000, EB_RING_MAX_CAPACITY * 2};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    CHECK(eb_ring_bytes(bad[i]) == 0);
    CHECK(eb_ring_max_message(bad[i]) == 0);
  }
  CHECK(eb_ring_bytes(EB_RING_MIN_CAPACITY) == 8192);
  CHECK(eb_ring_max_message(EB_RING_MAX_CAPACITY) == EB_RING_MAX_CAPACITY / 2 - EB_RING_HEADER);
}

static void test_attach_when_memory_is_not_a_ring_of_that_size_is_refused(void) {
  rings open = open_rings(CAPACITY);
  eb_ring ring;
  uint8_t *room = NULL;
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_attach(NULL, EB_RING_PRODUCER, open.memory, open.bytes));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_attach(&ring, (eb_ring_end)3, open.memory, open.bytes));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_attach(&ring, EB_RING_PRODUCER, NULL, open.bytes));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_attach(&ring, EB_RING_PRODUCER, open.memory + 8, open.bytes));
  CHECK_STATUS(EB_ERR_LENGTH, eb_ring_attach(&ring, EB_RING_PRODUCER, open.memory, open.bytes - 1));
  CHECK_STATUS(EB_ERR_LENGTH, eb_ring_attach(&ring, EB_RING_PRODUCER, open.memory, 100));
  CHECK_STATUS(EB_ERR_LENGTH, eb_ring_format(open.memory, open.bytes + 64));
  CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_attach(&ring, EB_RING_PRODUCER, open.memory, eb_ring_bytes(4096)));
  scribble64(&open, 0, 0);
  CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_attach(&ring, EB_RING_PRODUCER, open.memory, open.bytes));
  memset(&ring, 0, sizeof ring); /* never attached */
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_reserve(&ring, 1, 0, &room));
  eb_ring_close(&ring);
  eb_ring_close(NULL);
  close_rings(&open);
}

static void test_message_when_published_arrives_whole_and_in_order(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL, *again = NULL;
  size_t len = 0;
  put(&open, "one", 3);
  put(&open, "", 0);
  put(&open, "three", 5);
  CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
  CHECK(len == 3 && memcmp(message, "one", 3) == 0);
  CHECK_OK(eb_ring_peek(&open.consumer, 0, &again, &len));
  CHECK(again == message && len == 3);
  eb_ring_consume(&open.consumer);
  CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
  CHECK(len == 0);
  eb_ring_consume(&open.consumer);
  eb_ring_consume(&open.consumer); /* nothing looked at: nothing given back */
  CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
  CHECK(len == 5 && memcmp(message, "three", 5) == 0 && (uintptr_t)message % 16 == 0);
  eb_ring_consume(&open.consumer);
  CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_peek(&open.consumer, 0, &message, &len));
  close_rings(&open);
}

static void test_longest_message_when_the_ring_is_empty_fits_wherever_the_last_ended(void) {
  const size_t longest = eb_ring_max_message(CAPACITY);
  static uint8_t big[CAPACITY];
  rings open = open_rings(CAPACITY);
  uint8_t *room = NULL;
  for (unsigned i = 0; i < 300; i++) {
    memset(big, (int)i, longest);
    put(&open, big, longest);
    take(&open, big, longest);
    put(&open, big, 1); /* moves the next one on by a slot */
    take(&open, big, 1);
  }
  CHECK_STATUS(EB_ERR_LENGTH, eb_ring_reserve(&open.producer, longest + 1, 0, &room));
  CHECK_STATUS(EB_ERR_LENGTH, eb_ring_reserve(&open.producer, SIZE_MAX, 0, &room));
  close_rings(&open);
}

static size_t place_of_next(rings *open, size_t len) {
  uint8_t *room = NULL;
  CHECK_OK(eb_ring_reserve(&open->producer, len, 0, &room));
  return (size_t)(room - open->memory) - EB_RING_CONTROL - EB_RING_HEADER;
}

static void test_restart_when_the_ring_is_empty_puts_the_next_message_at_the_start(void) {
  rings open = open_rings(CAPACITY);
  put(&open, "one", 3);
  put(&open, "two", 3);
  take(&open, "one", 3);
  take(&open, "two", 3);
  eb_ring_restart(&open.producer);
  CHECK(place_of_next(&open, 5) == 0);
  put(&open, "three", 5);
  CHECK(place_of_next(&open, 4) == EB_RING_SLOT); /* the wish was for one message */
  put(&open, "four", 4);
  take(&open, "three", 5);
  take(&open, "four", 4);
  close_rings(&open);
}

static void test_restart_when_the_ring_is_not_empty_or_has_no_room_there_changes_nothing(void) {
  static const uint8_t big[CAPACITY] = {1, 2, 3};
  rings open = open_rings(CAPACITY);
  put(&open, "one", 3);
  eb_ring_restart(&open.producer);
  CHECK(place_of_next(&open, 3) == EB_RING_SLOT); /* "one" is not taken yet */
  put(&open, "two", 3);
  take(&open, "one", 3);
  take(&open, "two", 3);
  eb_ring_restart(&open.producer);
  CHECK(place_of_next(&open, 2 * EB_RING_SLOT) == 2 * EB_RING_SLOT); /* longer than what is before it */
  put(&open, big, eb_ring_max_message(CAPACITY));
  take(&open, big, eb_ring_max_message(CAPACITY));
  eb_ring_restart(&open.consumer); /* not its business */
  CHECK(!open.consumer.restart);
  close_rings(&open);
}

static void test_publish_when_not_reserved_or_longer_publishes_nothing(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  uint8_t *room = NULL;
  size_t len = 0;
  CHECK_STATUS(EB_ERR_STATE, eb_ring_publish(&open.producer, 0));
  CHECK_OK(eb_ring_reserve(&open.producer, 10, 0, &room));
  CHECK_STATUS(EB_ERR_LENGTH, eb_ring_publish(&open.producer, 11));
  CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_peek(&open.consumer, 0, &message, &len));
  CHECK_OK(eb_ring_publish(&open.producer, 4)); /* less than reserved is allowed */
  CHECK_STATUS(EB_ERR_STATE, eb_ring_publish(&open.producer, 0));
  CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
  CHECK(len == 4);
  close_rings(&open);
}

static void test_call_when_of_the_other_end_is_refused(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  uint8_t *room = NULL;
  size_t len = 0;
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_reserve(&open.consumer, 1, 0, &room));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_reserve(&open.producer, 1, 0, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_publish(&open.consumer, 1));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_peek(&open.producer, 0, &message, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_peek(&open.consumer, 0, NULL, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_peek(NULL, 0, &message, &len));
  eb_ring_consume(&open.producer);
  close_rings(&open);
}

static void test_wait_when_nothing_comes_ends_at_the_deadline(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  uint8_t *room = NULL;
  size_t len = 0;
  for (int spins = 0; spins < 2; spins++) {
    uint64_t deadline = SOON;
    open.consumer.spin_limit_ns = spins ? UINT64_C(1000000000) : 0;
    CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_peek(&open.consumer, deadline, &message, &len));
    CHECK(eb_ring_now() >= deadline);
    CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_peek(&open.consumer, deadline, &message, &len)); /* past */
  }
  fill(&open, 100);
  uint64_t deadline = SOON;
  CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_reserve(&open.producer, 100, deadline, &room));
  CHECK(eb_ring_now() >= deadline);
  close_rings(&open);
}

static void test_close_by_the_producer_lets_the_consumer_drain(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  uint8_t *room = NULL;
  size_t len = 0;
  put(&open, "last", 4);
  eb_ring_close(&open.producer);
  eb_ring_close(&open.producer);
  CHECK_STATUS(EB_ERR_RING_CLOSED, eb_ring_reserve(&open.producer, 1, LATE, &room));
  CHECK_OK(eb_ring_peek(&open.consumer, LATE, &message, &len));
  eb_ring_consume(&open.consumer);
  CHECK_STATUS(EB_ERR_RING_CLOSED, eb_ring_peek(&open.consumer, LATE, &message, &len));
  close_rings(&open);
}

static void test_close_by_the_consumer_ends_the_producer(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  uint8_t *room = NULL;
  size_t len = 0;
  put(&open, "lost", 4);
  eb_ring_close(&open.consumer);
  CHECK_STATUS(EB_ERR_RING_CLOSED, eb_ring_reserve(&open.producer, 1, LATE, &room));
  CHECK_STATUS(EB_ERR_RING_CLOSED, eb_ring_peek(&open.consumer, LATE, &message, &len));
  close_rings(&open);
}

static void test_ends_when_the_ring_is_made_anew_are_closed_and_leave_it_alone(void) {
  rings open = open_rings(CAPACITY);
  eb_ring producer, consumer;
  const uint8_t *message = NULL;
  uint8_t *room = NULL;
  size_t len = 0;
  put(&open, "former", 6);
  CHECK_OK(eb_ring_format(open.memory, open.bytes));
  CHECK_OK(eb_ring_attach(&producer, EB_RING_PRODUCER, open.memory, open.bytes));
  CHECK_OK(eb_ring_attach(&consumer, EB_RING_CONSUMER, open.memory, open.bytes));
  CHECK_STATUS(EB_ERR_RING_CLOSED, eb_ring_reserve(&open.producer, 1, LATE, &room));
  CHECK_STATUS(EB_ERR_RING_CLOSED, eb_ring_peek(&open.consumer, LATE, &message, &len));
  eb_ring_close(&open.producer);
  CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_peek(&consumer, 0, &message, &len));
  CHECK_OK(eb_ring_reserve(&producer, 1, 0, &room));
  close_rings(&open);
}

/* ---- a hostile peer ------------------------------------------------------------------------ */

static void test_producer_when_the_consumers_index_is_impossible_stops_for_good(void) {
  /* own is at most 8192 here: behind what was seen, ahead of what was published, not a slot */
  const uint64_t bad[] = {UINT64_MAX, UINT64_C(1) << 63, 8192 + 64, 63, 1, 0 - UINT64_C(64)};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    rings open = open_rings(CAPACITY);
    uint8_t *room = NULL;
    fill(&open, 100);
    scribble64(&open, CONSUMER_POSITION, bad[i]);
    CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_reserve(&open.producer, 100, LATE, &room));
    scribble64(&open, CONSUMER_POSITION, 0);
    CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_reserve(&open.producer, 100, LATE, &room));
    CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_publish(&open.producer, 0));
    close_rings(&open);
  }
}

static void test_consumer_when_the_producers_index_is_impossible_stops_for_good(void) {
  const uint64_t bad[] = {UINT64_MAX, CAPACITY + 64, 63, 1, 0 - UINT64_C(64)};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    rings open = open_rings(CAPACITY);
    const uint8_t *message = NULL;
    size_t len = 0;
    scribble64(&open, PRODUCER_POSITION, bad[i]);
    CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_peek(&open.consumer, LATE, &message, &len));
    scribble64(&open, PRODUCER_POSITION, 0);
    CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_peek(&open.consumer, LATE, &message, &len));
    close_rings(&open);
  }
}

static void test_consumer_when_the_producers_index_goes_back_stops_for_good(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  size_t len = 0;
  put(&open, "a", 1);
  CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
  eb_ring_consume(&open.consumer);
  scribble64(&open, PRODUCER_POSITION, 0);
  CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_peek(&open.consumer, LATE, &message, &len));
  close_rings(&open);
}

static void test_consumer_when_a_header_is_impossible_stops_for_good(void) {
  const uint64_t bad[] = {
      0,
      MESSAGE << 32 | 112,                 /* two slots published: 128 - 16 = 112 fits, see below */
      MESSAGE << 32 | 113,
      MESSAGE << 32 | UINT32_MAX,
      MESSAGE << 32 | (CAPACITY / 2),
      UINT64_C(0xdead) << 32 | 1,
      SKIP << 32,                          /* at the start of the data there is nothing to leave out */
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    rings open = open_rings(CAPACITY);
    const uint8_t *message = NULL;
    size_t len = 0;
    put(&open, "0123456789012345678901234567890123456789012345678901234567890123", 64);
    scribble64(&open, EB_RING_CONTROL, bad[i]);
    eb_status expected = i == 1 ? EB_OK : EB_ERR_RING_CORRUPT;
    CHECK_STATUS(expected, eb_ring_peek(&open.consumer, LATE, &message, &len));
    CHECK_STATUS(expected, eb_ring_peek(&open.consumer, LATE, &message, &len));
    close_rings(&open);
  }
}

static void test_consumer_when_a_skip_leads_nowhere_stops_for_good(void) {
  const uint64_t second[] = {SKIP << 32, MESSAGE << 32 | 200, 0};
  for (size_t i = 0; i < 4; i++) {
    rings open = open_rings(CAPACITY);
    const uint8_t *message = NULL;
    size_t len = 0;
    put(&open, "a", 1);
    CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
    eb_ring_consume(&open.consumer);
    scribble64(&open, EB_RING_CONTROL + 64, SKIP << 32);
    if (i < 3) scribble64(&open, EB_RING_CONTROL, second[i]);
    /* i == 3: the skip is all that was published */
    scribble64(&open, PRODUCER_POSITION, i < 3 ? CAPACITY + 64 : CAPACITY);
    CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_peek(&open.consumer, LATE, &message, &len));
    close_rings(&open);
  }
}

static void test_message_when_its_header_changes_after_the_look_keeps_its_length(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  size_t len = 0;
  put(&open, "abc", 3);
  put(&open, "def", 3);
  CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
  scribble64(&open, EB_RING_CONTROL, MESSAGE << 32 | 4000);
  CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
  CHECK(len == 3);
  eb_ring_consume(&open.consumer);
  CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
  CHECK(len == 3 && memcmp(message, "def", 3) == 0);
  close_rings(&open);
}

static void test_close_when_the_peer_takes_it_back_still_ends_this_end(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  size_t len = 0;
  eb_ring_close(&open.consumer);
  memset(open.memory + CONSUMER_SLEEPING, 0, 8);
  CHECK_STATUS(EB_ERR_RING_CLOSED, eb_ring_peek(&open.consumer, LATE, &message, &len));
  close_rings(&open);
}

static void test_sleep_when_the_peer_never_wakes_ends_after_a_nap(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  size_t len = 0;
  open.consumer.spin_limit_ns = 0;
  open.consumer.nap_ns = 1000000;
  CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_peek(&open.consumer, eb_ring_now() + 20000000, &message, &len));
  scribble64(&open, EB_RING_CONTROL, MESSAGE << 32 | 1);
  scribble64(&open, PRODUCER_POSITION, 64); /* and no wake-up */
  CHECK_OK(eb_ring_peek(&open.consumer, LATE, &message, &len));
  CHECK(len == 1);
  close_rings(&open);
}

static void test_publish_when_the_peer_always_says_that_it_sleeps_still_works(void) {
  rings open = open_rings(CAPACITY);
  uint8_t *room = NULL;
  for (int i = 0; i < 64; i++) {
    scribble32(&open, CONSUMER_SLEEPING, UINT32_MAX);
    CHECK_OK(eb_ring_reserve(&open.producer, 16, 0, &room));
    CHECK_OK(eb_ring_publish(&open.producer, 16));
  }
  close_rings(&open);
}

/* ---- messages that grow ---------------------------------------------------------------------- */

static void test_growing_message_when_told_in_steps_arrives_and_is_consumed_in_steps(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL, *again = NULL;
  uint8_t *room = NULL;
  size_t len = 0, n = 0;
  for (int round = 0; round < 30; round++) { /* also past the end of the data */
    CHECK_OK(eb_ring_reserve(&open.producer, 1000, 0, &room));
    CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_peek_growing(&open.consumer, 0, &message, &len, &n));
    memset(room, round, 300);
    CHECK_OK(eb_ring_grow(&open.producer, 0));
    CHECK_OK(eb_ring_peek_growing(&open.consumer, 0, &message, &len, &n));
    CHECK(message == room && len == 1000 && n < 64);
    CHECK_OK(eb_ring_grow(&open.producer, 300));
    CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_peek(&open.consumer, 0, &again, &len));
    CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_arrived(&open.consumer, 500, 0, &n));
    CHECK_OK(eb_ring_arrived(&open.consumer, 300, 0, &n));
    CHECK(n >= 300 && n < 364 && message[299] == round);
    CHECK_STATUS(EB_ERR_LENGTH, eb_ring_consume_some(&open.consumer, 500)); /* it has not arrived */
    CHECK_OK(eb_ring_consumed(&open.producer, 0, 0, &n));
    CHECK(n == 0);
    CHECK_OK(eb_ring_consume_some(&open.consumer, 200));
    CHECK_STATUS(EB_ERR_LENGTH, eb_ring_consume_some(&open.consumer, 100)); /* less than before */
    eb_ring_consume(&open.consumer);                                         /* not yet */
    CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_consumed(&open.producer, 300, 0, &n));
    CHECK(n >= 200 && n < 264);
    memset(room + 300, round, 700);
    CHECK_OK(eb_ring_grow(&open.producer, 1000));
    CHECK_OK(eb_ring_peek(&open.consumer, 0, &again, &len));
    CHECK(again == message && len == 1000 && message[999] == round);
    CHECK_OK(eb_ring_consume_some(&open.consumer, 1000));
    CHECK_OK(eb_ring_consumed(&open.producer, 1000, 0, &n));
    CHECK(n == 1000);
    eb_ring_consume(&open.consumer);
    CHECK_STATUS(EB_ERR_STATE, eb_ring_arrived(&open.consumer, 0, 0, &n));
    CHECK_STATUS(EB_ERR_STATE, eb_ring_consume_some(&open.consumer, 0));
    put(&open, "between", 7);
    take(&open, "between", 7);
  }
  close_rings(&open);
}

static void test_growing_message_when_used_out_of_order_is_refused(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  uint8_t *room = NULL;
  size_t len = 0, n = 0;
  CHECK_STATUS(EB_ERR_STATE, eb_ring_grow(&open.producer, 0));
  CHECK_OK(eb_ring_reserve(&open.producer, 500, 0, &room));
  CHECK_STATUS(EB_ERR_LENGTH, eb_ring_grow(&open.producer, 501));
  CHECK_OK(eb_ring_grow(&open.producer, 200));
  CHECK_STATUS(EB_ERR_LENGTH, eb_ring_grow(&open.producer, 100));
  CHECK_STATUS(EB_ERR_STATE, eb_ring_publish(&open.producer, 500));
  CHECK_STATUS(EB_ERR_STATE, eb_ring_reserve(&open.producer, 500, 0, &room));
  CHECK_STATUS(EB_ERR_STATE, eb_ring_consumed(&open.producer, 100, LATE, &n)); /* both would wait */
  CHECK_STATUS(EB_ERR_LENGTH, eb_ring_consumed(&open.producer, 501, 0, &n));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_consumed(&open.producer, 0, 0, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_consumed(&open.consumer, 0, 0, &n));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_grow(&open.consumer, 0));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_peek_growing(&open.producer, 0, &message, &len, &n));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_peek_growing(&open.consumer, 0, &message, &len, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_arrived(&open.producer, 0, 0, &n));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_consume_some(&open.producer, 0));
  CHECK_OK(eb_ring_peek_growing(&open.consumer, 0, &message, &len, &n));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_ring_arrived(&open.consumer, 0, 0, NULL));
  CHECK_STATUS(EB_ERR_LENGTH, eb_ring_arrived(&open.consumer, 501, 0, &n));
  CHECK_STATUS(EB_ERR_LENGTH, eb_ring_consume_some(&open.consumer, 501));
  eb_ring_close(&open.producer);
  CHECK_OK(eb_ring_arrived(&open.consumer, 200, LATE, &n)); /* what was told still comes */
  CHECK_STATUS(EB_ERR_RING_CLOSED, eb_ring_arrived(&open.consumer, 500, LATE, &n));
  close_rings(&open);
}

static void test_growing_message_when_the_peer_lies_about_it_stops_for_good(void) {
  const uint64_t bad[] = {GROWING << 32 | UINT32_MAX, GROWING << 32 | (CAPACITY / 2)};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    rings open = open_rings(CAPACITY);
    const uint8_t *message = NULL;
    size_t len = 0, n = 0;
    put(&open, "", 0);
    scribble64(&open, EB_RING_CONTROL, bad[i]);
    CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_peek_growing(&open.consumer, LATE, &message, &len, &n));
    close_rings(&open);
  }
  rings open = open_rings(CAPACITY); /* across the end of the data */
  const uint8_t *message = NULL;
  uint8_t *room = NULL;
  size_t len = 0, n = 0;
  for (int i = 0; i < 2; i++) {
    CHECK_OK(eb_ring_reserve(&open.producer, 3000, 0, &room));
    CHECK_OK(eb_ring_publish(&open.producer, 3000));
    CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
    eb_ring_consume(&open.consumer);
  }
  put(&open, "", 0);
  scribble64(&open, EB_RING_CONTROL + open.consumer.own, GROWING << 32 | 3000);
  CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_peek_growing(&open.consumer, LATE, &message, &len, &n));
  close_rings(&open);

  open = open_rings(CAPACITY); /* through with more than there is */
  CHECK_OK(eb_ring_reserve(&open.producer, 500, 0, &room));
  CHECK_OK(eb_ring_grow(&open.producer, 100));
  scribble64(&open, CONSUMER_POSITION, 192);
  CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_consumed(&open.producer, 0, 0, &n));
  CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_ring_grow(&open.producer, 200));
  close_rings(&open);
}

/* ---- two threads, two processes --------------------------------------------------------------- */

static size_t length_of(uint32_t i) { return 4 + (i * UINT32_C(2654435761) >> 20) % 3000; }

static void produce(eb_ring *ring, uint32_t messages) {
  for (uint32_t i = 0; i < messages; i++) {
    uint8_t *room = NULL;
    size_t len = length_of(i);
    CHECK_OK(eb_ring_reserve(ring, len + i % 50, LATE, &room));
    memcpy(room, &i, 4);
    memset(room + 4, (int)i, len - 4);
    CHECK_OK(eb_ring_publish(ring, len));
    if (i % 1000 == 0) sched_yield();
  }
  eb_ring_close(ring);
}

static void consume(eb_ring *ring, uint32_t messages) {
  const uint8_t *message = NULL;
  size_t len = 0;
  for (uint32_t i = 0; i < messages; i++) {
    uint32_t number = 0;
    CHECK_OK(eb_ring_peek(ring, LATE, &message, &len));
    CHECK(len == length_of(i));
    memcpy(&number, message, 4);
    CHECK(number == i && message[len - 1] == (len > 4 ? (uint8_t)i : (uint8_t)(i >> 24)));
    eb_ring_consume(ring);
    if (i % 1700 == 0) sched_yield();
  }
  CHECK_STATUS(EB_ERR_RING_CLOSED, eb_ring_peek(ring, LATE, &message, &len));
}

static void *consumer_thread(void *argument) {
  consume(argument, MESSAGES);
  return NULL;
}

static void exchange_between_threads(uint64_t spin_limit_ns) {
  rings open = open_rings(CAPACITY);
  pthread_t thread;
  open.producer.spin_limit_ns = open.consumer.spin_limit_ns = spin_limit_ns;
  CHECK(pthread_create(&thread, NULL, consumer_thread, &open.consumer) == 0);
  produce(&open.producer, MESSAGES);
  CHECK(pthread_join(thread, NULL) == 0);
  close_rings(&open);
}

static void test_threads_when_they_spin_exchange_every_message(void) { exchange_between_threads(50000); }

static void test_threads_when_they_only_sleep_exchange_every_message(void) { exchange_between_threads(0); }

/* Both ends work on one message: the consumer turns each unit over in its place. */
enum { UNIT = 130, UNITS = 30, GROWING_MESSAGES = 3000 };

static void *turn_over(void *argument) {
  eb_ring *ring = argument;
  for (uint32_t i = 0; i < GROWING_MESSAGES; i++) {
    const uint8_t *message = NULL;
    size_t len = 0, arrived = 0;
    CHECK_OK(eb_ring_peek_growing(ring, LATE, &message, &len, &arrived));
    for (size_t done = 0; done < len; done += UNIT) {
      CHECK_OK(eb_ring_arrived(ring, done + UNIT, LATE, &arrived));
      for (size_t at = done; at < done + UNIT; at++) {
        CHECK(message[at] == (uint8_t)(i + at));
        ((uint8_t *)(uintptr_t)message)[at] ^= 0xff;
      }
      if (done / UNIT % 4 == i % 4) CHECK_OK(eb_ring_consume_some(ring, done + UNIT));
    }
    eb_ring_consume(ring);
  }
  return NULL;
}

static void grow_between_threads(uint64_t spin_limit_ns) {
  rings open = open_rings(CAPACITY);
  pthread_t thread;
  open.producer.spin_limit_ns = open.consumer.spin_limit_ns = spin_limit_ns;
  open.producer.nap_ns = open.consumer.nap_ns = UINT64_C(60000000000); /* a lost wake-up is seen */
  CHECK(pthread_create(&thread, NULL, turn_over, &open.consumer) == 0);
  for (uint32_t i = 0; i < GROWING_MESSAGES; i++) {
    const size_t units = 1 + i * 7 % UNITS;
    uint8_t *room = NULL;
    size_t made = 0;
    if (i % 3 == 0) eb_ring_restart(&open.producer);
    CHECK_OK(eb_ring_reserve(&open.producer, units * UNIT, LATE, &room));
    for (size_t put = 0; put < units; put++) {
      for (size_t at = put * UNIT; at < (put + 1) * UNIT; at++) room[at] = (uint8_t)(i + at);
      CHECK_OK(eb_ring_grow(&open.producer, (put + 1) * UNIT));
    }
    for (size_t taken = 0; taken < units; taken++) {
      if (made < (taken + 1) * UNIT) CHECK_OK(eb_ring_consumed(&open.producer, (taken + 1) * UNIT, LATE, &made));
      CHECK(made >= (taken + 1) * UNIT && room[taken * UNIT] == (uint8_t)(0xff ^ (uint8_t)(i + taken * UNIT)));
    }
  }
  CHECK(pthread_join(thread, NULL) == 0);
  close_rings(&open);
}

static void test_threads_when_they_spin_work_on_one_message(void) { grow_between_threads(50000); }

static void test_threads_when_they_only_sleep_work_on_one_message(void) { grow_between_threads(0); }

static void test_processes_exchange_every_message(void) {
  rings open = open_rings(EB_RING_MIN_CAPACITY * 4);
  int ended = 0;
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    consume(&open.consumer, MESSAGES);
    _exit(0);
  }
  produce(&open.producer, MESSAGES);
  CHECK(waitpid(child, &ended, 0) == child && WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
  close_rings(&open);
}

static void test_producer_when_the_consumer_is_killed_ends_at_the_deadline(void) {
  rings open = open_rings(CAPACITY);
  uint8_t *room = NULL;
  int ended = 0;
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    const uint8_t *message = NULL;
    size_t len = 0;
    (void)!eb_ring_peek(&open.consumer, EB_RING_FOREVER, &message, &len);
    for (;;) pause();
  }
  put(&open, "x", 1);
  CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &ended, 0) == child);
  fill(&open, 100);
  CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_reserve(&open.producer, 100, SOON, &room));
  close_rings(&open);
}

static void *wait_for_message(void *argument) {
  const uint8_t *message = NULL;
  size_t len = 0;
  CHECK_STATUS(EB_ERR_RING_CLOSED, eb_ring_peek(argument, LATE, &message, &len));
  return NULL;
}

static void close_while_asleep(bool by_peer) {
  rings open = open_rings(CAPACITY);
  pthread_t thread;
  open.consumer.spin_limit_ns = 0;
  open.consumer.nap_ns = UINT64_C(60000000000); /* only a wake-up can end it in time */
  CHECK(pthread_create(&thread, NULL, wait_for_message, &open.consumer) == 0);
  while (__atomic_load_n((uint32_t *)(void *)(open.memory + CONSUMER_SLEEPING), __ATOMIC_SEQ_CST) == 0) sched_yield();
  eb_ring_close(by_peer ? &open.producer : &open.consumer);
  CHECK(pthread_join(thread, NULL) == 0);
  close_rings(&open);
}

static void test_close_by_the_peer_wakes_a_sleeper(void) { close_while_asleep(true); }

static void test_close_by_another_thread_wakes_a_sleeper(void) { close_while_asleep(false); }

static void *spin_on_empty(void *argument) {
  const uint8_t *message = NULL;
  size_t len = 0;
  CHECK_OK(eb_ring_peek(argument, LATE, &message, &len));
  return NULL;
}

static void test_message_when_the_consumer_sleeps_wakes_it(void) {
  rings open = open_rings(CAPACITY);
  pthread_t thread;
  open.consumer.spin_limit_ns = 0;
  open.consumer.nap_ns = UINT64_C(60000000000);
  CHECK(pthread_create(&thread, NULL, spin_on_empty, &open.consumer) == 0);
  while (__atomic_load_n((uint32_t *)(void *)(open.memory + CONSUMER_SLEEPING), __ATOMIC_SEQ_CST) == 0) sched_yield();
  put(&open, "wake", 4);
  CHECK(pthread_join(thread, NULL) == 0);
  close_rings(&open);
}

static void *put_every_millisecond(void *argument) {
  for (int i = 0; i < 20; i++) {
    usleep(1000);
    put(argument, "x", 1);
  }
  return NULL;
}

static void *reserve_room(void *argument) {
  uint8_t *room = NULL;
  CHECK_OK(eb_ring_reserve(argument, 100, LATE, &room));
  return NULL;
}

static bool asleep(const rings *open, size_t at) {
  return __atomic_load_n((uint32_t *)(void *)(open->memory + at), __ATOMIC_SEQ_CST) != 0;
}

static void test_producer_when_asleep_on_a_full_ring_is_woken_when_half_is_free(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  pthread_t thread;
  size_t len = 0, freed = 0;
  open.producer.spin_limit_ns = 0;
  open.producer.nap_ns = UINT64_C(60000000000);
  fill(&open, 100);
  CHECK(pthread_create(&thread, NULL, reserve_room, &open.producer) == 0);
  while (!asleep(&open, PRODUCER_SLEEPING)) sched_yield();
  while (freed + 128 < CAPACITY / 2) {
    CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
    eb_ring_consume(&open.consumer);
    freed += 128;
    CHECK(asleep(&open, PRODUCER_SLEEPING));
  }
  CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
  eb_ring_consume(&open.consumer);
  CHECK(pthread_join(thread, NULL) == 0);
  close_rings(&open);
}

static void test_producer_when_its_time_is_up_takes_what_room_there_is(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  uint8_t *room = NULL;
  size_t len = 0;
  open.producer.spin_limit_ns = 0;
  fill(&open, 100);
  CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_reserve(&open.producer, 100, SOON, &room));
  CHECK_OK(eb_ring_peek(&open.consumer, 0, &message, &len));
  eb_ring_consume(&open.consumer);
  CHECK_OK(eb_ring_reserve(&open.producer, 100, SOON, &room));
  close_rings(&open);
}

static void test_spin_when_waits_are_long_gets_shorter_and_recovers(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  pthread_t thread;
  size_t len = 0;
  open.consumer.spin_limit_ns = 1000000;
  for (int i = 0; i < 30; i++)
    CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_ring_peek(&open.consumer, eb_ring_now() + 2000000, &message, &len));
  CHECK(open.consumer.spin_ns == 0);
  open.consumer.spin_limit_ns = UINT64_C(20000000000); /* now the same wait is worth a spin, once it is tried */
  CHECK(pthread_create(&thread, NULL, put_every_millisecond, &open) == 0);
  for (int i = 0; i < 20; i++) {
    CHECK_OK(eb_ring_peek(&open.consumer, LATE, &message, &len));
    eb_ring_consume(&open.consumer);
  }
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(open.consumer.spin_ns == open.consumer.spin_limit_ns);
  close_rings(&open);
}

static void *put_to_a_sleeper(void *argument) {
  const rings *open = argument;
  while (!asleep(open, CONSUMER_SLEEPING)) sched_yield();
  put(argument, "x", 1);
  return NULL;
}

static void test_spin_when_a_sleep_was_short_is_whole_the_next_time(void) {
  rings open = open_rings(CAPACITY);
  const uint8_t *message = NULL;
  pthread_t thread;
  size_t len = 0;
  open.consumer.spin_limit_ns = UINT64_C(20000000000);
  open.consumer.spin_ns = 1; /* as after many long waits */
  open.consumer.waits = 1;   /* not the one in so many that is whole anyway */
  CHECK(pthread_create(&thread, NULL, put_to_a_sleeper, &open) == 0);
  CHECK_OK(eb_ring_peek(&open.consumer, LATE, &message, &len));
  CHECK(open.consumer.spin_ns == open.consumer.spin_limit_ns);
  CHECK(pthread_join(thread, NULL) == 0);
  close_rings(&open);
}

typedef struct {
  rings *open;
  cpu_set_t cpu;
  atomic_bool over;
} crowd;

static void *compute(void *argument) {
  crowd *some = argument;
  CHECK(sched_setaffinity(0, sizeof some->cpu, &some->cpu) == 0);
  while (!atomic_load(&some->over)) continue;
  return NULL;
}

static void *wait_among_others(void *argument) {
  crowd *some = argument;
  CHECK(sched_setaffinity(0, sizeof some->cpu, &some->cpu) == 0);
  return spin_on_empty(&some->open->consumer);
}

static void test_spin_when_another_thread_keeps_the_core_turns_into_sleep(void) {
  rings open = open_rings(CAPACITY);
  crowd some = {.open = &open};
  cpu_set_t all;
  pthread_t other, waiting;
  int first = 0;
  CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
  while (!CPU_ISSET(first, &all)) first++;
  CPU_ZERO(&some.cpu);
  CPU_SET(first, &some.cpu);
  atomic_init(&some.over, false);
  open.consumer.spin_limit_ns = open.consumer.nap_ns = UINT64_C(3600) * 1000000000;
  CHECK(pthread_create(&other, NULL, compute, &some) == 0);
  CHECK(pthread_create(&waiting, NULL, wait_among_others, &some) == 0);
  while (!asleep(&open, CONSUMER_SLEEPING)) usleep(1000);
  put(&open, "wake", 4);
  CHECK(pthread_join(waiting, NULL) == 0);
  CHECK(open.consumer.crowded_until != 0);
  atomic_store(&some.over, true);
  CHECK(pthread_join(other, NULL) == 0);
  close_rings(&open);
}

int main(void) {
  RUN(test_capacity_when_not_a_power_of_two_in_range_is_refused);
  RUN(test_attach_when_memory_is_not_a_ring_of_that_size_is_refused);
  RUN(test_message_when_published_arrives_whole_and_in_order);
  RUN(test_longest_message_when_the_ring_is_empty_fits_wherever_the_last_ended);
  RUN(test_restart_when_the_ring_is_empty_puts_the_next_message_at_the_start);
  RUN(test_restart_when_the_ring_is_not_empty_or_has_no_room_there_changes_nothing);
  RUN(test_publish_when_not_reserved_or_longer_publishes_nothing);
  RUN(test_call_when_of_the_other_end_is_refused);
  RUN(test_wait_when_nothing_comes_ends_at_the_deadline);
  RUN(test_close_by_the_producer_lets_the_consumer_drain);
  RUN(test_close_by_the_consumer_ends_the_producer);
  RUN(test_ends_when_the_ring_is_made_anew_are_closed_and_leave_it_alone);
  RUN(test_producer_when_the_consumers_index_is_impossible_stops_for_good);
  RUN(test_consumer_when_the_producers_index_is_impossible_stops_for_good);
  RUN(test_consumer_when_the_producers_index_goes_back_stops_for_good);
  RUN(test_consumer_when_a_header_is_impossible_stops_for_good);
  RUN(test_consumer_when_a_skip_leads_nowhere_stops_for_good);
  RUN(test_message_when_its_header_changes_after_the_look_keeps_its_length);
  RUN(test_close_when_the_peer_takes_it_back_still_ends_this_end);
  RUN(test_sleep_when_the_peer_never_wakes_ends_after_a_nap);
  RUN(test_publish_when_the_peer_always_says_that_it_sleeps_still_works);
  RUN(test_threads_when_they_spin_exchange_every_message);
  RUN(test_threads_when_they_only_sleep_exchange_every_message);
  RUN(test_growing_message_when_told_in_steps_arrives_and_is_consumed_in_steps);
  RUN(test_growing_message_when_used_out_of_order_is_refused);
  RUN(test_growing_message_when_the_peer_lies_about_it_stops_for_good);
  RUN(test_threads_when_they_spin_work_on_one_message);
  RUN(test_threads_when_they_only_sleep_work_on_one_message);
  RUN(test_processes_exchange_every_message);
  RUN(test_producer_when_the_consumer_is_killed_ends_at_the_deadline);
  RUN(test_close_by_the_peer_wakes_a_sleeper);
  RUN(test_close_by_another_thread_wakes_a_sleeper);
  RUN(test_message_when_the_consumer_sleeps_wakes_it);
  RUN(test_producer_when_asleep_on_a_full_ring_is_woken_when_half_is_free);
  RUN(test_producer_when_its_time_is_up_takes_what_room_there_is);
  RUN(test_spin_when_waits_are_long_gets_shorter_and_recovers);
  RUN(test_spin_when_a_sleep_was_short_is_whole_the_next_time);
  RUN(test_spin_when_another_thread_keeps_the_core_turns_into_sleep);
  return 0;
}
