#ifndef EB_SESSION_H
#define EB_SESSION_H

#include "bridge.h"
#include "handshake.h"
#include "hmac.h"
#include "window.h"

#define EB_RECV_EPOCHS 3u /* previous, current, next: epoch e is at e % 3 */

/* One epoch's key in one direction, in secret memory. */
typedef struct {
  _Alignas(64) uint8_t gcm[EB_GCM_SECRET_SIZE];
  uint8_t iv[EB_GCM_IV_SIZE];
  uint8_t key[EB_MAX_KEY_SIZE]; /* only while it is being set */
} eb_epoch_secret;

/* What a session keeps in secret memory. A chain is the secret of the first epoch of its direction
 * whose key is not derived yet: older ones cannot be had from it. */
typedef struct {
  eb_epoch_secret send, recv[EB_RECV_EPOCHS];
  uint8_t send_chain[EB_MAX_HASH_SIZE], recv_chain[EB_MAX_HASH_SIZE];
  eb_hmac mac[EB_ROLES][EB_PURPOSES]; /* keyed, to be copied */
} eb_session_secret;

typedef struct {
  bool accepted;
  uint32_t epoch;
  eb_gcm gcm;
  eb_replay replay;
} eb_recv_epoch;

struct eb_session {
  eb_bridge *bridge;
  eb_role role;
  eb_suite suite;
  uint8_t id[EB_SESSION_ID_SIZE];
  atomic_bool closed;
  /* Taken in this order: send, recv, keys, then a transfer's. Each guards its direction's part of
   * `secret`; closing takes all three. */
  eb_mutex send_lock, recv_lock, keys_lock;
  eb_session_secret *secret; /* NULL once closed */

  eb_gcm send_gcm;
  uint32_t send_epoch;
  uint64_t send_sequence; /* next number to use */
  uint64_t sent_pages;

  eb_recv_epoch recv[EB_RECV_EPOCHS];
  uint32_t recv_epoch;
  uint64_t opened_pages, replayed, tampered, refused;
};

/* Copies what it needs of the handshake's secrets. EB_ERR_LIMIT when every slot is in use. */
eb_status eb_session_new(eb_bridge *bridge, eb_role role, eb_suite suite, const eb_handshake_secret *from,
                         const uint8_t session_id[EB_SESSION_ID_SIZE], eb_session **session);
/* Argument and fork checks of every call on a session. */
eb_status eb_session_usable(const eb_session *session);
/* With send_lock held: the next epoch. EB_ERR_EXHAUSTED when there is none. */
eb_status eb_session_advance_send(eb_session *session);
/* With recv_lock held: NULL when no key of that epoch is accepted. */
eb_recv_epoch *eb_session_recv_epoch(eb_session *session, uint32_t epoch);
/* With recv_lock held, after a record under `epoch` has verified: if it is the next one it becomes
 * the current one, the one before the former current is destroyed and another is made ready. */
eb_status eb_session_confirm_recv(eb_session *session, uint32_t epoch);
/* A keyed HMAC of role's key for a purpose; eb_hmac_end zeroises it. EB_ERR_SESSION_CLOSED. */
eb_status eb_session_mac_begin(eb_session *session, eb_role role, eb_mac_purpose purpose, eb_hmac *mac);
/* Zeroises all keys. Takes the locks; safe to repeat. */
void eb_session_wipe(eb_session *session);

eb_role eb_session_peer(const eb_session *session);

#endif
