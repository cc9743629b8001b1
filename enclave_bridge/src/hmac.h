/*
 * HMAC (FIPS 198-1) of a suite's hash, over libcrypto's SHA-2.
 *
 * libcrypto's own HMAC keeps the key, and the states made of it, on its heap: in memory that is neither locked nor
 * out of the kernel's reach. An eb_hmac is a plain value, so it is where its owner keeps it; and one that was keyed
 * once is copied for each message, which takes a third of the time.
 */
#ifndef EB_HMAC_H
#define EB_HMAC_H

#include <openssl/sha.h>

#include "suite.h"

typedef union {
  SHA256_CTX sha256;
  SHA512_CTX sha512; /* SHA-384 too */
} eb_hash_state;

/* A key and what was hashed under it so far. As secret as the key; a copy goes its own way. */
typedef struct {
  eb_suite suite;
  eb_hash_state inner, outer;
} eb_hmac;

/* A key of any length. */
void eb_hmac_begin(eb_hmac *mac, eb_suite suite, const uint8_t *key, size_t key_len);
void eb_hmac_update(eb_hmac *mac, const void *data, size_t len);
/* Writes exactly the suite's hash size, and zeroises the value. */
void eb_hmac_end(eb_hmac *mac, uint8_t *out);

#endif
