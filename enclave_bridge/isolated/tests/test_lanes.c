/* Caller and bridge in one process, over real lanes, with several threads at both ends. */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "client.h"
#include "serve.h"

enum { THREADS = 6, ROUNDS = 30, WINDOW_PAGES = 600 };
#define REGION 7u
#define BASE_GPA UINT64_C(0x100000)

typedef struct {
  eb_server server;
  eb_bridge *bridge;
  eb_session *client, *peer;
} loop;

static void loop_open(loop *made, uint32_t lanes) {
  const eb_setup setup = {.version = EB_WIRE_VERSION, .lanes = lanes, .max_sessions = 4, .max_handshakes = 4};
  int ends[2];
  memset(made, 0, sizeof *made);
  CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
  CHECK_OK(eb_server_open(&made->server, &setup, ends[1]));
  CHECK_OK(eb_server_start(&made->server));
  CHECK_OK(eb_client_new(&made->bridge));
  made->bridge->socket = ends[0];
  CHECK_OK(eb_client_attach(made->bridge, made->server.area_fd, lanes));
}

/* Both ends of a session in one bridge. */
static void loop_shake_hands(loop *made) {
  static const uint8_t id[EB_SESSION_ID_SIZE] = "session-0123456";
  const eb_suite suite = EB_SUITE_P256_SHA256_AES128GCM;
  eb_handshake *ends[2];
  uint8_t keys[2][EB_MAX_PUBLIC_KEY_SIZE], binding[EB_BINDING_SIZE], mac[EB_MAX_MAC_SIZE];
  size_t lens[2], len = 0;
  for (int i = 0; i < 2; i++) {
    CHECK_OK(eb_handshake_new(made->bridge, i == 0 ? EB_ROLE_CLIENT : EB_ROLE_SERVER, &suite, 1, &ends[i]));
    CHECK_OK(eb_handshake_absorb(ends[i], (const uint8_t *)"hello", 5));
    CHECK_OK(eb_handshake_select(ends[i], suite));
    CHECK_STATUS(EB_ERR_BUFFER, eb_handshake_public_key(ends[i], suite, keys[i], 5, &lens[i]));
    CHECK_OK(eb_handshake_public_key(ends[i], suite, keys[i], sizeof keys[i], &lens[i]));
    CHECK_OK(eb_handshake_binding(ends[i], EB_ROLE_CLIENT, binding));
  }
  for (int i = 0; i < 2; i++) CHECK_OK(eb_handshake_derive(ends[i], keys[1 - i], lens[1 - i]));
  for (int i = 0; i < 2; i++) {
    CHECK_STATUS(EB_ERR_BUFFER, eb_handshake_finished(ends[i], mac, 3, &len));
    CHECK_OK(eb_handshake_finished(ends[i], mac, sizeof mac, &len));
    CHECK_OK(eb_handshake_check_finished(ends[1 - i], mac, len));
  }
  CHECK_OK(eb_handshake_session(ends[0], id, &made->client));
  CHECK_OK(eb_handshake_session(ends[1], id, &made->peer));
  for (int i = 0; i < 2; i++) eb_handshake_free(ends[i]);
}

static void loop_close(loop *made) {
  const int socket = made->server.socket;
  eb_session_free(made->client);
  eb_session_free(made->peer);
  eb_bridge_free(made->bridge);
  eb_server_close(&made->server);
  close(socket);
}

static eb_transfer *account(loop *from, uint64_t pages) {
  static const uint8_t id[EB_TRANSFER_ID_SIZE] = "transfer-012345";
  const eb_window window = {REGION, BASE_GPA, pages};
  eb_transfer *made = NULL;
  CHECK_OK(eb_transfer_new(from->bridge, id, &window, &made));
  return made;
}

static uint8_t *filled(size_t len, unsigned seed) {
  uint8_t *made = malloc(len);
  CHECK(made != NULL);
  for (size_t i = 0; i < len; i++) made[i] = (uint8_t)(i * 13 + i / EB_PAGE_SIZE + seed);
  return made;
}

static void test_bridge_when_asked_from_here_answers_from_there(void) {
  enum { LEN = 3 * EB_PART_BYTES + 5 };
  static uint8_t made[LEN], again[LEN], much[EB_MAX_MESSAGE_SIZE + 1];
  loop both;
  eb_bridge_info info;
  loop_open(&both, 1);
  loop_shake_hands(&both);
  CHECK_OK(eb_bridge_get_info(both.bridge, &info));
  CHECK(info.sessions_live == 2 && info.handshakes_live == 0 && info.hardening == 0);
  CHECK_OK(eb_random(both.bridge, made, LEN));
  CHECK_OK(eb_random(both.bridge, again, LEN));
  for (size_t at = 0; at + 16 <= LEN; at += 16) CHECK(memcmp(made + at, again + at, 16) != 0);
  CHECK_OK(eb_random(both.bridge, NULL, 0));
  CHECK_STATUS(EB_ERR_LENGTH, eb_random(both.bridge, much, sizeof much));
  loop_close(&both);
}

static void test_pages_when_they_cross_both_ways_arrive(void) {
  loop both;
  uint8_t mac[EB_MAX_MAC_SIZE];
  size_t len = 0, mac_len = 0;
  eb_result sealed, opened;
  loop_open(&both, 2);
  loop_shake_hands(&both);
  const size_t counts[] = {1, 4, 5, 63, 600};
  for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
    const size_t n = counts[i];
    eb_transfer *sent = account(&both, n), *received = account(&both, n);
    uint8_t *plain = filled(n * EB_PAGE_SIZE, 1), *target = calloc(n, EB_PAGE_SIZE), *records = malloc(n * EB_RECORD_SIZE);
    uint64_t pages = 0;
    CHECK(target != NULL && records != NULL);
    CHECK_OK(eb_transfer_set_target_memory(received, target, n * EB_PAGE_SIZE));
    CHECK_OK(eb_pages_seal(both.client, sent, REGION, BASE_GPA, plain, n * EB_PAGE_SIZE, records, n * EB_RECORD_SIZE,
                           &len, &sealed));
    CHECK(len == n * EB_RECORD_SIZE && sealed.pages == n);
    CHECK_OK(eb_pages_open(both.peer, received, records, len, &opened));
    CHECK(opened.pages == n && opened.sequence == sealed.sequence);
    CHECK(memcmp(plain, target, n * EB_PAGE_SIZE) == 0);
    CHECK_OK(eb_transfer_commit_mac(both.client, sent, mac, sizeof mac, &mac_len));
    CHECK_OK(eb_transfer_check_commit_mac(both.peer, received, mac, mac_len));
    mac[0] ^= 1;
    CHECK_STATUS(EB_ERR_MAC, eb_transfer_check_commit_mac(both.peer, received, mac, mac_len));
    CHECK_OK(eb_transfer_forget(sent, BASE_GPA, 1));
    CHECK_OK(eb_transfer_pages(sent, &pages));
    CHECK(pages == n - 1);
    CHECK_STATUS(EB_ERR_REPLAYED, eb_pages_open(both.peer, received, records, len, &opened));
    CHECK(opened.pages == 0 && opened.bad_index == 0);
    eb_transfer_free(sent);
    eb_transfer_free(received);
    free(plain);
    free(target);
    free(records);
  }
  loop_close(&both);
}

/* More parts than the caller keeps, to a call that fails before it takes the first. */
static void test_many_pages_when_refused_leave_nothing(void) {
  enum { PAGES = 600 };
  loop both;
  size_t len = 0;
  loop_open(&both, 1);
  loop_shake_hands(&both);
  eb_transfer *sent = account(&both, PAGES - 1);
  uint8_t *plain = filled(PAGES * EB_PAGE_SIZE, 1), *records = calloc(PAGES, EB_RECORD_SIZE);
  CHECK(records != NULL);
  for (int again = 0; again < 2; again++)
    CHECK_STATUS(EB_ERR_OUT_OF_RANGE, eb_pages_seal(both.client, sent, REGION, BASE_GPA, plain, PAGES * EB_PAGE_SIZE,
                                                    records, PAGES * EB_RECORD_SIZE, &len, NULL));
  for (size_t i = 0; i < PAGES * EB_RECORD_SIZE; i++) CHECK(records[i] == 0);
  CHECK_OK(eb_pages_seal(both.client, sent, REGION, BASE_GPA, plain, (PAGES - 1) * EB_PAGE_SIZE, records,
                         PAGES * EB_RECORD_SIZE, &len, NULL));
  eb_transfer_free(sent);
  free(plain);
  free(records);
  loop_close(&both);
}

static void test_source_when_sealed_from_is_what_arrives(void) {
  enum { PAGES = 70 };
  loop both;
  eb_source *source = NULL;
  size_t len = 0;
  eb_result result;
  loop_open(&both, 1);
  loop_shake_hands(&both);
  uint8_t *plain = filled(PAGES * EB_PAGE_SIZE, 3), *target = calloc(PAGES, EB_PAGE_SIZE);
  uint8_t *records = malloc(PAGES * EB_RECORD_SIZE);
  eb_transfer *received = account(&both, PAGES);
  const int fd = memfd_create("source", MFD_CLOEXEC);
  CHECK(target != NULL && records != NULL && write(fd, plain, PAGES * EB_PAGE_SIZE) == PAGES * EB_PAGE_SIZE);
  CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE, eb_source_open(both.bridge, fd, 0, (PAGES + 1) * EB_PAGE_SIZE, &source));
  CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE, eb_source_open(both.bridge, -1, 0, 1, &source));
  CHECK_OK(eb_source_open(both.bridge, fd, 0, PAGES * EB_PAGE_SIZE, &source));
  CHECK_OK(eb_transfer_set_target_memory(received, target, PAGES * EB_PAGE_SIZE));
  CHECK_OK(eb_pages_seal_from(both.client, NULL, REGION, BASE_GPA, source, 0, PAGES * EB_PAGE_SIZE, records,
                              PAGES * EB_RECORD_SIZE, &len, &result));
  CHECK_OK(eb_pages_open(both.peer, received, records, len, &result));
  CHECK(memcmp(plain, target, PAGES * EB_PAGE_SIZE) == 0);
  CHECK_STATUS(EB_ERR_LENGTH, eb_pages_seal_from(both.client, NULL, REGION, BASE_GPA, source, EB_PAGE_SIZE,
                                                 (PAGES + 1) * EB_PAGE_SIZE, records, 2 * PAGES * EB_RECORD_SIZE, &len,
                                                 &result));
  /* Cut under its feet: parts that were sealed are taken back. */
  CHECK(ftruncate(fd, 20 * EB_PAGE_SIZE) == 0);
  eb_transfer *sent = account(&both, PAGES);
  uint64_t pages = 1;
  CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE,
               eb_pages_seal_from(both.client, sent, REGION, BASE_GPA, source, 0, PAGES * EB_PAGE_SIZE, records,
                                  PAGES * EB_RECORD_SIZE, &len, &result));
  CHECK_OK(eb_transfer_pages(sent, &pages));
  CHECK(pages == 0);
  for (size_t i = 0; i < 16 * EB_RECORD_SIZE; i++) CHECK(records[i] == 0);
  eb_source_free(source);
  eb_transfer_free(sent);
  eb_transfer_free(received);
  close(fd);
  free(plain);
  free(target);
  free(records);
  loop_close(&both);
}

static void test_guard_when_saved_and_loaded_across_the_border_verifies(void) {
  enum { PAGES = 40 };
  const eb_guard_scope scope = {"book", 1, PAGES};
  loop both;
  eb_sealing *sealing = NULL;
  eb_guard *guard = NULL, *again = NULL, *copy = NULL;
  eb_page_range bad[4];
  eb_verify_result found;
  eb_result result;
  uint64_t page = 0;
  size_t len = 0;
  loop_open(&both, 2);
  loop_shake_hands(&both);
  const int key = memfd_create("key", MFD_CLOEXEC), table = memfd_create("table", MFD_CLOEXEC);
  const int memory = memfd_create("memory", MFD_CLOEXEC), other = memfd_create("other", MFD_CLOEXEC);
  CHECK(fchmod(key, 0600) == 0 && ftruncate(memory, PAGES * EB_PAGE_SIZE) == 0);
  CHECK(ftruncate(other, PAGES * EB_PAGE_SIZE) == 0);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sealing_open_file(NULL, key, &sealing));
  CHECK_STATUS(EB_ERR_SEALING, eb_sealing_open_file(both.bridge, -1, &sealing));
  CHECK_OK(eb_sealing_open_file(both.bridge, key, &sealing));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_new(both.bridge, sealing, &(const eb_guard_scope){"", 1, PAGES}, memory, 0, &guard));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_new(both.bridge, sealing, NULL, memory, 0, &guard));
  CHECK_STATUS(EB_ERR_TARGET, eb_guard_new(both.bridge, sealing, &scope, -1, 0, &guard));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_load(both.bridge, NULL, &scope, memory, 0, table, &guard));
  CHECK_OK(eb_guard_new(both.bridge, sealing, &scope, memory, 0, &guard));

  eb_transfer *received = account(&both, PAGES), *sent = account(&both, PAGES);
  uint8_t *plain = filled(PAGES * EB_PAGE_SIZE, 5), *records = malloc(PAGES * EB_RECORD_SIZE);
  CHECK(records != NULL);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_set_guard(received, NULL));
  CHECK_OK(eb_transfer_set_guard(received, guard));
  CHECK_OK(eb_pages_seal(both.client, NULL, REGION, BASE_GPA, plain, PAGES * EB_PAGE_SIZE, records,
                         PAGES * EB_RECORD_SIZE, &len, NULL));
  CHECK_OK(eb_pages_open(both.peer, received, records, len, &result));
  CHECK_OK(eb_guard_verify(guard, 0, PAGES, bad, 4, &found));
  CHECK(found.pages == PAGES && found.bad_pages == 0 && found.ranges == 0);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_verify(guard, 0, PAGES, NULL, 4, &found));
  CHECK_STATUS(EB_ERR_TARGET_IO, eb_guard_save(guard, -1));
  CHECK_OK(eb_guard_save(guard, table));
  CHECK_OK(eb_guard_load(both.bridge, sealing, &scope, memory, 0, table, &again));
  CHECK_OK(eb_guard_renew(again, 1, &page));
  CHECK_OK(eb_guard_save(again, table));
  CHECK_STATUS(EB_ERR_TARGET_IO, eb_guard_journal(again, -1, 2));
  CHECK_OK(eb_guard_journal(again, table, 2));
  CHECK_OK(eb_guard_new(both.bridge, NULL, &scope, other, 0, &copy));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_carry(copy, NULL, &page));
  CHECK_OK(eb_guard_carry(copy, guard, &page));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_seal(copy, both.client, NULL, BASE_GPA, PAGES, records, len, &len, &result));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_seal(copy, both.client, sent, BASE_GPA, PAGES, records, len, &len, NULL));
  CHECK_STATUS(EB_ERR_LENGTH, eb_guard_seal(copy, both.client, sent, BASE_GPA, 0, records, len, &len, &result));
  CHECK_OK(eb_guard_seal(copy, both.client, sent, BASE_GPA, PAGES, records, PAGES * EB_RECORD_SIZE, &len, &result));
  CHECK(result.pages == PAGES);

  CHECK(pwrite(other, "x", 1, 30 * EB_PAGE_SIZE) == 1); /* the host */
  CHECK_OK(eb_guard_verify(copy, 0, PAGES, bad, 4, &found));
  CHECK(found.bad_pages == 1 && found.ranges == 1 && bad[0].first == 30 && bad[0].pages == 1);
  CHECK_STATUS(EB_ERR_TAMPERED,
               eb_guard_seal(copy, both.client, sent, BASE_GPA, PAGES, records, PAGES * EB_RECORD_SIZE, &len, &result));
  CHECK(result.bad_index == 30);
  for (size_t i = 0; i < 16 * EB_RECORD_SIZE; i++) CHECK(records[i] == 0);
  CHECK_STATUS(EB_ERR_TAMPERED, eb_guard_carry(guard, copy, &page));
  CHECK(page == 30);

  const eb_snp_key_options options = {.guest_fields = EB_SNP_FIELD_MEASUREMENT};
  eb_snp_failure failure;
  eb_sealing *none = NULL;
  CHECK_STATUS(EB_ERR_SEALING, eb_sealing_open_snp(both.bridge, key, &options, &failure, &none)); /* no such device */
  CHECK(failure.system_error == ENOTTY);
  CHECK_STATUS(EB_ERR_SEALING, eb_sealing_open_snp(both.bridge, -1, &options, &failure, &none));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sealing_open_snp(both.bridge, key, NULL, &failure, &none));
  eb_guard *guards[] = {guard, again, copy, NULL};
  for (size_t i = 0; i < 4; i++) eb_guard_free(guards[i]);
  eb_sealing_free(sealing);
  eb_sealing_free(NULL);
  eb_transfer_free(sent);
  eb_transfer_free(received);
  const int fds[] = {key, table, memory, other};
  for (size_t i = 0; i < 4; i++) close(fds[i]);
  free(plain);
  free(records);
  loop_close(&both);
}

/* A channel's memory is the bridge's too: what is sealed into it and opened out of it does not cross. */
static void test_channel_when_its_memory_is_lent_seals_and_opens_in_it(void) {
  enum { PAGES = 20, CAPACITY = 1 << 18 };
  eb_channel *ends[2] = {NULL, NULL}, *none = NULL;
  eb_channel_message message;
  eb_session_stats stats;
  eb_result result;
  loop both, other;
  int ring = -1;
  loop_open(&both, 2);
  loop_shake_hands(&both);
  loop_open(&other, 1);
  loop_shake_hands(&other);
  CHECK_OK(eb_channel_create(CAPACITY, &ring));
  const int unsealed = memfd_create("ring", MFD_CLOEXEC);
  CHECK(ftruncate(unsealed, (off_t)eb_channel_bytes(CAPACITY)) == 0);
  CHECK_STATUS(EB_ERR_RING_MEMORY,
               eb_channel_attach(both.client, EB_ROLE_CLIENT, unsealed, CAPACITY, EB_CHANNEL_SEALED, &none));
  CHECK_OK(eb_channel_attach(both.client, EB_ROLE_CLIENT, ring, CAPACITY, EB_CHANNEL_SEALED, &ends[0]));
  CHECK_OK(eb_channel_attach(both.peer, EB_ROLE_SERVER, ring, CAPACITY, EB_CHANNEL_SEALED, &ends[1]));
  eb_transfer *received = account(&both, PAGES), *sent = account(&both, PAGES), *copied = account(&both, PAGES);
  uint8_t *plain = filled(PAGES * EB_PAGE_SIZE, 9), *here = calloc(PAGES, EB_PAGE_SIZE), *read_back = malloc(PAGES * EB_PAGE_SIZE);
  const int target = memfd_create("target", MFD_CLOEXEC);
  CHECK(here != NULL && read_back != NULL && ftruncate(target, PAGES * EB_PAGE_SIZE) == 0);
  CHECK_OK(eb_transfer_set_target_fd(received, target, 0));
  CHECK_OK(eb_transfer_set_target_memory(copied, here, PAGES * EB_PAGE_SIZE));

  CHECK_STATUS(EB_ERR_UNALIGNED, eb_channel_seal(ends[0], both.client, sent, REGION, BASE_GPA + 1, plain,
                                                 PAGES * EB_PAGE_SIZE, 1, EB_RING_FOREVER, &result));
  for (uint64_t round = 0; round < 40; round++) { /* all around the ring */
    CHECK_OK(eb_channel_seal(ends[0], both.client, sent, REGION, BASE_GPA, plain, PAGES * EB_PAGE_SIZE, round,
                             EB_RING_FOREVER, &result));
    CHECK(result.pages == PAGES);
    CHECK_OK(eb_channel_next(ends[1], EB_RING_FOREVER, &message));
    CHECK(message.kind == EB_CHANNEL_RECORDS && message.number == round);
    CHECK_OK(eb_channel_open(ends[1], both.peer, round % 2 == 0 ? received : copied, &result));
    CHECK(result.pages == PAGES && result.bad_index == UINT64_MAX);
  }
  CHECK(pread(target, read_back, PAGES * EB_PAGE_SIZE, 0) == PAGES * EB_PAGE_SIZE);
  CHECK(memcmp(read_back, plain, PAGES * EB_PAGE_SIZE) == 0 && memcmp(here, plain, PAGES * EB_PAGE_SIZE) == 0);

  /* A byte of the third record changes after it was sealed. */
  CHECK_OK(eb_channel_seal(ends[0], both.client, sent, REGION, BASE_GPA, plain, PAGES * EB_PAGE_SIZE, 1,
                           EB_RING_FOREVER, &result));
  uint8_t *memory = mmap(NULL, eb_channel_bytes(CAPACITY), PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
  CHECK(memory != MAP_FAILED);
  for (size_t i = 0; i < CAPACITY / 2; i++) /* wherever the ring has it: in each page of the client's direction */
    if (i % EB_RECORD_SIZE == 0) memory[EB_RING_CONTROL + i + 2048] ^= 1;
  CHECK_OK(eb_channel_next(ends[1], EB_RING_FOREVER, &message));
  CHECK_STATUS(EB_ERR_TAMPERED, eb_channel_open(ends[1], both.peer, received, &result));
  CHECK(result.bad_index == result.pages && result.pages < PAGES);
  CHECK_OK(eb_session_get_stats(both.peer, &stats));
  CHECK(stats.tampered == 1);

  /* Another bridge's session: its records are copied. */
  eb_transfer *elsewhere = account(&other, PAGES);
  CHECK_OK(eb_channel_seal(ends[0], other.client, NULL, REGION, BASE_GPA, plain, PAGES * EB_PAGE_SIZE, 2,
                           EB_RING_FOREVER, &result));
  CHECK_OK(eb_transfer_set_target_fd(elsewhere, target, 0));
  CHECK_OK(eb_channel_next(ends[1], EB_RING_FOREVER, &message));
  CHECK_OK(eb_channel_open(ends[1], other.peer, elsewhere, &result));
  CHECK(result.pages == PAGES);

  munmap(memory, eb_channel_bytes(CAPACITY));
  eb_transfer *transfers[] = {received, sent, copied, elsewhere};
  for (int i = 0; i < 4; i++) eb_transfer_free(transfers[i]);
  for (int i = 0; i < 2; i++) eb_channel_free(ends[i]);
  const int fds[] = {ring, unsealed, target};
  for (int i = 0; i < 3; i++) close(fds[i]);
  free(plain);
  free(here);
  free(read_back);
  loop_close(&other);
  loop_close(&both);
}

typedef struct {
  loop *both;
  eb_transfer *received;
  uint8_t *target;
  size_t first;
} worker;

static void *seal_and_open(void *argument) {
  enum { PAGES = 40 };
  worker *me = argument;
  uint8_t *plain = filled(PAGES * EB_PAGE_SIZE, (unsigned)me->first), *records = malloc(PAGES * EB_RECORD_SIZE);
  uint8_t mac[EB_MAX_MAC_SIZE];
  CHECK(records != NULL);
  for (int i = 0; i < ROUNDS; i++) {
    eb_result sealed, opened;
    size_t len = 0, mac_len = 0;
    CHECK_OK(eb_pages_seal(me->both->client, NULL, REGION, BASE_GPA + me->first * EB_PAGE_SIZE, plain,
                           PAGES * EB_PAGE_SIZE, records, PAGES * EB_RECORD_SIZE, &len, &sealed));
    for (size_t page = 1; page < PAGES; page++) { /* consecutive, whoever else seals */
      eb_record_header before, after;
      CHECK_OK(eb_record_parse(records + (page - 1) * EB_RECORD_SIZE, EB_RECORD_SIZE, &before));
      CHECK_OK(eb_record_parse(records + page * EB_RECORD_SIZE, EB_RECORD_SIZE, &after));
      CHECK(after.sequence == before.sequence + 1);
    }
    CHECK_OK(eb_pages_open(me->both->peer, me->received, records, len, &opened));
    CHECK(opened.pages == PAGES);
    CHECK(memcmp(me->target + me->first * EB_PAGE_SIZE, plain, PAGES * EB_PAGE_SIZE) == 0);
    CHECK_OK(eb_session_mac(me->both->client, EB_MAC_RECEIPT, plain, 1 + (size_t)i * 3000, mac, sizeof mac, &mac_len));
    CHECK_OK(eb_session_check_mac(me->both->peer, EB_MAC_RECEIPT, plain, 1 + (size_t)i * 3000, mac, mac_len));
  }
  free(plain);
  free(records);
  return NULL;
}

static void test_lanes_when_fewer_than_the_callers_serve_all(void) {
  static worker workers[THREADS];
  pthread_t threads[THREADS];
  eb_session_stats stats;
  loop both;
  loop_open(&both, 3);
  loop_shake_hands(&both);
  eb_transfer *received = account(&both, WINDOW_PAGES);
  uint8_t *target = calloc(WINDOW_PAGES, EB_PAGE_SIZE);
  CHECK(target != NULL);
  CHECK_OK(eb_transfer_set_target_memory(received, target, WINDOW_PAGES * EB_PAGE_SIZE));
  for (size_t i = 0; i < THREADS; i++) {
    workers[i] = (worker){&both, received, target, i * 50};
    CHECK(pthread_create(&threads[i], NULL, seal_and_open, &workers[i]) == 0);
  }
  for (size_t i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK_OK(eb_session_get_stats(both.peer, &stats));
  CHECK(stats.opened_pages == 40 * THREADS * ROUNDS && stats.replayed == 0 && stats.tampered == 0);
  CHECK_OK(eb_session_rekey(both.client));
  CHECK_OK(eb_session_close(both.client));
  CHECK_STATUS(EB_ERR_SESSION_CLOSED, eb_session_rekey(both.client));
  eb_transfer_free(received);
  free(target);
  loop_close(&both);
}

static void *until_it_dies(void *argument) {
  eb_bridge *bridge = argument;
  uint8_t *bytes = malloc(EB_MAX_MESSAGE_SIZE);
  CHECK(bytes != NULL);
  eb_status status = EB_OK;
  while (status == EB_OK) status = eb_random(bridge, bytes, EB_MAX_MESSAGE_SIZE);
  CHECK_STATUS(EB_ERR_BRIDGE_DIED, status);
  free(bytes);
  return NULL;
}

static void test_callers_when_the_bridge_ends_all_hear_of_it(void) {
  pthread_t threads[THREADS];
  loop both;
  loop_open(&both, 2);
  loop_shake_hands(&both);
  for (size_t i = 0; i < THREADS; i++)
    CHECK(pthread_create(&threads[i], NULL, until_it_dies, both.bridge) == 0);
  usleep(20000);
  eb_client_end(both.bridge);
  for (size_t i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK_STATUS(EB_ERR_BRIDGE_DIED, eb_session_rekey(both.client));
  eb_bridge_info info;
  CHECK_STATUS(EB_ERR_BRIDGE_DIED, eb_bridge_get_info(both.bridge, &info));
  loop_close(&both);
}

static void test_arguments_when_null_or_out_of_bounds_are_refused_as_in_process(void) {
  uint8_t byte = 0, *big = calloc(1, EB_MAX_MESSAGE_SIZE + 1), mac[EB_MAX_MAC_SIZE];
  const eb_suite suites[] = {EB_SUITE_P256_SHA256_AES128GCM, EB_SUITE_P384_SHA384_AES256GCM};
  const eb_window window = {REGION, BASE_GPA, 1};
  eb_handshake *handshake = NULL;
  eb_transfer *transfer = NULL;
  eb_source *source = NULL;
  eb_bridge *bridge = NULL;
  eb_result result;
  uint64_t pages;
  size_t len;
  int fd;
  loop both;
  CHECK(big != NULL);
  loop_open(&both, 1);
  loop_shake_hands(&both);
  eb_transfer *real = account(&both, 1);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_isolated_open(NULL, NULL, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_bridge_open(&(const eb_bridge_options){.max_sessions = 1, .max_handshakes = 1, .gcm_kernel = memset(big, 'x', 40)}, &bridge));
  memset(big, 0, 40);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_isolated_pidfd(NULL, &fd));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_isolated_pidfd(both.bridge, NULL));
  CHECK_STATUS(EB_ERR_STATE, eb_isolated_pidfd(both.bridge, &fd));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_bridge_get_info(both.bridge, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_random(NULL, &byte, 1));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_random(both.bridge, NULL, 1));
  CHECK_STATUS(EB_ERR_LENGTH, eb_random(both.bridge, big, EB_MAX_MESSAGE_SIZE + 1));
  CHECK_OK(eb_random(both.bridge, NULL, 0));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_new(both.bridge, EB_ROLE_CLIENT, suites, 3, &handshake));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_new(both.bridge, EB_ROLE_CLIENT, NULL, 1, &handshake));
  CHECK_OK(eb_handshake_new(both.bridge, EB_ROLE_CLIENT, suites, 2, &handshake));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_public_key(handshake, suites[0], NULL, 1, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_absorb(handshake, NULL, 1));
  CHECK_STATUS(EB_ERR_LENGTH, eb_handshake_absorb(handshake, big, EB_MAX_MESSAGE_SIZE + 1));
  CHECK_OK(eb_handshake_absorb(handshake, big, EB_MAX_MESSAGE_SIZE));
  CHECK_OK(eb_handshake_absorb(handshake, NULL, 0));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_select(NULL, suites[0]));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_binding(handshake, EB_ROLE_CLIENT, NULL));
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_binding(handshake, EB_ROLE_CLIENT, big));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_derive(handshake, NULL, 1));
  CHECK_OK(eb_handshake_select(handshake, suites[0]));
  CHECK_STATUS(EB_ERR_POINT, eb_handshake_derive(handshake, big, EB_MAX_MESSAGE_SIZE));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_finished(handshake, NULL, 1, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_check_finished(handshake, NULL, 1));
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_check_finished(handshake, big, 4000));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_session(handshake, NULL, &both.client));
  eb_handshake_free(handshake);
  eb_handshake_free(NULL);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_session_close(NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_session_rekey(NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_session_get_stats(both.client, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_session_mac(both.client, EB_MAC_RECEIPT, NULL, 1, mac, sizeof mac, &len));
  CHECK_STATUS(EB_ERR_LENGTH, eb_session_mac(both.client, EB_MAC_RECEIPT, big, EB_MAX_MESSAGE_SIZE + 1, mac, sizeof mac, &len));
  CHECK_STATUS(EB_ERR_BUFFER, eb_session_mac(both.client, EB_MAC_RECEIPT, big, 1, mac, 1, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_session_check_mac(both.client, EB_MAC_RECEIPT, big, 1, NULL, 1));
  CHECK_STATUS(EB_ERR_LENGTH, eb_session_check_mac(both.client, EB_MAC_RECEIPT, big, EB_MAX_MESSAGE_SIZE + 1, mac, 1));
  CHECK_STATUS(EB_ERR_MAC, eb_session_check_mac(both.client, EB_MAC_RECEIPT, big, 1, big, 5000));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_new(both.bridge, NULL, &window, &transfer));
  CHECK_STATUS(EB_ERR_TARGET, eb_transfer_set_target_fd(real, -1, 0));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_set_target_fd(NULL, 0, 0));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_set_target_memory(real, NULL, 0));
  CHECK_STATUS(EB_ERR_LENGTH, eb_transfer_set_target_memory(real, big, 5));
  CHECK_OK(eb_transfer_set_target_memory(real, big, EB_PAGE_SIZE));
  CHECK_STATUS(EB_ERR_STATE, eb_transfer_set_target_memory(real, big, EB_PAGE_SIZE));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_pages(real, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_pages(NULL, &pages));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_forget(NULL, 0, 1));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_commit_mac(both.client, NULL, mac, sizeof mac, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_check_commit_mac(both.client, real, NULL, 1));
  eb_transfer_free(NULL);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_source_open(both.bridge, 0, 0, 0, &source));
  eb_source_free(NULL);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_seal(NULL, NULL, 1, 0, big, EB_PAGE_SIZE, big, 1, &len, NULL));
  CHECK_STATUS(EB_ERR_LENGTH, eb_pages_seal(both.client, NULL, 1, 0, big, 5, big + 4096, 1, &len, NULL));
  CHECK_STATUS(EB_ERR_LENGTH, eb_pages_seal(both.client, NULL, 1, 0, big, 0, big + 4096, 1, &len, NULL));
  CHECK_STATUS(EB_ERR_BUFFER, eb_pages_seal(both.client, NULL, 1, 0, big, EB_PAGE_SIZE, big + 8192, 1, &len, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_seal(both.client, NULL, 1, 0, big, EB_PAGE_SIZE, big + 4095, EB_RECORD_SIZE, &len, NULL));
  CHECK_STATUS(EB_ERR_UNALIGNED, eb_pages_seal(both.client, NULL, 1, 5, big, EB_PAGE_SIZE, big + 8192, EB_RECORD_SIZE, &len, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_seal_from(both.client, NULL, 1, 0, NULL, 0, 1, big, 1, &len, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_open(both.client, real, big, EB_RECORD_SIZE, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_open(both.client, NULL, big, EB_RECORD_SIZE, &result));
  CHECK_STATUS(EB_ERR_LENGTH, eb_pages_open(both.client, real, big, 5, &result));
  CHECK_STATUS(EB_ERR_WRONG_SESSION, eb_pages_open(both.client, real, big, EB_RECORD_SIZE, &result));
  eb_transfer_free(real);
  loop_close(&both);
  free(big);
}

static void test_client_when_the_lanes_memory_is_not_what_was_agreed_refuses(void) {
  eb_bridge *bridge = NULL;
  const int fd = memfd_create("short", MFD_CLOEXEC);
  CHECK(ftruncate(fd, 4096) == 0);
  CHECK_OK(eb_client_new(&bridge));
  CHECK_STATUS(EB_ERR_BRIDGE_DIED, eb_client_attach(bridge, fd, 1));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_client_attach(bridge, fd, 0));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_client_attach(bridge, fd, EB_MAX_LANES + 1));
  CHECK(ftruncate(fd, (off_t)eb_lane_bytes()) == 0);
  CHECK_STATUS(EB_ERR_RING_CORRUPT, eb_client_attach(bridge, fd, 1)); /* never formatted */
  eb_bridge_free(bridge);
  close(fd);
}

int main(void) {
  RUN(test_bridge_when_asked_from_here_answers_from_there);
  RUN(test_pages_when_they_cross_both_ways_arrive);
  RUN(test_many_pages_when_refused_leave_nothing);
  RUN(test_source_when_sealed_from_is_what_arrives);
  RUN(test_guard_when_saved_and_loaded_across_the_border_verifies);
  RUN(test_channel_when_its_memory_is_lent_seals_and_opens_in_it);
  RUN(test_lanes_when_fewer_than_the_callers_serve_all);
  RUN(test_callers_when_the_bridge_ends_all_hear_of_it);
  RUN(test_arguments_when_null_or_out_of_bounds_are_refused_as_in_process);
  RUN(test_client_when_the_lanes_memory_is_not_what_was_agreed_refuses);
  return 0;
}
