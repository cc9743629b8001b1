/* 128-bit kernel: AES-NI, PCLMULQDQ, AVX. */
#include <immintrin.h>

#define GCM_LANES 1u
#define GCM_CHUNK 32u
#define GCM_TOP_POWER GCM_TOP_POWER_AESNI
#define GCM_KARATSUBA 1
#define GCM_OPS gcm_aesni_ops

typedef __m128i vec;

#define vec_load(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define vec_load_blocks(p, n) ((void)(n), vec_load(p))
#define vec_store(p, v) _mm_storeu_si128((__m128i *)(void *)(p), v)
#define vec_zero() _mm_setzero_si128()
#define vec_from_block(b) (b)
#define vec_broadcast(b) (b)
#define vec_xor(a, b) _mm_xor_si128(a, b)
#define vec_xor3(a, b, c) _mm_xor_si128(a, _mm_xor_si128(b, c))
#define vec_add32(a, b) _mm_add_epi32(a, b)
#define vec_reverse(v) _mm_shuffle_epi8(v, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
#define vec_swap(v) _mm_shuffle_epi32(v, 0x4e)
#define vec_aesenc(s, k) _mm_aesenc_si128(s, k)
#define vec_aesenclast(s, k) _mm_aesenclast_si128(s, k)
#define VEC_CLMUL(a, b, which) _mm_clmulepi64_si128(a, b, which)
#define VEC_REGISTER(v) "x"(v)
#define vec_halves(p, power) ((void)(p), vec_load((power) + sizeof(((gcm_key *)0)->powers) / 2))
#define vec_lane_numbers() _mm_set_epi32(0, 0, 0, 1)
#define vec_fold(v) (v)

static inline void vec_wipe_registers(void) {
  __asm__ volatile("vzeroall" ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                   "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory");
}

#include "gcm_body.h"
