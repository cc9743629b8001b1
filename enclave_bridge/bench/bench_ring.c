/*
 * The shared-memory channel between two processes, seal to verified write, acknowledged.
 *
 * pagegate-bench-ring ROUNDS MIB: the parent seals pages of a 64 MiB buffer into the ring; the child
 * opens them out of it into a 64 MiB buffer of its own and answers with a MACed receipt, which the
 * parent checks. Only public functions of the bridge are called. Prints one JSON object.
 *   latency     one page, then its receipt, then the next; from before the seal to after the check
 *   throughput  MIB mebibytes in messages of 1, 2, 4 ... 256 pages, a receipt every fourth message and after
 *               the last; from before the first seal to after the last check; each way
 * CPU load is user and system time of a process over elapsed time, so 1.0 is one core. Each process is kept
 * on a core of its own where there are two, and runs at real-time priority where it may, so that the rest of
 * the machine counts less.
 */
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "enclave_bridge.h"

enum { BUFFER_PAGES = 16384, RING = 4 << 20, REGION = 1, RECEIPT = 2, ACK_EVERY = 4, ALWAYS = 1, LATENCY_PAGES = 20000 };
static const uint8_t id[16] = "benchmark-of-it";

#define TRY(call)                                                                                        \
  do {                                                                                                   \
    const eb_status tried = (call);                                                                      \
    if (tried != EB_OK) {                                                                                \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, eb_status_text(tried));              \
      exit(1);                                                                                           \
    }                                                                                                    \
  } while (0)
#define NEED(condition)                                                          \
  do {                                                                           \
    if (!(condition)) {                                                          \
      fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                   \
    }                                                                            \
  } while (0)

/* One process: its role in the session, and its end of everything. */
typedef struct {
  eb_session *session;
  eb_transfer *sent, *received;
  eb_channel *channel;
  uint8_t *buffer;
  int peer; /* socket */
} side;

/* What the two do next. */
typedef struct {
  uint32_t pages, messages, ack_every;
  uint32_t child_sends;
} task;

typedef struct {
  double seconds, cpu_sender, cpu_receiver;
} measured;

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static uint64_t patience(void) { return now() + UINT64_C(30000000000); }

static double cpu_seconds(void) {
  struct rusage used;
  NEED(getrusage(RUSAGE_SELF, &used) == 0);
  return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
         (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void tell(int fd, const void *data, size_t len) { NEED(write(fd, data, len) == (ssize_t)len); }
static void hear(int fd, void *data, size_t len) { NEED(recv(fd, data, len, MSG_WAITALL) == (ssize_t)len); }

static eb_session *shake_hands(eb_bridge *bridge, eb_role role, int peer) {
  const eb_suite suite = EB_SUITE_P384_SHA384_AES256GCM;
  uint8_t own[EB_MAX_PUBLIC_KEY_SIZE], theirs[EB_MAX_PUBLIC_KEY_SIZE], mac[EB_MAX_MAC_SIZE];
  eb_handshake *handshake = NULL;
  eb_session *session = NULL;
  size_t len = 0;
  TRY(eb_handshake_new(bridge, role, &suite, 1, &handshake));
  TRY(eb_handshake_select(handshake, suite));
  TRY(eb_handshake_absorb(handshake, id, sizeof id));
  TRY(eb_handshake_public_key(handshake, suite, own, sizeof own, &len));
  tell(peer, own, len);
  hear(peer, theirs, len);
  TRY(eb_handshake_derive(handshake, theirs, len));
  TRY(eb_handshake_finished(handshake, mac, sizeof mac, &len));
  tell(peer, mac, len);
  hear(peer, mac, len);
  TRY(eb_handshake_check_finished(handshake, mac, len));
  TRY(eb_handshake_session(handshake, id, &session));
  eb_handshake_free(handshake);
  return session;
}

static side open_side(eb_role role, int peer, int ring) {
  const eb_window window = {REGION, 0, BUFFER_PAGES};
  const size_t size = (size_t)BUFFER_PAGES * EB_PAGE_SIZE;
  side made = {.peer = peer};
  eb_bridge *bridge = NULL;
  TRY(eb_bridge_open(NULL, &bridge));
  made.session = shake_hands(bridge, role, peer);
  TRY(eb_transfer_new(bridge, id, &window, &made.sent));
  TRY(eb_transfer_new(bridge, id, &window, &made.received));
  made.buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  NEED(made.buffer != MAP_FAILED);
  for (size_t i = 0; i < size; i += 64) made.buffer[i] = (uint8_t)(i >> 6);
  TRY(eb_transfer_set_target_memory(made.received, made.buffer, size));
  TRY(eb_channel_attach(NULL, role, ring, RING, EB_CHANNEL_SEALED, &made.channel));
  eb_bridge_free(bridge);
  return made;
}

/* Without either: more noise, no wrong figure. */
static bool keep_on(unsigned cpu) {
  const struct sched_param priority = {.sched_priority = 1};
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(cpu, &cpus);
  return sched_setaffinity(0, sizeof cpus, &cpus) == 0 && sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
}

/* ---- sender and receiver --------------------------------------------------------------------- */

static size_t receipt_of(uint64_t number, uint8_t out[32]) {
  memcpy(out, "ack", 4);
  memcpy(out + 4, id, sizeof id);
  memcpy(out + 4 + sizeof id, &number, 8);
  return 4 + sizeof id + 8;
}

static void check_receipt(side *me, uint64_t deadline, uint64_t *acknowledged) {
  eb_channel_message message;
  uint8_t receipt[32], mac[EB_MAX_MAC_SIZE];
  size_t len = 0;
  const eb_status status = eb_channel_next(me->channel, deadline, &message);
  if (status == EB_ERR_RING_TIMEOUT && deadline == 0) return;
  TRY(status);
  NEED(message.kind == RECEIPT);
  TRY(eb_channel_take(me->channel, mac, sizeof mac, &len));
  TRY(eb_session_check_mac(me->session, EB_MAC_RECEIPT, receipt, receipt_of(message.number, receipt), mac, len));
  *acknowledged = message.number;
}

static void seal(side *me, const task *job, uint64_t number) {
  const uint64_t first = number * job->pages % BUFFER_PAGES;
  TRY(eb_channel_seal(me->channel, me->session, me->sent, REGION, first * EB_PAGE_SIZE,
                      me->buffer + first * EB_PAGE_SIZE, (size_t)job->pages * EB_PAGE_SIZE, number, patience(), NULL));
}

/* `each` NULL, or room for the nanoseconds of every message. */
static void send_all(side *me, const task *job, uint64_t *each) {
  uint64_t acknowledged = 0;
  for (uint64_t i = 0; i < job->messages; i++) {
    const uint64_t started = now();
    seal(me, job, i);
    if (job->ack_every == ALWAYS)
      check_receipt(me, patience(), &acknowledged);
    else
      check_receipt(me, 0, &acknowledged);
    if (each != NULL) each[i] = now() - started;
  }
  while (acknowledged < job->messages) check_receipt(me, patience(), &acknowledged);
}

static void receive_all(side *me, const task *job) {
  for (uint64_t i = 1; i <= job->messages; i++) {
    eb_channel_message message;
    eb_result result;
    TRY(eb_channel_next(me->channel, patience(), &message));
    TRY(eb_channel_open(me->channel, me->session, me->received, &result));
    NEED(result.pages == job->pages);
    if (i % job->ack_every == 0 || i == job->messages) {
      uint8_t receipt[32], mac[EB_MAX_MAC_SIZE];
      size_t len = 0;
      TRY(eb_session_mac(me->session, EB_MAC_RECEIPT, receipt, receipt_of(i, receipt), mac, sizeof mac, &len));
      TRY(eb_channel_put(me->channel, RECEIPT, i, mac, len, patience()));
    }
  }
}

/* The child, until the parent is gone. */
static void obey(side *me) {
  task job;
  while (recv(me->peer, &job, sizeof job, MSG_WAITALL) == sizeof job) {
    double used = cpu_seconds();
    tell(me->peer, "g", 1);
    if (job.child_sends)
      send_all(me, &job, NULL);
    else
      receive_all(me, &job);
    used = cpu_seconds() - used;
    tell(me->peer, &used, sizeof used);
  }
}

static measured run(side *me, task job, uint64_t *each) {
  char go;
  tell(me->peer, &job, sizeof job);
  hear(me->peer, &go, 1);
  const double before = cpu_seconds();
  const uint64_t started = now();
  if (job.child_sends)
    receive_all(me, &job);
  else
    send_all(me, &job, each);
  const double seconds = (double)(now() - started) / 1e9, own = cpu_seconds() - before;
  double others = 0;
  hear(me->peer, &others, sizeof others);
  if (job.child_sends) return (measured){seconds, others / seconds, own / seconds};
  return (measured){seconds, own / seconds, others / seconds};
}

/* ---- report ------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b) {
  const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static void print_latency(side *me) {
  static uint64_t each[LATENCY_PAGES];
  const task job = {.pages = 1, .messages = LATENCY_PAGES, .ack_every = ALWAYS};
  const measured took = run(me, job, each);
  qsort(each, LATENCY_PAGES, sizeof *each, by_value);
  printf("{\"median_ns\": %llu, \"p25_ns\": %llu, \"p75_ns\": %llu, \"p99_ns\": %llu, \"p999_ns\": %llu, "
         "\"cpu_sender\": %.3f, \"cpu_receiver\": %.3f}",
         (unsigned long long)each[LATENCY_PAGES / 2], (unsigned long long)each[LATENCY_PAGES / 4],
         (unsigned long long)each[LATENCY_PAGES / 4 * 3], (unsigned long long)each[LATENCY_PAGES / 100 * 99],
         (unsigned long long)each[LATENCY_PAGES / 1000 * 999], took.cpu_sender, took.cpu_receiver);
}

static void print_throughput(side *me, uint32_t pages, uint32_t mib, bool reverse) {
  const task job = {pages, mib * 256 / pages, ACK_EVERY, reverse};
  const measured took = run(me, job, NULL);
  const double bits = (double)job.messages * pages * EB_PAGE_SIZE * 8;
  printf("{\"pages\": %u, \"reverse\": %s, \"gbps\": %.3f, \"cpu_sender\": %.3f, \"cpu_receiver\": %.3f}", pages,
         reverse ? "true" : "false", bits / 1e9 / took.seconds, took.cpu_sender, took.cpu_receiver);
}

int main(int argc, char **argv) {
  const int rounds = argc == 3 ? atoi(argv[1]) : 0, mib = argc == 3 ? atoi(argv[2]) : 0;
  int ends[2], ring = -1;
  if (rounds < 1 || mib < 1 || mib > 65536) {
    fprintf(stderr, "usage: pagegate-bench-ring ROUNDS MIB\n");
    return 64;
  }
  TRY(eb_channel_create(RING, &ring));
  NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  const pid_t child = fork();
  NEED(child >= 0);
  if (child == 0) {
    close(ends[0]);
    side me = open_side(EB_ROLE_SERVER, ends[1], ring);
    keep_on(1);
    obey(&me);
    _exit(0);
  }
  close(ends[1]);
  side me = open_side(EB_ROLE_CLIENT, ends[0], ring);
  const bool realtime = keep_on(0);
  printf("{\"realtime\": %s, \"latency\": [", realtime ? "true" : "false");
  for (int round = 0; round < rounds; round++) {
    if (round == 0) run(&me, (task){1, LATENCY_PAGES, ALWAYS, 0}, NULL); /* warm */
    if (round > 0) printf(", ");
    print_latency(&me);
  }
  printf("], \"throughput\": [");
  for (int round = 0; round < rounds; round++)
    for (uint32_t pages = 1; pages <= 256; pages *= 2)
      for (int reverse = 0; reverse < 2; reverse++) {
        if (round > 0 || pages > 1 || reverse > 0) printf(", ");
        print_throughput(&me, pages, (uint32_t)mib, reverse);
      }
  printf("]}\n");
  close(ends[0]);
  int ended = 0;
  NEED(waitpid(child, &ended, 0) == child && ended == 0);
  return 0;
}
