/* 512-bit kernel: VAES, VPCLMULQDQ, AVX-512 F/BW/DQ/VL. */
#include <immintrin.h>

#define GCM_LANES 4u
#define GCM_CHUNK 64u
#define GCM_TOP_POWER GCM_TOP_POWER_AVX512
#define GCM_KARATSUBA 0 /* multiplier ports are idle half of the time: a fourth product is free */
#define GCM_OPS gcm_avx512_ops

typedef __m512i vec;

#define vec_load(p) _mm512_loadu_si512((const void *)(p))
#define vec_load_blocks(p, n) _mm512_maskz_loadu_epi64((__mmask8)((1u << (2 * (n))) - 1), (const void *)(p))
#define vec_store(p, v) _mm512_storeu_si512((void *)(p), v)
#define vec_zero() _mm512_setzero_si512()
#define vec_from_block(b) _mm512_zextsi128_si512(b)
#define vec_broadcast(b) _mm512_broadcast_i32x4(b)
#define vec_xor(a, b) _mm512_xor_si512(a, b)
#define vec_xor3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define vec_add32(a, b) _mm512_add_epi32(a, b)
#define vec_reverse(v) \
  _mm512_shuffle_epi8( \
      v, _mm512_broadcast_i32x4(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)))
#define vec_swap(v) _mm512_shuffle_epi32(v, 0x4e)
#define vec_aesenc(s, k) _mm512_aesenc_epi128(s, k)
#define vec_aesenclast(s, k) _mm512_aesenclast_epi128(s, k)
#define VEC_CLMUL(a, b, which) _mm512_clmulepi64_epi128(a, b, which)
#define VEC_REGISTER(v) "v"(v)
#define vec_lane_numbers() _mm512_set_epi32(0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1)

static inline __m128i vec_fold(vec v) {
  const __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  return _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* VZEROALL reaches registers 0 to 15 only. */
static inline void vec_wipe_registers(void) {
  __asm__ volatile(
      "vzeroall\n\t"
      "vpxord %%xmm16, %%xmm16, %%xmm16\n\tvpxord %%xmm17, %%xmm17, %%xmm17\n\t"
      "vpxord %%xmm18, %%xmm18, %%xmm18\n\tvpxord %%xmm19, %%xmm19, %%xmm19\n\t"
      "vpxord %%xmm20, %%xmm20, %%xmm20\n\tvpxord %%xmm21, %%xmm21, %%xmm21\n\t"
      "vpxord %%xmm22, %%xmm22, %%xmm22\n\tvpxord %%xmm23, %%xmm23, %%xmm23\n\t"
      "vpxord %%xmm24, %%xmm24, %%xmm24\n\tvpxord %%xmm25, %%xmm25, %%xmm25\n\t"
      "vpxord %%xmm26, %%xmm26, %%xmm26\n\tvpxord %%xmm27, %%xmm27, %%xmm27\n\t"
      "vpxord %%xmm28, %%xmm28, %%xmm28\n\tvpxord %%xmm29, %%xmm29, %%xmm29\n\t"
      "vpxord %%xmm30, %%xmm30, %%xmm30\n\tvpxord %%xmm31, %%xmm31, %%xmm31" ::
          : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
            "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24",
            "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "memory");
}

#include "gcm_body.h"
