#include "pair.h"

static const uint8_t session_id[EB_SESSION_ID_SIZE] = "session-0123456";
static const uint8_t transfer_id[EB_TRANSFER_ID_SIZE] = "transfer-012345";

static bool always(void) { return true; }
static eb_status setup(eb_gcm *gcm, size_t key_size, bool seal) { return eb_gcm_openssl.setup(gcm, key_size, seal); }
static eb_status set_key(eb_gcm *gcm, const uint8_t *key, size_t size) { return eb_gcm_openssl.set_key(gcm, key, size); }
static eb_status seal(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len, size_t len) {
  return eb_gcm_openssl.seal(gcm, work, items, n, aad_len, len);
}
static eb_status open(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len, size_t len,
                      size_t *verified) {
  return eb_gcm_openssl.open(gcm, work, items, n, aad_len, len, verified);
}
static void release(eb_gcm *gcm) { eb_gcm_openssl.release(gcm); }

const eb_gcm_ops batched_ops = {"batched", EB_LANE_PAGES, true, always, setup, set_key, seal, open, release};

void pair_derive(eb_pair *pair, eb_suite suite) {
  const eb_suite both[] = {EB_SUITE_P384_SHA384_AES256GCM, EB_SUITE_P256_SHA256_AES128GCM};
  uint8_t client_key[EB_MAX_PUBLIC_KEY_SIZE], server_key[EB_MAX_PUBLIC_KEY_SIZE];
  size_t client_len = 0, server_len = 0;
  CHECK_OK(eb_handshake_new(pair->bridge, EB_ROLE_CLIENT, both, 2, &pair->client_handshake));
  CHECK_OK(eb_handshake_new(pair->bridge, EB_ROLE_SERVER, both, 2, &pair->server_handshake));
  eb_handshake *ends[] = {pair->client_handshake, pair->server_handshake};
  for (int i = 0; i < 2; i++) {
    CHECK_OK(eb_handshake_absorb(ends[i], (const uint8_t *)"hello", 5));
    CHECK_OK(eb_handshake_select(ends[i], suite));
    CHECK_OK(eb_handshake_absorb(ends[i], NULL, 0));
  }
  CHECK_OK(eb_handshake_public_key(ends[0], suite, client_key, sizeof client_key, &client_len));
  CHECK_OK(eb_handshake_public_key(ends[1], suite, server_key, sizeof server_key, &server_len));
  CHECK_OK(eb_handshake_derive(ends[0], server_key, server_len));
  CHECK_OK(eb_handshake_derive(ends[1], client_key, client_len));
}

eb_pair *pair_new(eb_suite suite, const eb_gcm_ops *ops) {
  const eb_window window = {REGION, BASE_GPA, WINDOW_PAGES};
  uint8_t mac[EB_MAX_MAC_SIZE];
  size_t len = 0;
  eb_pair *pair = calloc(1, sizeof *pair);
  CHECK(pair != NULL);
  for (size_t i = 0; i < sizeof pair->plain; i++) pair->plain[i] = (uint8_t)(1 + i / EB_PAGE_SIZE + i * 13);
  CHECK_OK(eb_bridge_open(NULL, &pair->bridge));
  if (ops != NULL) pair->bridge->gcm = ops;
  pair_derive(pair, suite);
  CHECK_OK(eb_handshake_finished(pair->client_handshake, mac, sizeof mac, &len));
  CHECK_OK(eb_handshake_check_finished(pair->server_handshake, mac, len));
  CHECK_OK(eb_handshake_finished(pair->server_handshake, mac, sizeof mac, &len));
  CHECK_OK(eb_handshake_check_finished(pair->client_handshake, mac, len));
  CHECK_OK(eb_handshake_session(pair->client_handshake, session_id, &pair->client));
  CHECK_OK(eb_handshake_session(pair->server_handshake, session_id, &pair->server));
  CHECK_OK(eb_transfer_new(pair->bridge, transfer_id, &window, &pair->sent));
  CHECK_OK(eb_transfer_new(pair->bridge, transfer_id, &window, &pair->received));
  CHECK_OK(eb_transfer_set_target_memory(pair->received, pair->target, sizeof pair->target));
  return pair;
}

void pair_free(eb_pair *pair) {
  eb_bridge_free(pair->bridge); /* first: the others keep it alive */
  eb_handshake_free(pair->client_handshake);
  eb_handshake_free(pair->server_handshake);
  eb_session_free(pair->client);
  eb_session_free(pair->server);
  eb_transfer_free(pair->sent);
  eb_transfer_free(pair->received);
  free(pair);
}

void pair_seal(eb_pair *pair, size_t first, size_t n) {
  CHECK_OK(eb_pages_seal(pair->client, pair->sent, REGION, BASE_GPA + first * EB_PAGE_SIZE,
                         pair->plain + first * EB_PAGE_SIZE, n * EB_PAGE_SIZE, pair->records, sizeof pair->records,
                         &pair->records_len, NULL));
}

eb_status pair_open(eb_pair *pair, eb_result *result) {
  return eb_pages_open(pair->server, pair->received, pair->records, pair->records_len, result);
}

bool pair_arrived(const eb_pair *pair, size_t i) {
  return memcmp(pair->target + i * EB_PAGE_SIZE, pair->plain + i * EB_PAGE_SIZE, EB_PAGE_SIZE) == 0;
}

bool pair_untouched(const eb_pair *pair, size_t i) {
  static const uint8_t zero[EB_PAGE_SIZE];
  return memcmp(pair->target + i * EB_PAGE_SIZE, zero, EB_PAGE_SIZE) == 0;
}

bool pool_is_zero(const eb_bridge *bridge, eb_pool_kind kind) {
  const eb_pool *pool = &bridge->arena.pools[kind];
  for (size_t i = 0; i < pool->slot_size * pool->count; i++)
    if (pool->base[i] != 0) return false;
  return true;
}
