/*
 * Pages under a 256-bit key, for gcm_vaes256.c: what gcm_body.h does, arranged for Zen 3.
 *   - A group of eight vectors is one block of assembly (gcm_vaes256_group.h).
 *   - Sealing hashes a group while it encrypts the next one, across pages too: a tag is written when the first group of
 *     the next page has been encrypted. Opening hashes the group it decrypts, so a page's verdict comes before the
 *     next page is touched.
 *   - A chunk of 128 blocks is hashed with one reduction: blocks X1..X128 as X1*H^129 + ... + X128*H^2, the first chunk
 *     after (0, A1, A2, A3)*(H^133 .. H^130). Every sum thus carries one H more than in gcm_body.h, which is what a tag
 *     wants of the block of lengths that follows; that block's own part is a constant of the key.
 *   - The first two AES rounds of counters are looked up: see make_table.
 */

#define CHUNK_GROUPS (GCM_CHUNK / GROUP_BLOCKS)
#define LAST_GROUP (CHUNK_GROUPS - 1)
#define PAGE_CHUNKS (EB_GCM_PAGE_SIZE / GCM_BLOCK / GCM_CHUNK)
#define PAGE_MASKS GROUP_BLOCKS
#define AAD_BLOCKS 4u /* a block of zeros, then the AAD */
#define FIRST_COLUMN 0x11 /* VPBLENDD's mask of a state's first column, in each lane */

typedef struct {
  _Alignas(VEC_BYTES) uint8_t base[VEC_BYTES]; /* the state after two rounds, without what the counter adds */
  uint8_t reverse[VEC_BYTES];      /* VPSHUFB's mask that reverses the bytes of a block */
  uint8_t carry[VEC_BYTES];        /* what the chunk before adds to the first vector opened next */
  uint8_t ciphertext[GROUP_BYTES]; /* of the last group sealed, or of that being opened */
  __m128i masks[PAGE_MASKS]; /* of the tags of pages to come */
  __m128i bases[PAGE_MASKS]; /* base of each */
  uint8_t counters[EB_GCM_PAGE_SIZE]; /* what each counter of a page adds to the state after two rounds */
  /* What the table is made of: the key, as its first two round keys, and the nonces' bytes. */
  uint8_t key[2 * GCM_BLOCK];
  uint32_t column; /* see column_of; 0: there is no table */
} workspace;

_Static_assert(sizeof(workspace) <= EB_GCM_WORKSPACE_SIZE, "the header promises the size of a workspace");

_Static_assert(offsetof(workspace, base) == 0 && offsetof(workspace, reverse) == 32 &&
                   offsetof(workspace, carry) == 64 && offsetof(workspace, ciphertext) == 96,
               "the assembly knows these places");

#include "gcm_vaes256_group.h"

/* What a round makes of nothing: S(0) in every byte, which mixing columns leaves alone. */
INLINE vec round_of_zero(void) { return _mm256_set1_epi8(0x63); }

INLINE void set_up(workspace *w, hasher *h) {
  memset(w->ciphertext, 0, sizeof w->ciphertext); /* hashed before the first page */
  vec_store(w->reverse, vec_broadcast(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
  h->lo = h->mid = h->hi = vec_zero();
}

/* A table that another key's call has left is none. */
__attribute__((noinline)) static void look_for_table(workspace *w, const gcm_key *key) {
  const vec wanted = vec_load(key->round_keys);
  const vec difference = vec_xor(wanted, vec_load(w->key));
  int same = _mm256_testz_si256(difference, difference);
  GCM_DECLASSIFY(same);
  if (!same) {
    w->column = 0;
    vec_store(w->key, wanted);
  }
}

/* The bytes of a nonce that the first round brings into the same column as a counter's last byte. Never 0. */
INLINE uint32_t column_of(const uint8_t nonce[EB_GCM_NONCE_SIZE]) {
  return (uint32_t)nonce[0] | (uint32_t)nonce[5] << 8 | (uint32_t)nonce[10] << 16 | UINT32_C(1) << 24;
}

/*
 * The first round turns a counter's last byte into the first column of the state, together with three bytes of the nonce;
 * all that differs between the blocks 2..255 is in there. A round substitutes bytes and then is linear, so
 * what the second one makes of the state is the sum of what it makes of that column and of the other three. The former is
 * looked up: consecutive sequence numbers have the same three bytes 256 times. The latter is `base`. The last vector of a page,
 * counters 256 and 257, differs in the second column too, and is made for each page. Counters and nonces are public, so
 * tables are read at public places; what is in them is secret.
 */
static void make_table(workspace *w, const gcm_key *key, vec start) {
  const vec second = round_key(key, 1);
  for (size_t block = 0; block < EB_GCM_PAGE_SIZE / GCM_BLOCK; block += GCM_LANES) {
    const vec state = vec_aesenc(vec_xor(start, vec_load(gcm_page_counters[block])), second);
    vec_store(w->counters + block * GCM_BLOCK, vec_aesenc(_mm256_blend_epi32(vec_zero(), state, FIRST_COLUMN), round_of_zero()));
  }
}

INLINE void start_cipher(workspace *w, const gcm_key *key, const uint8_t nonce[EB_GCM_NONCE_SIZE], size_t page) {
  const vec start = vec_broadcast(_mm_xor_si128(nonce_block(nonce), first_key(key)));
  if (w->column != column_of(nonce)) {
    w->column = column_of(nonce);
    make_table(w, key, start);
  }
  const vec base = vec_broadcast(_mm_load_si128(&w->bases[page % PAGE_MASKS]));
  const vec last = vec_xor(start, vec_load(gcm_page_counters[EB_GCM_PAGE_SIZE / GCM_BLOCK - GCM_LANES]));
  vec_store(w->base, base);
  vec_store(w->counters + sizeof w->counters - VEC_BYTES,
            vec_xor(base, vec_aesenc(vec_aesenc(last, round_key(key, 1)), round_key(key, 2))));
}

/* The AAD is part of the first chunk. */
INLINE void start_hash(hasher *h, const gcm_key *key, const uint8_t *aad) {
  const __m128i first = _mm_loadu_si128((const __m128i *)(const void *)aad);
  multiply_add(h, vec_reverse(_mm256_inserti128_si256(vec_zero(), first, 1)), key->powers[0]);
  multiply_add(h, vec_reverse(vec_load(aad + GCM_BLOCK)), key->powers[GCM_LANES]);
}

/* What a chunk's sum adds to the next one's first vector. It carries one H more than the first block lacks, and is
 * added to the second. */
INLINE vec carry_of(hasher *h) { return _mm256_inserti128_si256(vec_zero(), reduce(h), 1); }

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

/* Their bases, for the same reason: 10 cycles a page when opening. */
INLINE void make_page_bases(workspace *w, const gcm_key *key, const eb_gcm_page *pages, size_t count) {
  const vec first = round_key(key, 0);
  const vec second = round_key(key, 1);
  const vec third = round_key(key, 2);
  for (size_t i = 0; i < PAGE_MASKS; i += GCM_LANES) {
    const __m128i even = nonce_block(pages[i < count ? i : 0].nonce);
    const __m128i odd = nonce_block(pages[i + 1 < count ? i + 1 : 0].nonce);
    const vec state = vec_aesenc(vec_xor(_mm256_set_m128i(odd, even), first), second);
    vec_store(&w->bases[i], vec_aesenc(_mm256_blend_epi32(state, vec_zero(), FIRST_COLUMN), third));
  }
}

INLINE __m128i page_tag(workspace *w, hasher *h, const gcm_key *key, size_t page) {
  const __m128i lengths = _mm_load_si128((const __m128i *)(const void *)key->page_lengths);
  const __m128i mask = _mm_load_si128(&w->masks[page % PAGE_MASKS]);
  return _mm_xor_si128(reverse_block(_mm_xor_si128(reduce(h), lengths)), mask);
}

static void vaes256_seal_pages(const gcm_key *key, void *memory, const eb_gcm_page *pages, size_t count) {
  workspace *w = memory;
  hasher h;
  look_for_table(w, key);
  set_up(w, &h);
  for (size_t i = 0; i < count; i++) {
    const uint8_t *in = pages[i].in;
    uint8_t *out = pages[i].out;
    const uint8_t *counters = w->counters;
    if (i % PAGE_MASKS == 0) {
      make_page_bases(w, key, pages + i, count - i);
    }
    start_cipher(w, key, pages[i].nonce, i);
    for (unsigned chunk = 0; chunk < PAGE_CHUNKS; chunk++) {
      seal_group_256(key, in, out, counters, powers_of(key, LAST_GROUP), halves_of(key, LAST_GROUP), 0, w, &h);
      if (chunk != 0) {
        vec_store(w->ciphertext, vec_xor(vec_load(w->ciphertext), vec_reverse(carry_of(&h))));
      } else {
        if (i != 0) {
          _mm_storeu_si128((__m128i *)(void *)pages[i - 1].tag, page_tag(w, &h, key, i - 1));
        }
        if (i % PAGE_MASKS == 0) {
          make_page_masks(w, key, pages + i, count - i);
        }
        start_hash(&h, key, pages[i].aad);
      }
      in += GROUP_BYTES;
      out += GROUP_BYTES;
      counters += GROUP_BYTES;
      for (size_t at = 0; at < LAST_GROUP * GROUP_BYTES; at += GROUP_BYTES) {
        seal_group_256(key, in, out, counters, powers_of(key, 0), halves_of(key, 0) + at / 2, at, w, &h);
      }
      in += LAST_GROUP * GROUP_BYTES;
      out += LAST_GROUP * GROUP_BYTES;
      counters += LAST_GROUP * GROUP_BYTES;
    }
  }
  if (count != 0) {
    for (unsigned at = 0; at < GROUP_BYTES; at += VEC_BYTES) {
      multiply_add(&h, vec_reverse(vec_load(w->ciphertext + at)), powers_of(key, LAST_GROUP) + at);
    }
    _mm_storeu_si128((__m128i *)(void *)pages[count - 1].tag, page_tag(w, &h, key, count - 1));
  }
}

static size_t vaes256_open_pages(const gcm_key *key, void *memory, const eb_gcm_page *pages, size_t count) {
  workspace *w = memory;
  hasher h;
  look_for_table(w, key);
  set_up(w, &h);
  for (size_t i = 0; i < count; i++) {
    const uint8_t *in = pages[i].in;
    uint8_t *out = pages[i].out;
    const uint8_t *counters = w->counters;
    if (i % PAGE_MASKS == 0) {
      make_page_masks(w, key, pages + i, count - i);
      make_page_bases(w, key, pages + i, count - i);
    }
    start_cipher(w, key, pages[i].nonce, i);
    start_hash(&h, key, pages[i].aad);
    for (unsigned chunk = 0; chunk < PAGE_CHUNKS; chunk++) {
      vec_store(w->carry, chunk != 0 ? carry_of(&h) : vec_zero());
      open_group_256(1, key, in, out, counters, powers_of(key, 0), halves_of(key, 0), 0, w, &h);
      for (size_t at = GROUP_BYTES; at < CHUNK_GROUPS * GROUP_BYTES; at += GROUP_BYTES) {
        open_group_256(0, key, in, out, counters, powers_of(key, 0), halves_of(key, 0) + at / 2, at, w, &h);
      }
      in += CHUNK_GROUPS * GROUP_BYTES;
      out += CHUNK_GROUPS * GROUP_BYTES;
      counters += CHUNK_GROUPS * GROUP_BYTES;
    }
    if (!tag_matches(page_tag(w, &h, key, i), pages[i].tag)) {
      return i;
    }
  }
  return count;
}
