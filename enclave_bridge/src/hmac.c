/* Deprecated since OpenSSL 3.0 in favour of EVP, which has no hash whose state is the caller's to keep. */
#define OPENSSL_SUPPRESS_DEPRECATED

#include "hmac.h"

#include <openssl/crypto.h>
#include <stdbool.h>
#include <string.h>

#define MAX_BLOCK 128u /* of SHA-384 */

static bool is_sha256(eb_suite suite) { return suite == EB_SUITE_P256_SHA256_AES128GCM; }

/* None of libcrypto's functions here can fail: they work on the memory that they are given. */
static void begin(eb_suite suite, eb_hash_state *state) {
  (void)(is_sha256(suite) ? SHA256_Init(&state->sha256) : SHA384_Init(&state->sha512));
}

static void update(eb_suite suite, eb_hash_state *state, const void *data, size_t len) {
  (void)(is_sha256(suite) ? SHA256_Update(&state->sha256, data, len) : SHA384_Update(&state->sha512, data, len));
}

static void end(eb_suite suite, eb_hash_state *state, uint8_t *out) {
  (void)(is_sha256(suite) ? SHA256_Final(out, &state->sha256) : SHA384_Final(out, &state->sha512));
}

static void begin_padded(eb_suite suite, eb_hash_state *state, const uint8_t key[MAX_BLOCK], uint8_t pad) {
  uint8_t block[MAX_BLOCK];
  for (size_t i = 0; i < sizeof block; i++) block[i] = key[i] ^ pad;
  begin(suite, state);
  update(suite, state, block, is_sha256(suite) ? MAX_BLOCK / 2 : MAX_BLOCK);
  OPENSSL_cleanse(block, sizeof block);
}

void eb_hmac_begin(eb_hmac *mac, eb_suite suite, const uint8_t *key, size_t key_len) {
  const size_t block_size = is_sha256(suite) ? MAX_BLOCK / 2 : MAX_BLOCK;
  uint8_t padded[MAX_BLOCK] = {0};
  mac->suite = suite;
  if (key_len > block_size) {
    begin(suite, &mac->inner);
    update(suite, &mac->inner, key, key_len);
    end(suite, &mac->inner, padded);
  } else if (key_len > 0) {
    memcpy(padded, key, key_len);
  }
  begin_padded(suite, &mac->inner, padded, 0x36);
  begin_padded(suite, &mac->outer, padded, 0x5c);
  OPENSSL_cleanse(padded, sizeof padded);
}

void eb_hmac_update(eb_hmac *mac, const void *data, size_t len) {
  if (len > 0) update(mac->suite, &mac->inner, data, len);
}

void eb_hmac_end(eb_hmac *mac, uint8_t *out) {
  uint8_t hash[EB_MAX_HASH_SIZE];
  end(mac->suite, &mac->inner, hash);
  update(mac->suite, &mac->outer, hash, eb_suite_find(mac->suite)->hash_size);
  end(mac->suite, &mac->outer, out);
  OPENSSL_cleanse(hash, sizeof hash);
  OPENSSL_cleanse(mac, sizeof *mac);
}
