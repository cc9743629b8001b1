#include "handshake.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "equal.h"
#include "guard.h"
#include "hmac.h"
#include "kdf.h"
#include "session.h"

static eb_role other(eb_role role) { return role == EB_ROLE_CLIENT ? EB_ROLE_SERVER : EB_ROLE_CLIENT; }

static bool known_role(eb_role role) { return role == EB_ROLE_CLIENT || role == EB_ROLE_SERVER; }

/* Any call on a handshake: there, in the process that made it, neither failed nor spent. */
static eb_status usable(const eb_handshake *handshake) {
  if (handshake == NULL) return EB_ERR_ARGUMENT;
  if (!eb_bridge_alive(handshake->bridge)) return EB_ERR_FORKED;
  return handshake->dead ? EB_ERR_STATE : EB_OK;
}

/* Destroys everything secret; the handshake answers EB_ERR_STATE from then on. */
static void end(eb_handshake *handshake) {
  handshake->dead = true;
  for (size_t i = 0; i < EB_SUITES; i++) {
    EVP_PKEY_free(handshake->keys[i]); /* zeroises the private key, which is in libcrypto's secure heap */
    handshake->keys[i] = NULL;
  }
  if (eb_bridge_alive(handshake->bridge))
    eb_arena_give(&handshake->bridge->arena, EB_POOL_HANDSHAKES, handshake->secret);
  handshake->secret = NULL;
}

eb_status eb_handshake_new(eb_bridge *bridge, eb_role role, const eb_suite *suites, size_t n,
                           eb_handshake **handshake) {
  eb_status status = EB_OK;
  eb_handshake *made = NULL;

  EB_ENSURE(bridge != NULL && suites != NULL && handshake != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(known_role(role) && n >= 1 && n <= EB_SUITES, EB_ERR_ARGUMENT);
  EB_ENSURE(eb_bridge_alive(bridge), EB_ERR_FORKED);
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  eb_bridge_hold(bridge);
  made->bridge = bridge;
  made->role = role;
  made->secret = eb_arena_take(&bridge->arena, EB_POOL_HANDSHAKES);
  EB_ENSURE(made->secret != NULL, EB_ERR_LIMIT);
  made->snapshot = EVP_MD_CTX_new();
  EB_ENSURE(made->snapshot != NULL, EB_ERR_MEMORY);
  for (size_t i = 0; i < n; i++) {
    const eb_suite_facts *facts = eb_suite_find(suites[i]);
    EB_ENSURE(facts != NULL, EB_ERR_SUITE);
    size_t at = suites[i] - 1;
    EB_ENSURE(!made->offered[at], EB_ERR_ARGUMENT);
    made->offered[at] = true;
    made->keys[at] = EVP_PKEY_Q_keygen(NULL, NULL, "EC", facts->group);
    made->transcript[at] = EVP_MD_CTX_new();
    EB_ENSURE(made->keys[at] != NULL && made->transcript[at] != NULL, EB_ERR_CRYPTO);
    EB_ENSURE(EVP_DigestInit_ex2(made->transcript[at], bridge->digest[at], NULL) == 1, EB_ERR_CRYPTO);
  }
  *handshake = made;
  made = NULL;
done:
  eb_handshake_free(made);
  return status;
}

void eb_handshake_free(eb_handshake *handshake) {
  if (handshake == NULL) return;
  end(handshake);
  for (size_t i = 0; i < EB_SUITES; i++) EVP_MD_CTX_free(handshake->transcript[i]);
  EVP_MD_CTX_free(handshake->snapshot);
  eb_bridge_free(handshake->bridge);
  free(handshake);
}

/* The own key of one suite as a SEC 1 uncompressed point. */
static eb_status encode_key(const eb_handshake *handshake, eb_suite suite, uint8_t point[EB_MAX_PUBLIC_KEY_SIZE]) {
  size_t len = 0;
  int ok = EVP_PKEY_get_octet_string_param(handshake->keys[suite - 1], OSSL_PKEY_PARAM_PUB_KEY, point,
                                           EB_MAX_PUBLIC_KEY_SIZE, &len);
  return ok == 1 && len == eb_suite_find(suite)->point_size && point[0] == 4 ? EB_OK : EB_ERR_CRYPTO;
}

eb_status eb_handshake_public_key(eb_handshake *handshake, eb_suite suite, uint8_t *out, size_t out_cap,
                                  size_t *out_len) {
  eb_status status = EB_OK;
  uint8_t point[EB_MAX_PUBLIC_KEY_SIZE];
  EB_TRY(usable(handshake));
  EB_ENSURE(out != NULL && out_len != NULL, EB_ERR_ARGUMENT);
  const eb_suite_facts *facts = eb_suite_find(suite);
  EB_ENSURE(facts != NULL && handshake->offered[suite - 1], EB_ERR_SUITE);
  EB_ENSURE(handshake->keys[suite - 1] != NULL, EB_ERR_STATE);
  EB_ENSURE(out_cap >= facts->point_size, EB_ERR_BUFFER);
  EB_TRY(encode_key(handshake, suite, point));
  memcpy(out, point, facts->point_size);
  *out_len = facts->point_size;
done:
  return status;
}

eb_status eb_handshake_absorb(eb_handshake *handshake, const uint8_t *message, size_t len) {
  eb_status status = EB_OK;
  EB_TRY(usable(handshake));
  EB_ENSURE(message != NULL || len == 0, EB_ERR_ARGUMENT);
  EB_ENSURE(len <= EB_MAX_MESSAGE_SIZE, EB_ERR_LENGTH);
  const uint8_t size[4] = {(uint8_t)(len >> 24), (uint8_t)(len >> 16), (uint8_t)(len >> 8), (uint8_t)len};
  for (size_t i = 0; i < EB_SUITES; i++) {
    if (handshake->transcript[i] == NULL) continue;
    if (EVP_DigestUpdate(handshake->transcript[i], size, sizeof size) != 1 ||
        (len > 0 && EVP_DigestUpdate(handshake->transcript[i], message, len) != 1)) {
      end(handshake); /* a transcript with a hole must never be signed or checked */
      EB_ENSURE(false, EB_ERR_CRYPTO);
    }
  }
done:
  return status;
}

eb_status eb_handshake_select(eb_handshake *handshake, eb_suite suite) {
  eb_status status = EB_OK;
  EB_TRY(usable(handshake));
  EB_ENSURE(handshake->suite == 0 && eb_suite_find(suite) != NULL && handshake->offered[suite - 1], EB_ERR_SUITE);
  handshake->suite = suite;
  for (size_t i = 0; i < EB_SUITES; i++) {
    if (i == suite - 1) continue;
    EVP_PKEY_free(handshake->keys[i]);
    handshake->keys[i] = NULL;
    EVP_MD_CTX_free(handshake->transcript[i]);
    handshake->transcript[i] = NULL;
  }
done:
  return status;
}

/* The transcript hash so far; the transcript goes on. Needs a fixed suite. */
static eb_status transcript_hash(eb_handshake *handshake, uint8_t hash[EB_MAX_HASH_SIZE], size_t *hash_len) {
  eb_status status = EB_OK;
  unsigned int len = 0;
  EB_ENSURE(handshake->suite != 0, EB_ERR_STATE);
  EB_ENSURE(EVP_MD_CTX_copy_ex(handshake->snapshot, handshake->transcript[handshake->suite - 1]) == 1, EB_ERR_CRYPTO);
  EB_ENSURE(EVP_DigestFinal_ex(handshake->snapshot, hash, &len) == 1, EB_ERR_CRYPTO);
  *hash_len = len;
done:
  return status;
}

eb_status eb_handshake_binding(eb_handshake *handshake, eb_role role, uint8_t out[EB_BINDING_SIZE]) {
  static const char server[] = "pagegate/v1 server evidence", client[] = "pagegate/v1 client evidence";
  _Static_assert(sizeof server == sizeof client, "the terminating zero is the 0x00 of the protocol");
  eb_status status = EB_OK;
  uint8_t message[sizeof server + EB_MAX_HASH_SIZE], digest[EB_BINDING_SIZE];
  size_t hash_len = 0, written = 0;
  EB_TRY(usable(handshake));
  EB_ENSURE(out != NULL && known_role(role), EB_ERR_ARGUMENT);
  memcpy(message, role == EB_ROLE_SERVER ? server : client, sizeof server);
  EB_TRY(transcript_hash(handshake, message + sizeof server, &hash_len));
  EB_ENSURE(EVP_Q_digest(NULL, "SHA512", NULL, message, sizeof server + hash_len, digest, &written) == 1 &&
                written == sizeof digest,
            EB_ERR_CRYPTO);
  memcpy(out, digest, sizeof digest);
done:
  return status;
}

/* A public key from a point that the peer sent: exact length, uncompressed, on the curve and not
 * infinity (SP 800-56A 5.6.2.3.3), and not the own point or its mirror image. */
static eb_status decode_peer(const eb_handshake *handshake, const uint8_t *point, size_t len, EVP_PKEY **peer) {
  const eb_suite_facts *facts = eb_suite_find(handshake->suite);
  eb_status status = EB_OK;
  uint8_t own[EB_MAX_PUBLIC_KEY_SIZE];
  EVP_PKEY *key = NULL;
  EVP_PKEY_CTX *context = NULL;

  EB_ENSURE(len == facts->point_size && point[0] == 4, EB_ERR_POINT);
  EB_TRY(encode_key(handshake, handshake->suite, own));
  EB_ENSURE(CRYPTO_memcmp(own + 1, point + 1, facts->secret_size) != 0, EB_ERR_POINT); /* equal x */
  OSSL_PARAM params[] = {
      OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, (char *)(uintptr_t)facts->group, 0),
      OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, (void *)(uintptr_t)point, len),
      OSSL_PARAM_construct_end()};
  context = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
  EB_ENSURE(context != NULL && EVP_PKEY_fromdata_init(context) == 1, EB_ERR_CRYPTO);
  EB_ENSURE(EVP_PKEY_fromdata(context, &key, EVP_PKEY_PUBLIC_KEY, params) == 1, EB_ERR_POINT);
  EVP_PKEY_CTX_free(context);
  context = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
  EB_ENSURE(context != NULL, EB_ERR_CRYPTO);
  EB_ENSURE(EVP_PKEY_public_check(context) == 1, EB_ERR_POINT);
  *peer = key;
  key = NULL;
done:
  EVP_PKEY_CTX_free(context);
  EVP_PKEY_free(key);
  return status;
}

/* shared = x of the ECDH point, of exactly the curve's length and not all zero. */
static eb_status agree(const eb_handshake *handshake, EVP_PKEY *peer, uint8_t *shared) {
  const size_t size = eb_suite_find(handshake->suite)->secret_size;
  static const uint8_t zero[EB_MAX_SECRET_SIZE] = {0};
  eb_status status = EB_OK;
  size_t written = size;
  EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, handshake->keys[handshake->suite - 1], NULL);
  EB_ENSURE(context != NULL && EVP_PKEY_derive_init(context) == 1, EB_ERR_CRYPTO);
  EB_ENSURE(EVP_PKEY_derive_set_peer(context, peer) == 1, EB_ERR_POINT);
  EB_ENSURE(EVP_PKEY_derive(context, shared, &written) == 1 && written == size, EB_ERR_CRYPTO);
  EB_ENSURE(!eb_equal(shared, zero, size), EB_ERR_POINT);
done:
  EVP_PKEY_CTX_free(context);
  return status;
}

/* Every key that comes from the shared secret, each with a label of its own ("pagegate/v1 " is
 * put before it). Page keys come from the write secrets, in session.c. The protocol's labels
 * "exporter" and "resumption" are reserved: nothing uses them yet, so nothing derives them. */
static eb_status expand_all(const eb_handshake *handshake) {
  eb_handshake_secret *secret = handshake->secret;
  const struct {
    const char *label;
    uint8_t *out;
  } schedule[] = {
      {"client write secret", secret->write[EB_ROLE_CLIENT - 1]},
      {"server write secret", secret->write[EB_ROLE_SERVER - 1]},
      {"client finished", secret->finished[EB_ROLE_CLIENT - 1]},
      {"server finished", secret->finished[EB_ROLE_SERVER - 1]},
      {"client transfer", secret->mac[EB_ROLE_CLIENT - 1][EB_MAC_TRANSFER - 1]},
      {"server transfer", secret->mac[EB_ROLE_SERVER - 1][EB_MAC_TRANSFER - 1]},
      {"client receipt", secret->mac[EB_ROLE_CLIENT - 1][EB_MAC_RECEIPT - 1]},
      {"server receipt", secret->mac[EB_ROLE_SERVER - 1][EB_MAC_RECEIPT - 1]},
      {"client control", secret->mac[EB_ROLE_CLIENT - 1][EB_MAC_CONTROL - 1]},
      {"server control", secret->mac[EB_ROLE_SERVER - 1][EB_MAC_CONTROL - 1]},
  };
  eb_status status = EB_OK;
  for (size_t i = 0; i < sizeof schedule / sizeof schedule[0]; i++)
    EB_TRY(eb_hkdf_expand_label(handshake->suite, secret->prk, schedule[i].label, schedule[i].out,
                                eb_suite_find(handshake->suite)->hash_size));
done:
  return status;
}

eb_status eb_handshake_derive(eb_handshake *handshake, const uint8_t *peer_key, size_t len) {
  eb_status status = EB_OK;
  EVP_PKEY *peer = NULL;
  uint8_t salt[EB_MAX_HASH_SIZE];
  size_t salt_len = 0;

  EB_TRY(usable(handshake));
  EB_ENSURE(peer_key != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(handshake->suite != 0 && !handshake->derived, EB_ERR_STATE);
  handshake->derived = true;

  status = decode_peer(handshake, peer_key, len, &peer);
  if (status == EB_OK) status = agree(handshake, peer, handshake->secret->shared);
  if (status == EB_OK) status = transcript_hash(handshake, salt, &salt_len);
  if (status == EB_OK) {
    eb_hkdf_extract(handshake->suite, salt, salt_len, handshake->secret->shared,
                    eb_suite_find(handshake->suite)->secret_size, handshake->secret->prk);
    status = expand_all(handshake);
  }

  OPENSSL_cleanse(handshake->secret->shared, sizeof handshake->secret->shared);
  OPENSSL_cleanse(handshake->secret->prk, sizeof handshake->secret->prk);
  EVP_PKEY_free(handshake->keys[handshake->suite - 1]);
  handshake->keys[handshake->suite - 1] = NULL;
  EVP_PKEY_free(peer);
  if (status != EB_OK) end(handshake);
done:
  return status;
}

/* HMAC(role's finished key, transcript hash so far). */
static eb_status finished_mac(eb_handshake *handshake, eb_role role, uint8_t mac[EB_MAX_MAC_SIZE]) {
  eb_status status = EB_OK;
  uint8_t hash[EB_MAX_HASH_SIZE];
  size_t hash_len = 0;
  eb_hmac keyed;
  EB_TRY(transcript_hash(handshake, hash, &hash_len));
  eb_hmac_begin(&keyed, handshake->suite, handshake->secret->finished[role - 1], hash_len);
  eb_hmac_update(&keyed, hash, hash_len);
  eb_hmac_end(&keyed, mac);
done:
  return status;
}

eb_status eb_handshake_finished(eb_handshake *handshake, uint8_t *mac, size_t mac_cap, size_t *mac_len) {
  eb_status status = EB_OK;
  EB_TRY(usable(handshake));
  EB_ENSURE(mac != NULL && mac_len != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(handshake->derived, EB_ERR_STATE);
  EB_ENSURE(mac_cap >= eb_suite_find(handshake->suite)->hash_size, EB_ERR_BUFFER);
  EB_TRY(finished_mac(handshake, handshake->role, mac));
  *mac_len = eb_suite_find(handshake->suite)->hash_size;
  handshake->own_finished = true;
done:
  return status;
}

eb_status eb_handshake_check_finished(eb_handshake *handshake, const uint8_t *mac, size_t len) {
  eb_status status = EB_OK;
  uint8_t expected[EB_MAX_MAC_SIZE];
  EB_TRY(usable(handshake));
  EB_ENSURE(mac != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(handshake->derived, EB_ERR_STATE);
  EB_TRY(finished_mac(handshake, other(handshake->role), expected));
  if (len != eb_suite_find(handshake->suite)->hash_size || !eb_equal(mac, expected, len)) {
    end(handshake);
    status = EB_ERR_FINISHED;
  } else {
    handshake->peer_finished = true;
  }
done:
  OPENSSL_cleanse(expected, sizeof expected);
  return status;
}

eb_status eb_handshake_session(eb_handshake *handshake, const uint8_t session_id[EB_SESSION_ID_SIZE],
                               eb_session **session) {
  eb_status status = EB_OK;
  EB_TRY(usable(handshake));
  EB_ENSURE(session_id != NULL && session != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(handshake->own_finished && handshake->peer_finished, EB_ERR_STATE);
  EB_TRY(eb_session_new(handshake->bridge, handshake->role, handshake->suite, handshake->secret, session_id, session));
  end(handshake);
done:
  return status;
}
