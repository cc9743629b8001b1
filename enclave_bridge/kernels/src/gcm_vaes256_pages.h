/* Pages under a 256-bit key, for gcm_vaes256.c. */
typedef struct {
  _Alignas(32) uint8_t hashed[4][3][32]; /* a group to be hashed: of two vectors each, byte-reversed, and XORed halves */
  uint8_t ciphertext[8][32];             /* open: the group being decrypted */
  uint8_t nonce[32];                     /* (nonce, 0) with the first round key added, twice */
  uint8_t reverse[32];                   /* VPSHUFB's mask that reverses the bytes of a block */
} workspace;
#include "gcm_vaes256_group.h"

INLINE void store_pair(uint8_t pair[3][32], vec a, vec b) {
  vec_store(pair[0], a);
  vec_store(pair[1], b);
  vec_store(pair[2], vec_xor(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)));
}

INLINE void hash_pair(hasher *h, const uint8_t pair[3][32], const uint8_t *powers, const uint8_t *halves) {
  vec p = vec_load(powers);
  vec q = vec_load(powers + VEC_BYTES);
  vec both = vec_load(halves);
  OPAQUE(p);
  OPAQUE(q);
  OPAQUE(both);
  const vec a = vec_load(pair[0]);
  const vec b = vec_load(pair[1]);
  const vec ab = vec_load(pair[2]);
  h->lo = vec_xor3(h->lo, VEC_CLMUL(a, p, 0x00), VEC_CLMUL(b, q, 0x00));
  h->hi = vec_xor3(h->hi, VEC_CLMUL(a, p, 0x11), VEC_CLMUL(b, q, 0x11));
  h->mid = vec_xor3(h->mid, VEC_CLMUL(ab, both, 0x00), VEC_CLMUL(ab, both, 0x11));
}

/* Adds the hash of the chunk before to the second block of the group that is to be hashed. */
INLINE void carry_over(workspace *w, __m128i sum) {
  const vec carry = _mm256_inserti128_si256(vec_zero(), sum, 1);
  const vec halves = _mm256_unpacklo_epi64(vec_xor(carry, vec_swap(carry)), vec_zero());
  vec_store(w->hashed[0][0], vec_xor(vec_load(w->hashed[0][0]), carry));
  vec_store(w->hashed[0][2], vec_xor(vec_load(w->hashed[0][2]), halves));
}

INLINE void start_page(workspace *w, hasher *h, const gcm_key *key, const eb_gcm_page *page) {
  vec_store(w->nonce, vec_broadcast(_mm_xor_si128(nonce_block(page->nonce), first_key(key))));
  uint8_t aad[3][32];
  const vec first = _mm256_inserti128_si256(vec_zero(), _mm_loadu_si128((const __m128i *)(const void *)page->aad), 1);
  store_pair(aad, vec_reverse(first), vec_reverse(vec_load(page->aad + GCM_BLOCK)));
  hash_pair(h, (const uint8_t(*)[32])aad, key->powers[0], key->page_halves[0]);
}

INLINE __m128i page_tag(hasher *h, const gcm_key *key, __m128i mask) {
  const __m128i lengths = _mm_load_si128((const __m128i *)(const void *)key->page_lengths);
  return _mm_xor_si128(reverse_block(_mm_xor_si128(reduce(h), lengths)), mask);
}

#define POWERS(key, group) (key)->powers[4 + 16 * (group)]
#define HALVES(key, group) (key)->page_halves[1 + 4 * (group)]

static void vaes256_seal_pages(const gcm_key *key, const eb_gcm_page *pages, size_t count) {
  workspace w;
  memset(&w, 0, sizeof w);
  vec_store(w.reverse, vec_broadcast(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
  hasher h = {.lo = vec_zero(), .mid = vec_zero(), .hi = vec_zero()};
  tag_masks masks;
  __m128i mask = _mm_setzero_si128();
  for (size_t i = 0; i < count; i++) {
    const uint8_t *in = pages[i].in;
    uint8_t *out = pages[i].out;
    const uint8_t *counters = gcm_page_counters[0];
    vec_store(w.nonce, vec_broadcast(_mm_xor_si128(nonce_block(pages[i].nonce), first_key(key))));
    for (unsigned g = 0; g < EB_GCM_PAGE_SIZE / GROUP_BYTES; g++) {
      const unsigned hashed = (g + 3) % 4;
      seal_group_256(key, in, out, counters, POWERS(key, hashed), HALVES(key, hashed), &w, &h);
      in += GROUP_BYTES;
      out += GROUP_BYTES;
      counters += GROUP_BYTES;
      if (g == 0) {
        const __m128i tag = page_tag(&h, key, mask);
        if (i != 0) {
          _mm_storeu_si128((__m128i *)(void *)pages[i - 1].tag, tag);
        }
        if (i % GCM_LANES == 0) {
          make_masks(key, 14, pages + i, count - i, &masks);
        }
        mask = masks.of[i % GCM_LANES];
        start_page(&w, &h, key, &pages[i]);
      } else if (hashed == 3) {
        carry_over(&w, reduce(&h));
      }
    }
  }
  if (count != 0) {
    for (unsigned pair = 0; pair < 4; pair++) {
      hash_pair(&h, (const uint8_t(*)[32])w.hashed[pair], POWERS(key, 3) + pair * 2 * VEC_BYTES, HALVES(key, 3) + pair * VEC_BYTES);
    }
    _mm_storeu_si128((__m128i *)(void *)pages[count - 1].tag, page_tag(&h, key, mask));
  }
}

INLINE void load_group(workspace *w, const uint8_t *in) {
  for (unsigned pair = 0; pair < 4; pair++) {
    vec a = vec_load(in + pair * 2 * VEC_BYTES);
    vec b = vec_load(in + pair * 2 * VEC_BYTES + VEC_BYTES);
    OPAQUE(a);
    OPAQUE(b);
    vec_store(w->ciphertext[2 * pair], a);
    vec_store(w->ciphertext[2 * pair + 1], b);
    store_pair(w->hashed[pair], vec_reverse(a), vec_reverse(b));
  }
}

static size_t vaes256_open_pages(const gcm_key *key, const eb_gcm_page *pages, size_t count) {
  workspace w;
  vec_store(w.reverse, vec_broadcast(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
  hasher h = {.lo = vec_zero(), .mid = vec_zero(), .hi = vec_zero()};
  tag_masks masks;
  const unsigned last = EB_GCM_PAGE_SIZE / GROUP_BYTES - 1;
  for (size_t i = 0; i < count; i++) {
    const uint8_t *in = pages[i].in;
    uint8_t *out = pages[i].out;
    const uint8_t *counters = gcm_page_counters[0];
    if (i % GCM_LANES == 0) {
      make_masks(key, 14, pages + i, count - i, &masks);
    }
    start_page(&w, &h, key, &pages[i]);
    load_group(&w, in);
    for (unsigned g = 0; g <= last; g++) {
      in += GROUP_BYTES;
      open_group_256(key, g == last ? w.ciphertext[0] : in, out, counters, POWERS(key, g % 4), HALVES(key, g % 4), &w, &h);
      out += GROUP_BYTES;
      counters += GROUP_BYTES;
      if (g % 4 == 3 && g != last) {
        carry_over(&w, reduce(&h));
      }
    }
    if (!tag_matches(page_tag(&h, key, masks.of[i % GCM_LANES]), pages[i].tag)) {
      return i;
    }
  }
  return count;
}
