/*
 * Pages under a 256-bit key, for gcm_vaes256.c: what gcm_body.h does, arranged for Zen 3.
 *   - A group of eight vectors is one block of assembly (gcm_vaes256_group.h).
 *   - Sealing hashes a group while it encrypts the next one, across pages too: a tag is written when the first group of
 *     the next page has been encrypted. Opening hashes the group it decrypts, so a page's verdict comes before the
 *     next page is touched.
 *   - A chunk of 64 blocks is hashed with one reduction: blocks X1..X64 as X1*H^65 + ... + X64*H^2, the first chunk
 *     after (0, A1, A2, A3)*(H^69 .. H^66). Every sum thus carries one H more than in gcm_body.h, which is what a tag
 *     wants of the block of lengths that follows; that block's own part is a constant of the key.
 *   - The first AES round of counters is looked up: see set_up.
 */

#define CHUNK_GROUPS (GCM_CHUNK / GROUP_BLOCKS)
#define PAGE_CHUNKS (EB_GCM_PAGE_SIZE / GCM_BLOCK / GCM_CHUNK)
#define PAGE_MASKS GROUP_BLOCKS
#define AAD_BLOCKS 4u /* a block of zeros, then the AAD */

typedef struct {
  _Alignas(VEC_BYTES) uint8_t nonce[VEC_BYTES]; /* the state after the first round of (nonce, 0), in each lane */
  uint8_t reverse[VEC_BYTES]; /* VPSHUFB's mask that reverses the bytes of a block */
  uint8_t carry[VEC_BYTES];   /* what the chunk before adds to the first vector hashed next */
  uint8_t ciphertext[GROUP_BYTES]; /* of the last group sealed, or of that being opened */
  __m128i masks[PAGE_MASKS];
  uint8_t counters[EB_GCM_PAGE_SIZE]; /* what each counter of a page adds to the state after the first round */
} workspace;

_Static_assert(offsetof(workspace, nonce) == 0 && offsetof(workspace, reverse) == 32 &&
                   offsetof(workspace, carry) == 64 && offsetof(workspace, ciphertext) == 96,
               "the assembly knows these places");

#include "gcm_vaes256_group.h"

/* AES's first round substitutes bytes, which keeps nonce and counter apart, and then is linear: what it makes of
 * (nonce, counter) is the sum of what it makes of (nonce, 0) and of what the counter changes, which only depends on
 * the key. Counters are public, so the table is read at public places; what is in it is secret. */
INLINE void set_up(workspace *w, hasher *h, const gcm_key *key) {
  const vec first = round_key(key, 0);
  const vec of_zero = vec_aesenc(first, vec_zero());
  const uint8_t *counters = (const uint8_t *)(const void *)gcm_page_counters;
  for (size_t at = 0; at < sizeof w->counters; at += VEC_BYTES) {
    const vec state = vec_xor(first, vec_load(counters + at));
    vec_store(w->counters + at, vec_aesenc(state, of_zero));
  }
  vec_store(w->carry, vec_zero());
  memset(w->ciphertext, 0, sizeof w->ciphertext); /* hashed before the first page */
  vec_store(w->reverse, vec_broadcast(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
  h->lo = h->mid = h->hi = vec_zero();
}

INLINE void start_cipher(workspace *w, const gcm_key *key, const eb_gcm_page *page) {
  const vec start = vec_broadcast(_mm_xor_si128(nonce_block(page->nonce), first_key(key)));
  vec_store(w->nonce, vec_aesenc(start, round_key(key, 1)));
}

/* The AAD is part of the first chunk. */
INLINE void start_hash(hasher *h, const gcm_key *key, const uint8_t *aad) {
  const __m128i first = _mm_loadu_si128((const __m128i *)(const void *)aad);
  multiply_add(h, vec_reverse(_mm256_inserti128_si256(vec_zero(), first, 1)), key->powers[0]);
  multiply_add(h, vec_reverse(vec_load(aad + GCM_BLOCK)), key->powers[GCM_LANES]);
}

/* A sum carries one H more than the first block of a chunk lacks: it is added to the second. */
INLINE void set_carry(workspace *w, hasher *h) {
  vec_store(w->carry, _mm256_inserti128_si256(vec_zero(), reduce(h), 1));
}

INLINE const uint8_t *powers_of(const gcm_key *key, unsigned g) {
  return key->powers[AAD_BLOCKS + g * GROUP_BLOCKS];
}

INLINE const uint8_t *halves_of(const gcm_key *key, unsigned g) {
  return key->page_halves[(AAD_BLOCKS + g * GROUP_BLOCKS) / 4];
}

/* What the tags of PAGE_MASKS pages are masked with: eight vectors at once, since a chain of 14 rounds on its own would
 * hold up what comes after it. */
INLINE void make_page_masks(workspace *w, const gcm_key *key, const eb_gcm_page *pages, size_t count) {
  const vec first = round_key(key, 0);
  group s;
  for (size_t i = 0; i < PAGE_MASKS; i++) {
    const __m128i nonce = nonce_block(pages[i < count ? i : 0].nonce);
    _mm_store_si128(&w->masks[i], _mm_or_si128(nonce, _mm_set_epi32(1 << 24, 0, 0, 0)));
  }
#define DO(i) s.v##i = vec_xor(vec_load(&w->masks[(i) * GCM_LANES]), first);
  EACH(DO)
#undef DO
  const cipher c = {.key = key};
  middle_rounds(&c, 14, &s, NULL, NULL);
  const vec last = round_key(key, 14);
#define DO(i) vec_store(&w->masks[(i) * GCM_LANES], vec_aesenclast(s.v##i, last));
  EACH(DO)
#undef DO
}

INLINE __m128i page_tag(workspace *w, hasher *h, const gcm_key *key, size_t page) {
  const __m128i lengths = _mm_load_si128((const __m128i *)(const void *)key->page_lengths);
  const __m128i mask = _mm_load_si128(&w->masks[page % PAGE_MASKS]);
  return _mm_xor_si128(reverse_block(_mm_xor_si128(reduce(h), lengths)), mask);
}

static void vaes256_seal_pages(const gcm_key *key, const eb_gcm_page *pages, size_t count) {
  workspace w;
  hasher h;
  set_up(&w, &h, key);
  for (size_t i = 0; i < count; i++) {
    const uint8_t *in = pages[i].in;
    uint8_t *out = pages[i].out;
    const uint8_t *counters = w.counters;
    start_cipher(&w, key, &pages[i]);
    for (unsigned chunk = 0; chunk < PAGE_CHUNKS; chunk++) {
      const unsigned last = CHUNK_GROUPS - 1;
      seal_group_256(key, in, out, counters, powers_of(key, last), halves_of(key, last), &w, &h);
      if (chunk != 0) {
        set_carry(&w, &h);
      } else {
        if (i != 0) {
          _mm_storeu_si128((__m128i *)(void *)pages[i - 1].tag, page_tag(&w, &h, key, i - 1));
        }
        if (i % PAGE_MASKS == 0) {
          make_page_masks(&w, key, pages + i, count - i);
        }
        start_hash(&h, key, pages[i].aad);
      }
      for (unsigned g = 1; g < CHUNK_GROUPS; g++) {
        const size_t at = g * GROUP_BYTES;
        seal_group_256(key, in + at, out + at, counters + at, powers_of(key, g - 1), halves_of(key, g - 1), &w, &h);
        vec_store(w.carry, vec_zero());
      }
      in += CHUNK_GROUPS * GROUP_BYTES;
      out += CHUNK_GROUPS * GROUP_BYTES;
      counters += CHUNK_GROUPS * GROUP_BYTES;
    }
  }
  if (count != 0) {
    for (unsigned at = 0; at < GROUP_BYTES; at += VEC_BYTES) {
      multiply_add(&h, vec_reverse(vec_load(w.ciphertext + at)), powers_of(key, CHUNK_GROUPS - 1) + at);
    }
    _mm_storeu_si128((__m128i *)(void *)pages[count - 1].tag, page_tag(&w, &h, key, count - 1));
  }
}

static size_t vaes256_open_pages(const gcm_key *key, const eb_gcm_page *pages, size_t count) {
  workspace w;
  hasher h;
  set_up(&w, &h, key);
  for (size_t i = 0; i < count; i++) {
    const uint8_t *in = pages[i].in;
    uint8_t *out = pages[i].out;
    const uint8_t *counters = w.counters;
    if (i % PAGE_MASKS == 0) {
      make_page_masks(&w, key, pages + i, count - i);
    }
    start_cipher(&w, key, &pages[i]);
    start_hash(&h, key, pages[i].aad);
    for (unsigned chunk = 0; chunk < PAGE_CHUNKS; chunk++) {
      if (chunk != 0) {
        set_carry(&w, &h);
      }
      for (unsigned g = 0; g < CHUNK_GROUPS; g++) {
        open_group_256(key, in, out, counters, powers_of(key, g), halves_of(key, g), &w, &h);
        vec_store(w.carry, vec_zero());
        in += GROUP_BYTES;
        out += GROUP_BYTES;
        counters += GROUP_BYTES;
      }
    }
    if (!tag_matches(page_tag(&w, &h, key, i), pages[i].tag)) {
      return i;
    }
  }
  return count;
}
