#include "session.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "equal.h"
#include "guard.h"
#include "kdf.h"

#ifdef EB_TEST_KEYS /* a program of the tests alone, which looks for these where they must not be */
void eb_test_key(const uint8_t *key, size_t len);
#else
#define eb_test_key(key, len) ((void)0)
#endif

eb_role eb_session_peer(const eb_session *session) {
  return session->role == EB_ROLE_CLIENT ? EB_ROLE_SERVER : EB_ROLE_CLIENT;
}

eb_status eb_session_usable(const eb_session *session) {
  if (session == NULL) return EB_ERR_ARGUMENT;
  return eb_bridge_alive(session->bridge) ? EB_OK : EB_ERR_FORKED;
}

/* Derives key and iv of the chain's epoch into `epoch`, then moves the chain on: from the new
 * chain the keys before it cannot be had. */
static eb_status derive_epoch(const eb_session *session, uint8_t chain[EB_MAX_HASH_SIZE], eb_epoch_secret *epoch,
                              eb_gcm *gcm) {
  const eb_suite_facts *facts = eb_suite_find(session->suite);
  eb_status status = EB_OK;
  uint8_t next[EB_MAX_HASH_SIZE];
  EB_TRY(eb_hkdf_expand_label(session->suite, chain, "key", epoch->key, facts->key_size));
  EB_TRY(eb_hkdf_expand_label(session->suite, chain, "iv", epoch->iv, sizeof epoch->iv));
  EB_TRY(eb_hkdf_expand_label(session->suite, chain, "next epoch", next, facts->hash_size));
  EB_TRY(gcm->ops->set_key(gcm, epoch->key, facts->key_size));
  eb_test_key(epoch->key, facts->key_size);
  eb_test_key(epoch->iv, sizeof epoch->iv);
  eb_test_key(chain, facts->hash_size);
  memcpy(chain, next, facts->hash_size);
  eb_test_key(chain, facts->hash_size);
done:
  OPENSSL_cleanse(next, sizeof next);
  OPENSSL_cleanse(epoch->key, sizeof epoch->key);
  return status;
}

static eb_status open_gcm(eb_session *session, eb_gcm *gcm, eb_epoch_secret *secret, bool seal) {
  *gcm = (eb_gcm){.ops = session->bridge->gcm, .secret = secret->gcm};
  return gcm->ops->setup(gcm, eb_suite_find(session->suite)->key_size, seal);
}

static eb_status open_recv_epoch(eb_session *session, uint32_t epoch) {
  eb_recv_epoch *slot = &session->recv[epoch % EB_RECV_EPOCHS];
  eb_status status = EB_OK;
  slot->accepted = false; /* what was in the slot is gone whatever follows */
  EB_TRY(derive_epoch(session, session->secret->recv_chain, &session->secret->recv[epoch % EB_RECV_EPOCHS],
                      &slot->gcm));
  eb_replay_reset(&slot->replay);
  slot->epoch = epoch;
  slot->accepted = true;
done:
  return status;
}

eb_status eb_session_new(eb_bridge *bridge, eb_role role, eb_suite suite, const eb_handshake_secret *from,
                         const uint8_t session_id[EB_SESSION_ID_SIZE], eb_session **session) {
  eb_status status = EB_OK;
  eb_session *made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  eb_bridge_hold(bridge);
  made->bridge = bridge;
  made->role = role;
  made->suite = suite;
  memcpy(made->id, session_id, sizeof made->id);
  atomic_init(&made->closed, false);
  eb_mutex_init(&made->send_lock);
  eb_mutex_init(&made->recv_lock);
  eb_mutex_init(&made->keys_lock);
  made->secret = eb_arena_take(&bridge->arena, EB_POOL_SESSIONS);
  EB_ENSURE(made->secret != NULL, EB_ERR_LIMIT);

  memcpy(made->secret->send_chain, from->write[role - 1], EB_MAX_HASH_SIZE);
  memcpy(made->secret->recv_chain, from->write[eb_session_peer(made) - 1], EB_MAX_HASH_SIZE);
  for (size_t i = 0; i < EB_ROLES; i++)
    for (size_t j = 0; j < EB_PURPOSES; j++) {
      eb_hmac_begin(&made->secret->mac[i][j], suite, from->mac[i][j], eb_suite_find(suite)->hash_size);
      eb_test_key(from->mac[i][j], eb_suite_find(suite)->hash_size);
    }
  EB_TRY(open_gcm(made, &made->send_gcm, &made->secret->send, true));
  EB_TRY(derive_epoch(made, made->secret->send_chain, &made->secret->send, &made->send_gcm));
  for (size_t i = 0; i < EB_RECV_EPOCHS; i++)
    EB_TRY(open_gcm(made, &made->recv[i].gcm, &made->secret->recv[i], false));
  EB_TRY(open_recv_epoch(made, 0));
  EB_TRY(open_recv_epoch(made, 1));
  *session = made;
  made = NULL;
done:
  eb_session_free(made);
  return status;
}

/* With all locks held, or by the only user. */
static void release_keys(eb_session *session) {
  bool alive = eb_bridge_alive(session->bridge);
  if (!alive) session->send_gcm.secret = NULL;
  eb_gcm_release(&session->send_gcm);
  for (size_t i = 0; i < EB_RECV_EPOCHS; i++) {
    if (!alive) session->recv[i].gcm.secret = NULL;
    eb_gcm_release(&session->recv[i].gcm);
    session->recv[i].accepted = false;
  }
  if (alive) eb_arena_give(&session->bridge->arena, EB_POOL_SESSIONS, session->secret);
  session->secret = NULL;
}

void eb_session_wipe(eb_session *session) {
  eb_mutex_lock(&session->send_lock);
  eb_mutex_lock(&session->recv_lock);
  eb_mutex_lock(&session->keys_lock);
  atomic_store(&session->closed, true);
  release_keys(session);
  eb_mutex_unlock(&session->keys_lock);
  eb_mutex_unlock(&session->recv_lock);
  eb_mutex_unlock(&session->send_lock);
}

void eb_session_free(eb_session *session) {
  if (session == NULL) return;
  release_keys(session);
  if (eb_bridge_alive(session->bridge)) { /* in a child another thread's lock may be held for ever */
    eb_mutex_destroy(&session->send_lock);
    eb_mutex_destroy(&session->recv_lock);
    eb_mutex_destroy(&session->keys_lock);
  }
  eb_bridge_free(session->bridge);
  free(session);
}

eb_status eb_session_close(eb_session *session) {
  eb_status status = EB_OK;
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(!atomic_load(&session->closed), EB_ERR_SESSION_CLOSED);
  eb_session_wipe(session);
done:
  return status;
}

eb_status eb_session_get_stats(eb_session *session, eb_session_stats *stats) {
  eb_status status = EB_OK;
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(stats != NULL, EB_ERR_ARGUMENT);
  memset(stats, 0, sizeof *stats);
  eb_mutex_lock(&session->send_lock);
  stats->send_epoch = session->send_epoch;
  stats->sent_pages = session->sent_pages;
  eb_mutex_unlock(&session->send_lock);
  eb_mutex_lock(&session->recv_lock);
  stats->recv_epoch = session->recv_epoch;
  stats->opened_pages = session->opened_pages;
  stats->replayed = session->replayed;
  stats->tampered = session->tampered;
  stats->refused = session->refused;
  eb_mutex_unlock(&session->recv_lock);
  stats->closed = atomic_load(&session->closed) ? 1 : 0;
done:
  return status;
}

eb_status eb_session_advance_send(eb_session *session) {
  eb_status status = EB_OK;
  EB_ENSURE(session->send_epoch < UINT32_MAX, EB_ERR_EXHAUSTED);
  EB_TRY(derive_epoch(session, session->secret->send_chain, &session->secret->send, &session->send_gcm));
  session->send_epoch++;
  session->send_sequence = 0;
done:
  return status;
}

eb_status eb_session_rekey(eb_session *session) {
  eb_status status = EB_OK;
  EB_TRY(eb_session_usable(session));
  eb_mutex_lock(&session->send_lock);
  status = atomic_load(&session->closed) ? EB_ERR_SESSION_CLOSED : eb_session_advance_send(session);
  eb_mutex_unlock(&session->send_lock);
done:
  return status;
}

eb_recv_epoch *eb_session_recv_epoch(eb_session *session, uint32_t epoch) {
  eb_recv_epoch *slot = &session->recv[epoch % EB_RECV_EPOCHS];
  return slot->accepted && slot->epoch == epoch ? slot : NULL;
}

eb_status eb_session_confirm_recv(eb_session *session, uint32_t epoch) {
  eb_status status = EB_OK;
  if (epoch <= session->recv_epoch) return EB_OK; /* only the next one is accepted beyond it */
  if (epoch < UINT32_MAX) EB_TRY(open_recv_epoch(session, epoch + 1));
  session->recv_epoch = epoch;
done:
  return status;
}

eb_status eb_session_mac_begin(eb_session *session, eb_role role, eb_mac_purpose purpose, eb_hmac *mac) {
  eb_status status = EB_OK;
  eb_mutex_lock(&session->keys_lock);
  EB_ENSURE(!atomic_load(&session->closed), EB_ERR_SESSION_CLOSED);
  *mac = session->secret->mac[role - 1][purpose - 1];
done:
  eb_mutex_unlock(&session->keys_lock);
  return status;
}

static eb_status message_mac(eb_session *session, eb_role role, eb_mac_purpose purpose, const uint8_t *message,
                             size_t len, uint8_t out[EB_MAX_MAC_SIZE]) {
  eb_status status = EB_OK;
  eb_hmac mac;
  EB_ENSURE(purpose >= 1 && purpose <= EB_PURPOSES && (message != NULL || len == 0), EB_ERR_ARGUMENT);
  EB_TRY(eb_session_mac_begin(session, role, purpose, &mac));
  eb_hmac_update(&mac, message, len);
  eb_hmac_end(&mac, out);
done:
  return status;
}

eb_status eb_session_mac(eb_session *session, eb_mac_purpose purpose, const uint8_t *message, size_t len, uint8_t *mac,
                         size_t mac_cap, size_t *mac_len) {
  eb_status status = EB_OK;
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(mac != NULL && mac_len != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(mac_cap >= eb_suite_find(session->suite)->hash_size, EB_ERR_BUFFER);
  EB_TRY(message_mac(session, session->role, purpose, message, len, mac));
  *mac_len = eb_suite_find(session->suite)->hash_size;
done:
  return status;
}

eb_status eb_session_check_mac(eb_session *session, eb_mac_purpose purpose, const uint8_t *message, size_t len,
                               const uint8_t *mac, size_t mac_len) {
  eb_status status = EB_OK;
  uint8_t expected[EB_MAX_MAC_SIZE];
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(mac != NULL, EB_ERR_ARGUMENT);
  EB_TRY(message_mac(session, eb_session_peer(session), purpose, message, len, expected));
  EB_ENSURE(mac_len == eb_suite_find(session->suite)->hash_size && eb_equal(mac, expected, mac_len),
            EB_ERR_MAC);
done:
  OPENSSL_cleanse(expected, sizeof expected);
  return status;
}
