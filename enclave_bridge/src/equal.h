/* The one way a secret is compared with anything. */
#ifndef EB_EQUAL_H
#define EB_EQUAL_H

#include <openssl/crypto.h>
#include <stdbool.h>
#include <stdint.h>

/* In the builds that valgrind checks for what depends on secrets (tests/ct_bridge.c) a verdict is
 * declared public; EB_CT_LEAK replaces the comparison by one that leaks, which must be found. */
#ifdef EB_CT_CHECK
#include <valgrind/memcheck.h>
#define EB_PUBLIC(value) VALGRIND_MAKE_MEM_DEFINED(&(value), sizeof(value))
#else
#define EB_PUBLIC(value) ((void)0)
#endif

/* Takes the same time wherever they differ. Whether they are equal is public. */
static inline bool eb_equal(const uint8_t *a, const uint8_t *b, size_t len) {
#ifdef EB_CT_LEAK
  for (size_t i = 0; i < len; i++)
    if (a[i] != b[i]) return false;
  return true;
#else
  int different = CRYPTO_memcmp(a, b, len);
  EB_PUBLIC(different);
  return different == 0;
#endif
}

#endif
