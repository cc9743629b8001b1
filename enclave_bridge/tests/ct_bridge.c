/*
 * Run under valgrind memcheck: every key of both ends, and the pages, are marked undefined, so a
 * branch or an address that depends on them is reported (the method of ctgrind). What crosses the
 * wire is public and marked defined; so is a verdict, where it is made (equal.h, gcm_internal.h).
 * Built for that, ct_bridge must be clean; built with a comparison that leaks (EB_CT_LEAK), and with
 * kernels that do not declare their verdict public, each part must be reported.
 * Valgrind knows no VAES and no AVX-512: the page path runs on the aesni kernel.
 *
 *   ct_bridge finished | mac | commit | guard | pages
 */
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <valgrind/memcheck.h>

#include "page_guard.h"
#include "pair.h"

#define SECRET(memory) VALGRIND_MAKE_MEM_UNDEFINED(&(memory), sizeof(memory))
#define PUBLIC(memory) VALGRIND_MAKE_MEM_DEFINED(&(memory), sizeof(memory))

/* A right MAC and, for each place where a comparison could stop, a wrong one. */
static void finished(void) {
  for (size_t wrong = 0; wrong <= 48; wrong += 16) {
    eb_pair pair = {0};
    uint8_t mac[EB_MAX_MAC_SIZE];
    size_t len = 0;
    CHECK_OK(eb_bridge_open(NULL, &pair.bridge));
    pair_derive(&pair, EB_SUITE_P384_SHA384_AES256GCM);
    SECRET(pair.client_handshake->secret->finished);
    SECRET(pair.server_handshake->secret->finished);
    CHECK_OK(eb_handshake_finished(pair.client_handshake, mac, sizeof mac, &len));
    PUBLIC(mac);
    if (wrong < len) mac[wrong] ^= 1;
    eb_status status = eb_handshake_check_finished(pair.server_handshake, mac, len);
    PUBLIC(status);
    CHECK_STATUS(wrong < len ? EB_ERR_FINISHED : EB_OK, status);
    eb_handshake_free(pair.client_handshake);
    eb_handshake_free(pair.server_handshake);
    eb_bridge_free(pair.bridge);
  }
}

/* How much was hashed is public, and libcrypto branches on it. */
static void make_mac_secret(eb_hmac *mac) {
  SECRET(mac->inner.sha512.h);
  SECRET(mac->outer.sha512.h);
}

static void make_secret(eb_session *session) {
  for (size_t i = 0; i < EB_ROLES; i++)
    for (size_t j = 0; j < EB_PURPOSES; j++) make_mac_secret(&session->secret->mac[i][j]);
  SECRET(session->secret->send_chain);
  SECRET(session->secret->recv_chain);
  SECRET(session->secret->send.iv);
  for (size_t i = 0; i < EB_RECV_EPOCHS; i++) SECRET(session->secret->recv[i].iv);
}

/* Two sessions whose keys from the next epoch on come from secrets that valgrind knows as such: an
 * expanded key also holds how many rounds it has, which is public, and so is not marked as a whole. */
static eb_pair *secret_pair(void) {
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  make_secret(pair->client);
  make_secret(pair->server);
  SECRET(pair->plain);
  return pair;
}

static void mac(void) {
  eb_pair *pair = secret_pair();
  uint8_t made[EB_MAX_MAC_SIZE];
  const uint8_t message[] = "ack";
  size_t len = 0;
  CHECK_OK(eb_session_mac(pair->client, EB_MAC_RECEIPT, message, sizeof message, made, sizeof made, &len));
  PUBLIC(made);
  for (size_t wrong = 0; wrong <= len; wrong += 16) {
    if (wrong < len) made[wrong] ^= 1;
    eb_status status = eb_session_check_mac(pair->server, EB_MAC_RECEIPT, message, sizeof message, made, len);
    PUBLIC(status);
    CHECK_STATUS(wrong < len ? EB_ERR_MAC : EB_OK, status);
    if (wrong < len) made[wrong] ^= 1;
  }
  pair_free(pair);
}

static void commit(void) {
  eb_pair *pair = secret_pair();
  uint8_t made[EB_MAX_MAC_SIZE];
  size_t len = 0;
  for (int i = 0; i < 2; i++) {
    CHECK_OK(eb_transfer_commit_mac(pair->client, pair->sent, made, sizeof made, &len));
    PUBLIC(made);
    made[len - 1] ^= (uint8_t)i;
    eb_status status = eb_transfer_check_commit_mac(pair->server, pair->received, made, len);
    PUBLIC(status);
    CHECK_STATUS(i == 0 ? EB_OK : EB_ERR_MAC, status);
  }
  pair_free(pair);
}

/* The MACs of a region's pages, under a sealing key that is secret. */
static void guard(void) {
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  const eb_guard_scope scope = {"book", 1, WINDOW_PAGES};
  const uint8_t key[EB_SEALING_KEY_SIZE] = {1, 2, 3}, id[EB_TRANSFER_ID_SIZE] = {9};
  const eb_window window = {REGION, BASE_GPA, WINDOW_PAGES};
  const int key_fd = memfd_create("key", 0), fd = memfd_create("region", 0);
  eb_sealing *sealing = NULL;
  eb_guard *made = NULL;
  eb_transfer *transfer = NULL;
  eb_page_range bad[2];
  eb_result result;
  eb_verify_result found;
  CHECK(fchmod(key_fd, 0600) == 0 && write(key_fd, key, sizeof key) == (ssize_t)sizeof key);
  CHECK(ftruncate(fd, WINDOW_PAGES * EB_PAGE_SIZE) == 0);
  CHECK_OK(eb_sealing_open_file(pair->bridge, key_fd, &sealing));
  VALGRIND_MAKE_MEM_UNDEFINED(sealing->key, EB_SEALING_KEY_SIZE);
  CHECK_OK(eb_guard_new(pair->bridge, sealing, &scope, fd, 0, &made));
  CHECK_OK(eb_transfer_new(pair->bridge, id, &window, &transfer));
  CHECK_OK(eb_transfer_set_guard(transfer, made));
  pair_seal(pair, 0, 20);
  CHECK_OK(eb_pages_open(pair->server, transfer, pair->records, pair->records_len, &result));
  CHECK_OK(eb_guard_verify(made, 0, WINDOW_PAGES, bad, 2, &found));
  CHECK(found.bad_pages == 0);
  CHECK(pwrite(fd, "changed", 7, 5 * EB_PAGE_SIZE) == 7);
  CHECK_OK(eb_guard_verify(made, 0, WINDOW_PAGES, bad, 2, &found));
  CHECK(found.bad_pages == 1 && bad[0].first == 5);
  eb_transfer_free(transfer);
  eb_guard_free(made);
  eb_sealing_free(sealing);
  pair_free(pair);
}

/* Seal, open, tag compare, replay window, ratchet: all that the window and the epochs decide must
 * come from the header, which is public, and from verdicts. */
static void pages(void) {
  eb_pair *pair = secret_pair();
  eb_result result;
  CHECK(strcmp(pair->bridge->gcm->name, "aesni") == 0);
  CHECK_OK(eb_session_rekey(pair->client));
  for (int round = 0; round < 3; round++) {
    pair_seal(pair, 0, 20);
    PUBLIC(pair->records);
    CHECK_OK(pair_open(pair, &result));
    CHECK(result.pages == 20 && result.epoch == (uint32_t)round + 1);
    CHECK_STATUS(EB_ERR_REPLAYED, pair_open(pair, &result));
    pair_seal(pair, 20, 20);
    PUBLIC(pair->records);
    pair->records[3 * EB_RECORD_SIZE + 1000] ^= 1; /* a page */
    CHECK_STATUS(EB_ERR_TAMPERED, pair_open(pair, &result));
    CHECK(result.pages == 3);
    pair->records[4 * EB_RECORD_SIZE - 1] ^= 1; /* and its tag */
    CHECK_STATUS(EB_ERR_REPLAYED, pair_open(pair, &result));
    pair->client->send_sequence += 2 * EB_REPLAY_WINDOW;
    pair_seal(pair, 40, 1);
    PUBLIC(pair->records);
    CHECK_OK(pair_open(pair, &result));
    CHECK_OK(eb_session_rekey(pair->client));
  }
  pair_free(pair);
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*run)(void);
  } parts[] = {{"finished", finished}, {"mac", mac}, {"commit", commit}, {"guard", guard}, {"pages", pages}};
  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
    if (argc != 2 || strcmp(argv[1], parts[i].name) != 0) continue;
    parts[i].run();
    printf("ok %s\n", argv[1]);
    return 0;
  }
  fprintf(stderr, "ct_bridge finished | mac | commit | guard | pages\n");
  return 64;
}
