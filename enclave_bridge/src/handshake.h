#ifndef EB_HANDSHAKE_H
#define EB_HANDSHAKE_H

#include <openssl/evp.h>

#include "bridge.h"

#define EB_ROLES 2u    /* tables are indexed by role - 1 */
#define EB_PURPOSES 3u /* tables are indexed by purpose - 1 */

/* What the key schedule makes, in secret memory. */
typedef struct {
  uint8_t shared[EB_MAX_SECRET_SIZE], prk[EB_MAX_HASH_SIZE]; /* zeroised when derive returns */
  uint8_t write[EB_ROLES][EB_MAX_HASH_SIZE];                 /* first epoch secrets */
  uint8_t finished[EB_ROLES][EB_MAX_HASH_SIZE];
  uint8_t mac[EB_ROLES][EB_PURPOSES][EB_MAX_HASH_SIZE];
} eb_handshake_secret;

struct eb_handshake {
  eb_bridge *bridge;
  eb_handshake_secret *secret;
  eb_role role;
  eb_suite suite;                     /* 0 until fixed */
  EVP_PKEY *keys[EB_SUITES];          /* NULL: not offered, or destroyed */
  EVP_MD_CTX *transcript[EB_SUITES];  /* both run until the suite is fixed */
  EVP_MD_CTX *snapshot;
  bool offered[EB_SUITES];
  bool derived, own_finished, peer_finished;
  bool dead; /* failed or spent */
};

#endif
