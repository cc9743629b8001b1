/* 256-bit kernel: VAES, VPCLMULQDQ, AVX2. */
#include <immintrin.h>

#define GCM_LANES 2u
#define GCM_CHUNK 128u
#define GCM_TOP_POWER GCM_TOP_POWER_VAES256
#define GCM_KARATSUBA 1 /* the multiplier is the scarcer unit on Zen 3 */
#define GCM_OPS gcm_vaes256_ops
#define GCM_SEAL_PAGES_256 vaes256_seal_pages
#define GCM_OPEN_PAGES_256 vaes256_open_pages

typedef __m256i vec;

#define vec_load(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define vec_load_blocks(p, n) ((void)(n), vec_from_block(_mm_loadu_si128((const __m128i *)(const void *)(p))))
#define vec_store(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define vec_zero() _mm256_setzero_si256()
#define vec_from_block(b) _mm256_zextsi128_si256(b)
#define vec_broadcast(b) _mm256_broadcastsi128_si256(b)
#define vec_xor(a, b) _mm256_xor_si256(a, b)
#define vec_xor3(a, b, c) _mm256_xor_si256(a, _mm256_xor_si256(b, c))
#define vec_add32(a, b) _mm256_add_epi32(a, b)
#define vec_reverse(v) \
  _mm256_shuffle_epi8( \
      v, _mm256_broadcastsi128_si256(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)))
#define vec_swap(v) _mm256_shuffle_epi32(v, 0x4e)
#define vec_aesenc(s, k) _mm256_aesenc_epi128(s, k)
#define vec_aesenclast(s, k) _mm256_aesenclast_epi128(s, k)
#define VEC_CLMUL(a, b, which) _mm256_clmulepi64_epi128(a, b, which)
#define VEC_REGISTER(v) "x"(v)
#define vec_halves(p, power) ((void)(power), vec_xor(p, vec_swap(p)))
#define vec_lane_numbers() _mm256_set_epi32(0, 0, 0, 2, 0, 0, 0, 1)
#define vec_fold(v) _mm_xor_si128(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1))

static inline void vec_wipe_registers(void) {
  __asm__ volatile("vzeroall" ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                   "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory");
}

#include "gcm_internal.h"

static void vaes256_seal_pages(const gcm_key *key, void *memory, const eb_gcm_page *pages, size_t count);
static size_t vaes256_open_pages(const gcm_key *key, void *memory, const eb_gcm_page *pages, size_t count);

#include "gcm_body.h"
#include "gcm_vaes256_pages.h"
