/* What the kernels share: the layout of an expanded key and the table of entry points. */
#ifndef GCM_INTERNAL_H
#define GCM_INTERNAL_H

#include "eb_gcm_kernel.h"

/* Says that a value made from secrets may be branched on. Means something in the build that valgrind
 * checks for secret-dependent branches and addresses (tests/ct_check.c). */
#ifdef GCM_CT_CHECK
#include <valgrind/memcheck.h>
#define GCM_DECLASSIFY(value) VALGRIND_MAKE_MEM_DEFINED(&(value), sizeof(value))
#else
#define GCM_DECLASSIFY(value) ((void)0)
#endif

#define GCM_BLOCK 16u
#define GCM_MAX_ROUNDS 14u

/* Room for powers of the hash key H. Each kernel reads it as it likes (gcm_key_expand):
 *   AVX-512: H^65 .. H^1, then zeros           (64 blocks a reduction, one more for the lengths)
 *   VAES256: H^133 .. H^1, then zeros          (128 blocks a reduction, four for a page's AAD, one for the lengths)
 *   AESNI:   H^33 .. H^1, 0 and, for Karatsuba, the same again with both halves XORed together
 * The trailing zeros let a vector that is only partly filled be loaded whole. */
#define GCM_POWER_SLOTS 136u
#define GCM_TOP_POWER_AVX512 65u
#define GCM_TOP_POWER_VAES256 133u
#define GCM_TOP_POWER_AESNI 33u
/* Of a page's powers, H^133 .. H^2, the XORed halves of each two vectors of two (VAES256 only). */
#define GCM_PAGE_PAIRS 33u

typedef struct {
  _Alignas(64) uint8_t powers[GCM_POWER_SLOTS][GCM_BLOCK];
  uint8_t round_keys[GCM_MAX_ROUNDS + 1][GCM_BLOCK];
  uint8_t page_lengths[GCM_BLOCK]; /* what a page's block of lengths adds to its hash (VAES256 only) */
  uint8_t page_halves[GCM_PAGE_PAIRS][2 * GCM_BLOCK];
  uint32_t rounds; /* 10 or 14; 0 when wiped */
  uint32_t kernel; /* eb_gcm_kernel */
  uint8_t unused[24];
} gcm_key;

_Static_assert(sizeof(gcm_key) == EB_GCM_KEY_SIZE, "the header promises the size of a key");
_Static_assert(_Alignof(gcm_key) == EB_GCM_KEY_ALIGNMENT, "the header promises the alignment of a key");

typedef struct {
  void (*pages_seal)(const gcm_key *key, void *workspace, const eb_gcm_page *pages, size_t count);
  /* Number of pages that verified, in order, before the first that did not. */
  size_t (*pages_open)(const gcm_key *key, void *workspace, const eb_gcm_page *pages, size_t count);
  void (*message_seal)(const gcm_key *key, const eb_gcm_message *message);
  int (*message_open)(const gcm_key *key, const eb_gcm_message *message); /* 1: verified */
} gcm_kernel_ops;

extern const gcm_kernel_ops gcm_aesni_ops;
extern const gcm_kernel_ops gcm_vaes256_ops;
extern const gcm_kernel_ops gcm_avx512_ops;

extern const uint8_t gcm_page_counters[EB_GCM_PAGE_SIZE / GCM_BLOCK][GCM_BLOCK];

/* Fills round_keys, rounds and powers. Needs AES-NI, PCLMULQDQ and AVX. */
void gcm_key_expand(gcm_key *key, const uint8_t *bytes, size_t len);

#endif
