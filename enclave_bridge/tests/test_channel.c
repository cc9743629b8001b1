/* Sealed pages through shared memory: between the two ends of a pair, and against a peer that scribbles. */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pair.h"
#include "ring.h"

#define CAPACITY ((size_t)1 << 19)
#define LATE (eb_ring_now() + UINT64_C(60000000000))
#define SOON (eb_ring_now() + UINT64_C(5000000))
#define CONTROL 2u

typedef struct {
  eb_pair *pair;
  eb_channel *client, *server;
  uint8_t *memory; /* as a hostile process sees it */
  int fd;
} ends;

static ends open_ends(void) {
  ends made = {.pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL)};
  CHECK_OK(eb_channel_create(CAPACITY, &made.fd));
  CHECK_OK(eb_channel_attach(NULL, EB_ROLE_CLIENT, made.fd, CAPACITY, EB_CHANNEL_SEALED, &made.client));
  CHECK_OK(eb_channel_attach(NULL, EB_ROLE_SERVER, made.fd, CAPACITY, EB_CHANNEL_SEALED, &made.server));
  made.memory = mmap(NULL, eb_channel_bytes(CAPACITY), PROT_READ | PROT_WRITE, MAP_SHARED, made.fd, 0);
  CHECK(made.memory != MAP_FAILED);
  return made;
}

static void close_ends(ends *open) {
  munmap(open->memory, eb_channel_bytes(CAPACITY));
  close(open->fd);
  pair_free(open->pair);
  eb_channel_free(open->client);
  eb_channel_free(open->server);
}

static eb_status send_pages(ends *open, size_t first, size_t n, uint64_t number, uint64_t deadline) {
  return eb_channel_seal(open->client, open->pair->client, open->pair->sent, REGION, BASE_GPA + first * EB_PAGE_SIZE,
                         open->pair->plain + first * EB_PAGE_SIZE, n * EB_PAGE_SIZE, number, deadline, NULL);
}

static eb_status receive_pages(ends *open, eb_result *result) {
  eb_channel_message message;
  CHECK_OK(eb_channel_next(open->server, LATE, &message));
  CHECK(message.kind == EB_CHANNEL_RECORDS);
  return eb_channel_open(open->server, open->pair->server, open->pair->received, result);
}

static void test_pages_when_sealed_into_the_ring_are_opened_out_of_it(void) {
  ends open = open_ends();
  eb_channel_message message;
  eb_result result;
  uint8_t mac[EB_MAX_MAC_SIZE];
  size_t len = 0;
  for (size_t first = 0; first < WINDOW_PAGES; first += 16) {
    CHECK_OK(send_pages(&open, first, 16, first / 16, 0));
    CHECK_OK(eb_channel_next(open.server, LATE, &message));
    CHECK(message.kind == EB_CHANNEL_RECORDS && message.number == first / 16 && message.len == 16 * EB_RECORD_SIZE);
    CHECK_OK(eb_channel_next(open.server, LATE, &message)); /* the same until it is opened */
    CHECK(message.number == first / 16);
    CHECK_OK(eb_channel_open(open.server, open.pair->server, open.pair->received, &result));
    CHECK(result.pages == 16);
  }
  for (size_t i = 0; i < WINDOW_PAGES; i++) CHECK(pair_arrived(open.pair, i));
  CHECK_OK(eb_transfer_commit_mac(open.pair->client, open.pair->sent, mac, sizeof mac, &len));
  CHECK_OK(eb_channel_put(open.client, CONTROL, 9, mac, len, 0));
  CHECK_OK(eb_channel_next(open.server, 0, &message));
  CHECK(message.kind == CONTROL && message.number == 9 && message.len == len);
  memset(mac, 0, sizeof mac);
  CHECK_STATUS(EB_ERR_BUFFER, eb_channel_take(open.server, mac, len - 1, &len));
  CHECK_OK(eb_channel_take(open.server, mac, sizeof mac, &len));
  CHECK_OK(eb_transfer_check_commit_mac(open.pair->server, open.pair->received, mac, len));
  close_ends(&open);
}

static void test_message_when_empty_arrives_both_ways(void) {
  ends open = open_ends();
  eb_channel_message message;
  size_t len = 1;
  CHECK_OK(eb_channel_put(open.client, CONTROL, UINT64_MAX, NULL, 0, 0));
  CHECK_OK(eb_channel_next(open.server, 0, &message));
  CHECK(message.len == 0 && message.number == UINT64_MAX);
  CHECK_OK(eb_channel_take(open.server, NULL, 0, &len));
  CHECK(len == 0);
  CHECK_OK(eb_channel_put(open.server, UINT32_MAX, 0, (const uint8_t *)"x", 1, 0));
  CHECK_OK(eb_channel_next(open.client, 0, &message));
  CHECK(message.kind == UINT32_MAX && message.len == 1);
  close_ends(&open);
}

static void test_record_when_changed_in_the_ring_is_tampered_and_reaches_nothing(void) {
  ends open = open_ends();
  eb_result result;
  CHECK_OK(send_pages(&open, 0, 4, 0, 0));
  /* the third page's ciphertext, in the client's ring */
  open.memory[EB_RING_CONTROL + EB_RING_HEADER + 2 * EB_RECORD_SIZE + EB_RECORD_HEADER_SIZE + 100] ^= 1;
  CHECK_STATUS(EB_ERR_TAMPERED, receive_pages(&open, &result));
  CHECK(result.pages == 2 && result.bad_index == 2);
  CHECK(pair_arrived(open.pair, 0) && pair_arrived(open.pair, 1));
  CHECK(pair_untouched(open.pair, 2) && pair_untouched(open.pair, 3));
  CHECK_STATUS(EB_ERR_STATE, eb_channel_open(open.server, open.pair->server, open.pair->received, &result));
  CHECK_OK(send_pages(&open, 2, 2, 1, 0)); /* the ring itself is as good as before */
  CHECK_OK(receive_pages(&open, &result));
  close_ends(&open);
}

static void test_length_when_changed_in_the_ring_is_corrupt(void) {
  ends open = open_ends();
  eb_channel_message message;
  const uint32_t shorter = 5; /* too short for a trailer */
  CHECK_OK(send_pages(&open, 0, 4, 0, 0));
  memcpy(open.memory + EB_RING_CONTROL, &shorter, sizeof shorter);
  CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_channel_next(open.server, LATE, &message));
  CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_channel_next(open.server, LATE, &message));
  CHECK_STATUS(EB_ERR_RING_CLOSED, send_pages(&open, 0, 4, 0, 0));
  close_ends(&open);
}

static void test_call_when_its_message_is_of_the_other_kind_is_refused(void) {
  ends open = open_ends();
  eb_channel_message message;
  eb_result result;
  uint8_t out[8];
  size_t len = 0;
  CHECK_STATUS(EB_ERR_STATE, eb_channel_take(open.server, out, sizeof out, &len));
  CHECK_OK(eb_channel_put(open.client, CONTROL, 0, (const uint8_t *)"x", 1, 0));
  CHECK_OK(eb_channel_next(open.server, 0, &message));
  CHECK_STATUS(EB_ERR_STATE, eb_channel_open(open.server, open.pair->server, open.pair->received, &result));
  CHECK_OK(eb_channel_take(open.server, out, sizeof out, &len));
  close_ends(&open);
}

static void test_records_when_sealed_before_may_be_put_and_taken(void) {
  ends open = open_ends();
  eb_channel_message message;
  eb_result result;
  uint8_t records[2 * EB_RECORD_SIZE];
  size_t len = 0;
  pair_seal(open.pair, 3, 2);
  for (int i = 0; i < 2; i++)
    CHECK_OK(eb_channel_put(open.client, EB_CHANNEL_RECORDS, 5, open.pair->records, open.pair->records_len, 0));
  CHECK_OK(receive_pages(&open, &result));
  CHECK(result.pages == 2 && pair_arrived(open.pair, 3) && pair_arrived(open.pair, 4));
  CHECK_OK(eb_channel_next(open.server, 0, &message));
  CHECK(message.kind == EB_CHANNEL_RECORDS && message.number == 5);
  CHECK_OK(eb_channel_take(open.server, records, sizeof records, &len));
  CHECK_STATUS(EB_ERR_REPLAYED, eb_pages_open(open.pair->server, open.pair->received, records, len, &result));
  close_ends(&open);
}

static void test_arguments_when_wrong_are_refused(void) {
  ends open = open_ends();
  eb_channel *channel = NULL;
  eb_result result;
  size_t len = 0;
  static uint8_t big[CAPACITY];
  CHECK(eb_channel_bytes(1000) == 0 && eb_channel_max_message(1000) == 0);
  CHECK(eb_channel_bytes(EB_CHANNEL_MIN_CAPACITY) == 2 * eb_ring_bytes(EB_RING_MIN_CAPACITY));
  CHECK(EB_CHANNEL_MAX_CAPACITY == EB_RING_MAX_CAPACITY);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_channel_create(CAPACITY, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_channel_create(CAPACITY + 1, &open.fd));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_channel_format(open.fd, 1));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_channel_attach(NULL, EB_ROLE_CLIENT, open.fd, CAPACITY, EB_CHANNEL_SEALED, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_channel_attach(NULL, (eb_role)0, open.fd, CAPACITY, EB_CHANNEL_SEALED, &channel));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_channel_attach(NULL, EB_ROLE_CLIENT, open.fd, 1, EB_CHANNEL_SEALED, &channel));
  CHECK_STATUS(EB_ERR_ARGUMENT,
               eb_channel_attach(NULL, EB_ROLE_CLIENT, open.fd, CAPACITY, (eb_channel_memory)3, &channel));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_channel_close(NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_channel_next(open.client, 0, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_channel_open(open.client, open.pair->client, open.pair->sent, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_channel_take(open.client, NULL, 1, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_channel_put(open.client, CONTROL, 0, NULL, 1, 0));
  CHECK_STATUS(EB_ERR_LENGTH, eb_channel_put(open.client, CONTROL, 0, big, eb_channel_max_message(CAPACITY) + 1, 0));
  CHECK_STATUS(EB_ERR_LENGTH, eb_channel_seal(open.client, open.pair->client, NULL, REGION, 0, big, CAPACITY, 0, 0, &result));
  CHECK_STATUS(EB_ERR_LENGTH, eb_channel_seal(open.client, open.pair->client, NULL, REGION, 0, big, SIZE_MAX, 0, 0, &result));
  CHECK_STATUS(EB_ERR_LENGTH, eb_channel_seal(open.client, open.pair->client, NULL, REGION, 0, big, 100, 0, 0, &result));
  CHECK_OK(eb_channel_put(open.client, CONTROL, 0, big, eb_channel_max_message(CAPACITY), 0));
  eb_channel_free(NULL);
  close_ends(&open);
}

static void test_memory_when_a_peer_could_cut_it_is_refused(void) {
  ends open = open_ends();
  eb_channel *channel = NULL;
  int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  CHECK(unsealed >= 0);
  CHECK_STATUS(EB_ERR_RING_MEMORY, eb_channel_format(unsealed, CAPACITY)); /* too short */
  CHECK(ftruncate(unsealed, (off_t)eb_channel_bytes(CAPACITY)) == 0);
  CHECK_OK(eb_channel_format(unsealed, CAPACITY));
  CHECK_STATUS(EB_ERR_RING_MEMORY,
               eb_channel_attach(NULL, EB_ROLE_CLIENT, unsealed, CAPACITY, EB_CHANNEL_SEALED, &channel));
  CHECK(ftruncate(unsealed, 4096) == 0 && fcntl(unsealed, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
  CHECK_STATUS(EB_ERR_RING_MEMORY,
               eb_channel_attach(NULL, EB_ROLE_CLIENT, unsealed, CAPACITY, EB_CHANNEL_SEALED, &channel));
  CHECK_STATUS(EB_ERR_RING_MEMORY,
               eb_channel_attach(NULL, EB_ROLE_CLIENT, -1, CAPACITY, EB_CHANNEL_SEALED, &channel));
  CHECK(ftruncate(open.fd, 4096) != 0); /* one of ours cannot be cut */
  int readable = openat(AT_FDCWD, "/proc/self/exe", O_RDONLY | O_CLOEXEC);
  CHECK_STATUS(EB_ERR_RING_MEMORY,
               eb_channel_attach(NULL, EB_ROLE_CLIENT, readable, EB_CHANNEL_MIN_CAPACITY, EB_CHANNEL_NAMED, &channel));
  CHECK_STATUS(EB_ERR_RING_MEMORY, eb_channel_format(readable, EB_CHANNEL_MIN_CAPACITY));
  CHECK_STATUS(EB_ERR_RING_CORRUPT,
               eb_channel_attach(NULL, EB_ROLE_CLIENT, open.fd, CAPACITY / 2, EB_CHANNEL_SEALED, &channel));
  close(readable);
  close(unsealed);
  close_ends(&open);
}

static void test_named_file_when_formatted_carries_pages(void) {
  char path[] = "/tmp/eb-channel-XXXXXX"; /* stands for an ivshmem BAR */
  ends open = {.pair = pair_new(EB_SUITE_P256_SHA256_AES128GCM, NULL), .fd = mkstemp(path)};
  eb_result result;
  CHECK(open.fd >= 0 && unlink(path) == 0);
  CHECK(ftruncate(open.fd, (off_t)eb_channel_bytes(CAPACITY) + 4096) == 0);
  CHECK_OK(eb_channel_format(open.fd, CAPACITY));
  CHECK_OK(eb_channel_attach(NULL, EB_ROLE_CLIENT, open.fd, CAPACITY, EB_CHANNEL_NAMED, &open.client));
  CHECK_OK(eb_channel_attach(NULL, EB_ROLE_SERVER, open.fd, CAPACITY, EB_CHANNEL_NAMED, &open.server));
  CHECK_OK(send_pages(&open, 0, 8, 0, 0));
  CHECK_OK(receive_pages(&open, &result));
  CHECK(result.pages == 8 && pair_arrived(open.pair, 7));
  open.memory = mmap(NULL, eb_channel_bytes(CAPACITY), PROT_READ, MAP_SHARED, open.fd, 0);
  close_ends(&open);
}

static void test_seal_when_it_fails_sends_nothing(void) {
  ends open = open_ends();
  eb_channel_message message;
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, send_pages(&open, WINDOW_PAGES - 1, 2, 0, 0));
  CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_channel_next(open.server, 0, &message));
  CHECK_OK(eb_session_close(open.pair->client));
  CHECK_STATUS(EB_ERR_SESSION_CLOSED, send_pages(&open, 0, 1, 0, 0));
  CHECK_STATUS(EB_ERR_RING_TIMEOUT, eb_channel_next(open.server, 0, &message));
  close_ends(&open);
}

static void test_peer_that_stops_reading_ends_the_sender_at_its_deadline(void) {
  ends open = open_ends();
  eb_status status = EB_OK;
  while ((status = send_pages(&open, 0, 16, 0, SOON)) == EB_OK) {}
  CHECK(status == EB_ERR_RING_TIMEOUT);
  close_ends(&open);
}

static void *wait_for_message(void *argument) {
  eb_channel_message message;
  CHECK_STATUS(EB_ERR_RING_CLOSED, eb_channel_next(argument, LATE, &message));
  return NULL;
}

static void test_close_when_a_thread_waits_ends_it(void) {
  ends open = open_ends();
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, wait_for_message, open.server) == 0);
  CHECK_OK(eb_channel_close(open.client));
  CHECK_OK(eb_channel_close(open.client));
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK_STATUS(EB_ERR_RING_CLOSED, send_pages(&open, 0, 1, 0, LATE));
  close_ends(&open);
}

static void test_child_after_fork_may_not_use_the_channel(void) {
  ends open = open_ends();
  int ended = 0;
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    eb_channel_message message;
    CHECK_STATUS(EB_ERR_FORKED, eb_channel_next(open.server, 0, &message));
    CHECK_STATUS(EB_ERR_FORKED, eb_channel_put(open.client, CONTROL, 0, NULL, 0, 0));
    CHECK_STATUS(EB_ERR_FORKED, eb_channel_close(open.client));
    eb_channel_free(open.client);
    _exit(0);
  }
  CHECK(waitpid(child, &ended, 0) == child && WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
  CHECK_OK(eb_channel_put(open.client, CONTROL, 0, NULL, 0, 0)); /* the child closed nothing */
  close_ends(&open);
}

/* ---- a peer that scribbles while this side opens, in another process ---------------------------- */

static void scribble(uint8_t *memory, unsigned seed) {
  const size_t bytes = eb_channel_bytes(CAPACITY) / 2;
  const size_t hot[] = {128, 384, 256, 512, EB_RING_CONTROL, EB_RING_CONTROL + 64};
  for (;;) {
    seed = seed * 1103515245u + 12345u;
    size_t at = seed >> 8 & 1 ? (seed >> 9) % bytes : hot[(seed >> 9) % 6];
    *(volatile uint8_t *)(memory + at) ^= (uint8_t)(1u << (seed & 7));
    if ((seed >> 20) % 64 == 0) usleep(20);
  }
}

static void test_peer_that_scribbles_while_this_side_opens_harms_only_itself(void) {
  for (unsigned round = 0; round < 20; round++) {
    ends open = open_ends();
    int ended = 0;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) scribble(open.memory, round);
    eb_status status = EB_OK;
    for (unsigned i = 0; i < 200 && status == EB_OK; i++) {
      eb_channel_message message;
      eb_result result;
      status = send_pages(&open, i % 4 * 16, 16, i, SOON);
      if (status == EB_OK) status = eb_channel_next(open.server, SOON, &message);
      if (status == EB_OK) status = eb_channel_open(open.server, open.pair->server, open.pair->received, &result);
      /* a page that was damaged is refused; the next batch may be whole */
      if (status == EB_ERR_TAMPERED || status == EB_ERR_REPLAYED || status == EB_ERR_STATE) status = EB_OK;
    }
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &ended, 0) == child);
    for (size_t i = 0; i < WINDOW_PAGES; i++) CHECK(pair_arrived(open.pair, i) || pair_untouched(open.pair, i));
    close_ends(&open);
  }
}

int main(void) {
  RUN(test_pages_when_sealed_into_the_ring_are_opened_out_of_it);
  RUN(test_message_when_empty_arrives_both_ways);
  RUN(test_record_when_changed_in_the_ring_is_tampered_and_reaches_nothing);
  RUN(test_length_when_changed_in_the_ring_is_corrupt);
  RUN(test_call_when_its_message_is_of_the_other_kind_is_refused);
  RUN(test_records_when_sealed_before_may_be_put_and_taken);
  RUN(test_arguments_when_wrong_are_refused);
  RUN(test_memory_when_a_peer_could_cut_it_is_refused);
  RUN(test_named_file_when_formatted_carries_pages);
  RUN(test_seal_when_it_fails_sends_nothing);
  RUN(test_peer_that_stops_reading_ends_the_sender_at_its_deadline);
  RUN(test_close_when_a_thread_waits_ends_it);
  RUN(test_child_after_fork_may_not_use_the_channel);
  RUN(test_peer_that_scribbles_while_this_side_opens_harms_only_itself);
  return 0;
}
