/* AES key expansion (FIPS 197) and powers of the hash key, on 128-bit registers. */
#include "gcm_internal.h"

#include <immintrin.h>
#include <string.h>

static inline __m128i reverse(__m128i v) {
  return _mm_shuffle_epi8(v, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

static inline __m128i spread(__m128i key) { /* w0, w0^w1, w0^w1^w2, ... */
  key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
  return _mm_xor_si128(key, _mm_slli_si128(key, 8));
}

static void store(gcm_key *key, size_t round, __m128i value) {
  _mm_store_si128((__m128i *)(void *)key->round_keys[round], value);
}

/* The round constant of AESKEYGENASSIST is an immediate, hence macros. */
static void expand_128(gcm_key *key, const uint8_t *bytes) {
  __m128i k = _mm_loadu_si128((const __m128i *)(const void *)bytes);
  store(key, 0, k);
#define STEP(round, rcon) \
  k = _mm_xor_si128(spread(k), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(k, rcon), 0xff)); \
  store(key, round, k)
  STEP(1, 0x01);
  STEP(2, 0x02);
  STEP(3, 0x04);
  STEP(4, 0x08);
  STEP(5, 0x10);
  STEP(6, 0x20);
  STEP(7, 0x40);
  STEP(8, 0x80);
  STEP(9, 0x1b);
  STEP(10, 0x36);
#undef STEP
  key->rounds = 10;
}

static void expand_256(gcm_key *key, const uint8_t *bytes) {
  __m128i a = _mm_loadu_si128((const __m128i *)(const void *)bytes);
  __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(bytes + 16));
  store(key, 0, a);
  store(key, 1, b);
#define EVEN(round, rcon) \
  a = _mm_xor_si128(spread(a), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(b, rcon), 0xff)); \
  store(key, round, a)
#define ODD(round) \
  b = _mm_xor_si128(spread(b), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(a, 0), 0xaa)); \
  store(key, round, b)
  EVEN(2, 0x01);
  ODD(3);
  EVEN(4, 0x02);
  ODD(5);
  EVEN(6, 0x04);
  ODD(7);
  EVEN(8, 0x08);
  ODD(9);
  EVEN(10, 0x10);
  ODD(11);
  EVEN(12, 0x20);
  ODD(13);
  EVEN(14, 0x40);
#undef EVEN
#undef ODD
  key->rounds = 14;
}

static __m128i encrypt_zero(const gcm_key *key) {
  __m128i s = _mm_load_si128((const __m128i *)(const void *)key->round_keys[0]);
  for (uint32_t r = 1; r < key->rounds; r++) {
    s = _mm_aesenc_si128(s, _mm_load_si128((const __m128i *)(const void *)key->round_keys[r]));
  }
  return _mm_aesenclast_si128(s, _mm_load_si128((const __m128i *)(const void *)key->round_keys[key->rounds]));
}

/* The product of two field elements that both carry a factor x (see times_x), which it keeps once. */
static __m128i multiply(__m128i a, __m128i b) {
  const __m128i poly = _mm_set1_epi64x((long long)UINT64_C(0xc200000000000000));
  __m128i lo = _mm_clmulepi64_si128(a, b, 0x00);
  __m128i hi = _mm_clmulepi64_si128(a, b, 0x11);
  __m128i mid = _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x01), _mm_clmulepi64_si128(a, b, 0x10));
  mid = _mm_xor_si128(mid, _mm_xor_si128(_mm_clmulepi64_si128(poly, lo, 0x01), _mm_shuffle_epi32(lo, 0x4e)));
  return _mm_xor_si128(hi, _mm_xor_si128(_mm_clmulepi64_si128(poly, mid, 0x01), _mm_shuffle_epi32(mid, 0x4e)));
}

/* h * x in GHASH's reflected order: with one operand of every product shifted so, the 255-bit
 * product of reflected operands lands where the reduction wants it (Gueron and Kounavis). */
static __m128i times_x(__m128i h) {
  const __m128i poly = _mm_set_epi64x((long long)UINT64_C(0xc200000000000000), 1);
  const __m128i top = _mm_shuffle_epi32(_mm_srai_epi32(h, 31), 0xff); /* all ones when x^127 is set */
  const __m128i carry = _mm_slli_si128(_mm_srli_epi64(h, 63), 8);
  h = _mm_or_si128(_mm_slli_epi64(h, 1), carry);
  return _mm_xor_si128(h, _mm_and_si128(top, poly));
}

static __m128i power_at(const gcm_key *key, size_t i) {
  return _mm_load_si128((const __m128i *)(const void *)key->powers[i]);
}

/* H^top .. H^1. */
static void store_powers(gcm_key *key, __m128i h, size_t top) {
  __m128i power = h;
  for (size_t i = top; i-- > 0;) {
    _mm_store_si128((__m128i *)(void *)key->powers[i], power);
    power = multiply(power, h);
  }
}

/* The XOR of a power's halves, in both halves. */
static __m128i halves_of(__m128i power) { return _mm_xor_si128(power, _mm_shuffle_epi32(power, 0x4e)); }

static void store_halves(gcm_key *key) {
  for (size_t i = 0; i < GCM_TOP_POWER_AESNI; i++) {
    _mm_store_si128((__m128i *)(void *)key->powers[i + GCM_POWER_SLOTS / 2], halves_of(power_at(key, i)));
  }
}

/* Blocks i and i + 2 are the same lane of two neighbouring vectors. */
static void store_page_constants(gcm_key *key, __m128i h) {
  for (size_t pair = 0; pair < GCM_PAGE_PAIRS; pair++) {
    for (size_t lane = 0; lane < 2; lane++) {
      const __m128i first = halves_of(power_at(key, 4 * pair + lane));
      const __m128i second = halves_of(power_at(key, 4 * pair + lane + 2));
      _mm_store_si128((__m128i *)(void *)&key->page_halves[pair][lane * GCM_BLOCK],
                      _mm_unpacklo_epi64(first, second));
    }
  }
  const __m128i lengths = _mm_set_epi64x(8 * EB_GCM_PAGE_AAD_SIZE, 8 * EB_GCM_PAGE_SIZE);
  _mm_store_si128((__m128i *)(void *)key->page_lengths, multiply(lengths, h));
}

void gcm_key_expand(gcm_key *key, const uint8_t *bytes, size_t len) {
  if (len == 16) {
    expand_128(key, bytes);
  } else {
    expand_256(key, bytes);
  }
  const __m128i h = times_x(reverse(encrypt_zero(key)));
  memset(key->powers, 0, sizeof key->powers);
  switch (key->kernel) {
  case EB_GCM_KERNEL_AVX512:
    store_powers(key, h, GCM_TOP_POWER_AVX512);
    break;
  case EB_GCM_KERNEL_VAES256:
    store_powers(key, h, GCM_TOP_POWER_VAES256);
    store_page_constants(key, h);
    break;
  default:
    store_powers(key, h, GCM_TOP_POWER_AESNI);
    store_halves(key);
  }
  __asm__ volatile("vzeroall" ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                   "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}
