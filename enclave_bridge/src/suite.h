/* What a suite is made of. */
#ifndef EB_SUITE_H
#define EB_SUITE_H

#include "enclave_bridge.h"

#define EB_SUITES 2u           /* suites are 1..EB_SUITES; tables are indexed by suite - 1 */
#define EB_MAX_HASH_SIZE 48u   /* SHA-384 */
#define EB_MAX_SECRET_SIZE 48u /* x of a P-384 point */
#define EB_MAX_KEY_SIZE 32u    /* AES-256 */

typedef struct {
  const char *group, *digest, *cipher; /* libcrypto's names */
  size_t hash_size, key_size, secret_size, point_size;
} eb_suite_facts;

/* NULL when the suite is unknown. */
const eb_suite_facts *eb_suite_find(eb_suite suite);

#endif
