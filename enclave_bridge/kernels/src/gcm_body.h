/*
 * AES-GCM over vectors of GCM_LANES blocks: the one text of which every kernel is an instance.
 *
 * The including file defines
 *   vec, GCM_LANES, GCM_CHUNK            vector type, blocks in it, blocks a reduction covers
 *   GCM_TOP_POWER                        exponent of the first power in a key
 *   GCM_KARATSUBA                        1: three multiplications and XORed halves of powers; 0: four
 *   GCM_OPS                              name of the table of entry points
 *   vec_load, vec_load_blocks, vec_store, vec_zero, vec_from_block, vec_broadcast, vec_xor, vec_xor3,
 *   vec_add32, vec_reverse, vec_swap, vec_aesenc, vec_aesenclast, VEC_CLMUL, vec_fold,
 *   vec_lane_numbers, vec_wipe_registers, with Karatsuba vec_halves, VEC_REGISTER (constraint letter of a vector register)
 * and may define
 *   GCM_SEAL_PAGES_256, GCM_OPEN_PAGES_256   functions of its own for pages under a 256-bit key
 *
 * How it works
 *   - GROUP vectors are encrypted at a time, enough to fill the AES pipeline. Between their rounds
 *     the hash of GROUP vectors of ciphertext is computed: of the group before when sealing (its
 *     ciphertext stays in registers: output is never read back), of this group when opening (it is
 *     loaded once, into registers).
 *   - A chunk of blocks X1..Xn is hashed as X1*H^n + ... + Xn*H with one reduction at its end. The
 *     reduced sum so far (`carry`) is added to the first vector of the next chunk, and that vector is
 *     multiplied last, so that the reduction is off the critical path.
 *   - The last chunk's powers start one higher, which leaves H^1 for the block of lengths.
 *
 * Groups are structs of eight named vectors, not arrays: gcc 12 keeps arrays of vectors in memory.
 * Lengths and rounds are constants in the page paths; everything here is inlined into the four
 * functions of GCM_OPS and specialised there.
 */
#include "gcm_internal.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define VEC_BYTES (GCM_LANES * GCM_BLOCK)
#define GROUP 8u
#define GROUP_BLOCKS (GROUP * GCM_LANES)
#define GROUP_BYTES (GROUP_BLOCKS * GCM_BLOCK)
/* Holds values and memory accesses on their side of this point; no instruction comes of it. */
#define PIN(...) __asm__ volatile("" : __VA_ARGS__ : : "memory")
/* From here on the compiler knows nothing of where the value came from: it cannot load it again. */
#define OPAQUE(v) __asm__("" : "+" VEC_REGISTER(v))
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)

_Static_assert(GCM_CHUNK % GROUP_BLOCKS == 0, "a chunk is whole groups");
_Static_assert(EB_GCM_PAGE_SIZE % GROUP_BYTES == 0, "a page is whole groups");

typedef struct {
  vec v0, v1, v2, v3, v4, v5, v6, v7;
} group;

typedef struct {
  vec lo, mid, hi;      /* unreduced sum of products in this chunk */
  vec carry;            /* reduced sum of the chunks before, in the first lane; zero when it has been added */
  const uint8_t *power; /* of the next block */
  uint64_t left;        /* blocks not yet hashed */
  uint64_t until;       /* value of left at the end of this chunk */
} hasher;

/* Counter blocks to come. A page's are read from gcm_page_counters and `base` is (nonce, 0) with the
 * first round key added; those of other messages are counted, and `base` is the first round key. */
typedef struct {
  const gcm_key *key;
  int is_page; /* a constant, once inlined */
  const uint8_t *page_counters;
  vec base;
  vec counters; /* byte-reversed, so that the counter is the lowest 32-bit number of a lane */
} cipher;

/* ---- GHASH ---------------------------------------------------------------------------------- */

INLINE const uint8_t *power_of(const gcm_key *key, uint64_t exponent) {
  return key->powers[GCM_TOP_POWER - exponent];
}

INLINE void multiply_add(hasher *h, vec x, const uint8_t *power) {
  vec p = vec_load(power);
#if GCM_KARATSUBA
  OPAQUE(p); /* a multiplier that has to load it as well is slow on Zen 3 */
  vec halves = vec_halves(p, power);
  OPAQUE(halves);
  h->lo = vec_xor(h->lo, VEC_CLMUL(x, p, 0x00));
  h->hi = vec_xor(h->hi, VEC_CLMUL(x, p, 0x11));
  h->mid = vec_xor(h->mid, VEC_CLMUL(vec_xor(x, vec_swap(x)), halves, 0x00));
#else
  h->lo = vec_xor(h->lo, VEC_CLMUL(x, p, 0x00));
  h->hi = vec_xor(h->hi, VEC_CLMUL(x, p, 0x11));
  h->mid = vec_xor3(h->mid, VEC_CLMUL(x, p, 0x01), VEC_CLMUL(x, p, 0x10));
#endif
}

INLINE __m128i reduce(hasher *h) {
  const vec poly = vec_broadcast(_mm_set1_epi64x((long long)UINT64_C(0xc200000000000000)));
#if GCM_KARATSUBA
  h->mid = vec_xor3(h->mid, h->lo, h->hi);
#endif
  const vec mid = vec_xor3(h->mid, VEC_CLMUL(poly, h->lo, 0x01), vec_swap(h->lo));
  const vec hi = vec_xor3(h->hi, VEC_CLMUL(poly, mid, 0x01), vec_swap(mid));
  h->lo = h->mid = h->hi = vec_zero();
  return vec_fold(hi);
}

INLINE void begin_chunk(hasher *h, const gcm_key *key, unsigned blocks_after) {
  if (h->left > GCM_CHUNK) {
    h->power = power_of(key, GCM_CHUNK);
    h->until = h->left - GCM_CHUNK;
  } else {
    h->power = power_of(key, h->left + blocks_after);
    h->until = 0;
  }
}

/* Starts the hash of `blocks` blocks that `blocks_after` (0 or 1) more will follow. */
INLINE void begin_hash(hasher *h, const gcm_key *key, __m128i sum, uint64_t blocks, unsigned blocks_after) {
  h->lo = h->mid = h->hi = vec_zero();
  h->carry = vec_from_block(sum);
  h->left = blocks;
  begin_chunk(h, key, blocks_after);
}

INLINE void advance(hasher *h, const gcm_key *key, uint64_t blocks, unsigned blocks_after) {
  h->power += blocks * GCM_BLOCK;
  h->left -= blocks;
  if (h->left == h->until && h->left != 0) {
    h->carry = vec_from_block(reduce(h));
    begin_chunk(h, key, blocks_after);
  }
}

/* One vector that holds `blocks` (1..GCM_LANES) blocks, the other lanes being zero. */
INLINE void hash_vector(hasher *h, const gcm_key *key, vec x, unsigned blocks, unsigned blocks_after) {
  multiply_add(h, vec_xor(x, h->carry), h->power);
  h->carry = vec_zero();
  advance(h, key, blocks, blocks_after);
}

/* len bytes of one's own memory, zero-padded to a block; returns the reduced sum. */
INLINE __m128i hash_bytes(const gcm_key *key, __m128i sum, const uint8_t *data, size_t len) {
  if (len == 0) {
    return sum;
  }
  hasher h;
  begin_hash(&h, key, sum, (len + GCM_BLOCK - 1) / GCM_BLOCK, 0);
  for (; len >= VEC_BYTES; len -= VEC_BYTES, data += VEC_BYTES) {
    hash_vector(&h, key, vec_reverse(vec_load(data)), GCM_LANES, 0);
  }
  if (len % GCM_BLOCK != 0) {
    _Alignas(64) uint8_t last[VEC_BYTES] = {0};
    memcpy(last, data, len);
    hash_vector(&h, key, vec_reverse(vec_load(last)), (unsigned)((len + GCM_BLOCK - 1) / GCM_BLOCK), 0);
  } else if (len != 0) {
    const unsigned blocks = (unsigned)(len / GCM_BLOCK);
    hash_vector(&h, key, vec_reverse(vec_load_blocks(data, blocks)), blocks, 0);
  }
  return reduce(&h);
}

/* Adds the block of lengths (in bytes) and returns the finished hash. */
INLINE __m128i finish_hash(hasher *h, const gcm_key *key, uint64_t aad_len, uint64_t len) {
  const vec lengths = vec_from_block(_mm_set_epi64x((long long)(aad_len * 8), (long long)(len * 8)));
  multiply_add(h, vec_xor(lengths, h->carry), power_of(key, 1));
  return reduce(h);
}

/* ---- AES in counter mode ---------------------------------------------------------------------- */

INLINE vec round_key(const gcm_key *key, unsigned round) {
  return vec_broadcast(_mm_load_si128((const __m128i *)(const void *)key->round_keys[round]));
}

INLINE __m128i reverse_block(__m128i v) {
  return _mm_shuffle_epi8(v, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

INLINE __m128i encrypt_block(const gcm_key *key, unsigned rounds, __m128i block) {
  const __m128i *k = (const __m128i *)(const void *)key->round_keys;
  block = _mm_xor_si128(block, k[0]);
  for (unsigned r = 1; r < rounds; r++) {
    block = _mm_aesenc_si128(block, k[r]);
  }
  return _mm_aesenclast_si128(block, k[rounds]);
}

INLINE void first_round(cipher *c, group *s) {
  PIN();
  if (c->is_page) {
#define DO(i) s->v##i = vec_xor(c->base, vec_load(c->page_counters + (i) * VEC_BYTES));
    EACH(DO)
#undef DO
    c->page_counters += GROUP_BYTES;
  } else {
    const vec step = vec_broadcast(_mm_set_epi32(0, 0, 0, GCM_LANES));
#define DO(i) \
  s->v##i = vec_xor(c->base, vec_reverse(c->counters)); \
  c->counters = vec_add32(c->counters, step);
    EACH(DO)
#undef DO
  }
}

/* Rounds 1 .. rounds - 1 of `s`; when `x` is not NULL its eight vectors are hashed in between. The
 * fence keeps compilers from loading all round keys ahead of the loop and spilling them. */
INLINE void middle_rounds(const cipher *c, unsigned rounds, group *s, const group *x, hasher *h) {
#define DO(i) s->v##i = vec_aesenc(s->v##i, key);
#define ROUND(r, HASH) \
  if ((r) < rounds) { \
    const vec key = round_key(c->key, r); \
    EACH(DO) \
    if (x != NULL) { \
      HASH; \
      PIN("+" VEC_REGISTER(h->lo), "+" VEC_REGISTER(h->mid), "+" VEC_REGISTER(h->hi)); \
    } \
    PIN("+" VEC_REGISTER(s->v0), "+" VEC_REGISTER(s->v1), "+" VEC_REGISTER(s->v2), "+" VEC_REGISTER(s->v3), \
        "+" VEC_REGISTER(s->v4), "+" VEC_REGISTER(s->v5), "+" VEC_REGISTER(s->v6), "+" VEC_REGISTER(s->v7)); \
  }
#define HASH(i) multiply_add(h, x->v##i, h->power + (i) * VEC_BYTES)
  ROUND(1, HASH(1))
  ROUND(2, HASH(2))
  ROUND(3, HASH(3))
  ROUND(4, HASH(4))
  ROUND(5, HASH(5))
  ROUND(6, HASH(6))
  ROUND(7, HASH(7))
  ROUND(8, HASH(0)) /* last: it waits for the carry of the chunk before */
  ROUND(9, (void)0)
  ROUND(10, (void)0)
  ROUND(11, (void)0)
  ROUND(12, (void)0)
  ROUND(13, (void)0)
#undef HASH
#undef ROUND
#undef DO
}

INLINE void hash_group(hasher *h, const group *x) {
#define DO(i) multiply_add(h, x->v##i, h->power + (i) * VEC_BYTES);
  EACH(DO)
#undef DO
}

/* Encrypts one group from in to out; leaves the byte-reversed ciphertext in *x. On the way hashes
 * what *x held before, unless `first`. */
INLINE void seal_group(cipher *c, unsigned rounds, const uint8_t *in, uint8_t *out, group *x, hasher *h, int first) {
  group s;
  first_round(c, &s);
  middle_rounds(c, rounds, &s, first ? NULL : x, h);
  if (!first) {
    advance(h, c->key, GROUP_BLOCKS, 1);
  }
  const vec key = round_key(c->key, rounds);
#define DO(i) \
  s.v##i = vec_aesenclast(s.v##i, vec_xor(key, vec_load(in + (i) * VEC_BYTES))); \
  OPAQUE(s.v##i); \
  vec_store(out + (i) * VEC_BYTES, s.v##i); \
  x->v##i = vec_reverse(s.v##i);
  EACH(DO)
#undef DO
  x->v0 = vec_xor(x->v0, h->carry);
  h->carry = vec_zero();
}

/* Decrypts one group and hashes its ciphertext, which is loaded once. */
INLINE void open_group(cipher *c, unsigned rounds, const uint8_t *in, uint8_t *out, hasher *h) {
  group s;
  group y;
  group x;
#define DO(i) \
  y.v##i = vec_load(in + (i) * VEC_BYTES); \
  OPAQUE(y.v##i); \
  x.v##i = vec_reverse(y.v##i);
  EACH(DO)
#undef DO
  x.v0 = vec_xor(x.v0, h->carry);
  h->carry = vec_zero();
  first_round(c, &s);
  middle_rounds(c, rounds, &s, &x, h);
  advance(h, c->key, GROUP_BLOCKS, 1);
  const vec key = round_key(c->key, rounds);
#define DO(i) vec_store(out + (i) * VEC_BYTES, vec_aesenclast(s.v##i, vec_xor(key, y.v##i)));
  EACH(DO)
#undef DO
}

/* The last 1 .. GROUP_BYTES - 1 bytes, through a buffer. */
INLINE void crypt_tail(cipher *c, unsigned rounds, int seal, const uint8_t *in, uint8_t *out, size_t len, hasher *h) {
  _Alignas(64) uint8_t buffer[GROUP_BYTES];
  _Alignas(64) uint8_t stream[GROUP_BYTES];
  group s;
  memset(buffer, 0, sizeof buffer);
  memcpy(buffer, in, len);
  first_round(c, &s);
  middle_rounds(c, rounds, &s, NULL, h);
  const vec key = round_key(c->key, rounds);
#define DO(i) \
  vec_store(stream + (i) * VEC_BYTES, \
            vec_xor(vec_aesenclast(s.v##i, key), vec_load(buffer + (i) * VEC_BYTES)));
  EACH(DO)
#undef DO
  memcpy(out, stream, len);
  const uint8_t *ciphertext = seal ? stream : buffer;
  memset(stream + len, 0, sizeof stream - len);
  for (size_t done = 0; done < len; done += VEC_BYTES) {
    const size_t blocks = (len - done + GCM_BLOCK - 1) / GCM_BLOCK;
    hash_vector(h, c->key, vec_reverse(vec_load(ciphertext + done)),
                (unsigned)(blocks < GCM_LANES ? blocks : GCM_LANES), 1);
  }
}

/* ---- one message ------------------------------------------------------------------------------- */

/* Returns the tag. `mask` is the encrypted pre-counter block. */
INLINE __m128i crypt(cipher *c, unsigned rounds, int seal, __m128i mask, const uint8_t *aad, size_t aad_len,
                     const uint8_t *in, uint8_t *out, size_t len) {
  const gcm_key *key = c->key;
  hasher h;
  const __m128i sum = hash_bytes(key, _mm_setzero_si128(), aad, aad_len);
  begin_hash(&h, key, sum, (len + GCM_BLOCK - 1) / GCM_BLOCK, 1);

  const size_t whole = len - len % GROUP_BYTES;
  if (whole != 0) {
    if (seal) {
      group x;
      seal_group(c, rounds, in, out, &x, &h, 1);
      for (size_t done = GROUP_BYTES; done < whole; done += GROUP_BYTES) {
        seal_group(c, rounds, in + done, out + done, &x, &h, 0);
      }
      hash_group(&h, &x);
      advance(&h, key, GROUP_BLOCKS, 1);
    } else {
      for (size_t done = 0; done < whole; done += GROUP_BYTES) {
        open_group(c, rounds, in + done, out + done, &h);
      }
    }
  }
  if (whole != len) {
    crypt_tail(c, rounds, seal, in + whole, out + whole, len - whole, &h);
  }
  return _mm_xor_si128(reverse_block(finish_hash(&h, key, aad_len, len)), mask);
}

INLINE int tag_matches(__m128i computed, const uint8_t *expected) {
  const __m128i difference = _mm_xor_si128(computed, _mm_loadu_si128((const __m128i *)(const void *)expected));
  int verdict = _mm_testz_si128(difference, difference);
  GCM_DECLASSIFY(verdict);
  return verdict;
}

/* The nonce followed by a counter of zero. */
INLINE __m128i nonce_block(const uint8_t nonce[EB_GCM_NONCE_SIZE]) {
  uint64_t low;
  uint32_t high;
  memcpy(&low, nonce, sizeof low);
  memcpy(&high, nonce + sizeof low, sizeof high);
  return _mm_set_epi64x((long long)high, (long long)low);
}

INLINE __m128i first_key(const gcm_key *key) {
  return _mm_load_si128((const __m128i *)(const void *)key->round_keys[0]);
}

INLINE __m128i crypt_page(const gcm_key *key, unsigned rounds, int seal, const eb_gcm_page *page, __m128i mask) {
  PIN(); /* keeps round keys from being held, and spilled, across pages */
  cipher c = {.key = key,
              .is_page = 1,
              .page_counters = gcm_page_counters[0],
              .base = vec_broadcast(_mm_xor_si128(nonce_block(page->nonce), first_key(key)))};
  return crypt(&c, rounds, seal, mask, page->aad, EB_GCM_PAGE_AAD_SIZE, page->in, page->out, EB_GCM_PAGE_SIZE);
}

/* What the tags of GCM_LANES pages are masked with, for the price of one. */
typedef struct {
  _Alignas(VEC_BYTES) __m128i of[GCM_LANES];
} tag_masks;

INLINE void make_masks(const gcm_key *key, unsigned rounds, const eb_gcm_page *pages, size_t count, tag_masks *masks) {
  for (size_t i = 0; i < GCM_LANES; i++) {
    masks->of[i] = _mm_or_si128(nonce_block(pages[i < count ? i : 0].nonce), _mm_set_epi32(1 << 24, 0, 0, 0));
  }
  vec s = vec_xor(vec_load(masks->of), round_key(key, 0));
  for (unsigned r = 1; r < rounds; r++) {
    s = vec_aesenc(s, round_key(key, r));
  }
  vec_store(masks->of, vec_aesenclast(s, round_key(key, rounds)));
}

INLINE void seal_pages(const gcm_key *key, unsigned rounds, const eb_gcm_page *pages, size_t count) {
  tag_masks masks;
  for (size_t i = 0; i < count; i++) {
    if (i % GCM_LANES == 0) {
      make_masks(key, rounds, pages + i, count - i, &masks);
    }
    _mm_storeu_si128((__m128i *)(void *)pages[i].tag,
                     crypt_page(key, rounds, 1, &pages[i], masks.of[i % GCM_LANES]));
  }
}

INLINE size_t open_pages(const gcm_key *key, unsigned rounds, const eb_gcm_page *pages, size_t count) {
  tag_masks masks;
  for (size_t i = 0; i < count; i++) {
    if (i % GCM_LANES == 0) {
      make_masks(key, rounds, pages + i, count - i, &masks);
    }
    if (!tag_matches(crypt_page(key, rounds, 0, &pages[i], masks.of[i % GCM_LANES]), pages[i].tag)) {
      return i;
    }
  }
  return count;
}

/* The pre-counter block, byte-reversed. SP 800-38D 7.1: a 96-bit nonce is its head, any other is hashed. */
INLINE __m128i message_j0(const gcm_key *key, const eb_gcm_message *m) {
  if (m->nonce_len == EB_GCM_NONCE_SIZE) {
    return _mm_or_si128(reverse_block(nonce_block(m->nonce)), _mm_set_epi32(0, 0, 0, 1));
  }
  const __m128i sum = hash_bytes(key, _mm_setzero_si128(), m->nonce, m->nonce_len);
  hasher h;
  begin_hash(&h, key, sum, 0, 1);
  return finish_hash(&h, key, 0, m->nonce_len);
}

INLINE __m128i crypt_message(const gcm_key *key, int seal, const eb_gcm_message *m) {
  const __m128i j0 = message_j0(key, m);
  const __m128i mask = encrypt_block(key, key->rounds, reverse_block(j0));
  cipher c = {.key = key,
              .base = vec_broadcast(first_key(key)),
              .counters = vec_add32(vec_broadcast(j0), vec_lane_numbers())}; /* the data begins at j0 + 1 */
  return crypt(&c, key->rounds, seal, mask, m->aad, m->aad_len, m->in, m->out, m->len);
}

#ifndef GCM_SEAL_PAGES_256
#define GCM_SEAL_PAGES_256(key, workspace, pages, count) ((void)(workspace), seal_pages(key, 14, pages, count))
#define GCM_OPEN_PAGES_256(key, workspace, pages, count) ((void)(workspace), open_pages(key, 14, pages, count))
#endif

/* ---- entry points ------------------------------------------------------------------------------- */

static void ops_pages_seal(const gcm_key *key, void *workspace, const eb_gcm_page *pages, size_t count) {
  if (key->rounds == 14) {
    GCM_SEAL_PAGES_256(key, workspace, pages, count);
  } else {
    seal_pages(key, 10, pages, count);
  }
  vec_wipe_registers();
}

static size_t ops_pages_open(const gcm_key *key, void *workspace, const eb_gcm_page *pages, size_t count) {
  const size_t opened =
      key->rounds == 14 ? GCM_OPEN_PAGES_256(key, workspace, pages, count) : open_pages(key, 10, pages, count);
  vec_wipe_registers();
  return opened;
}

static void ops_message_seal(const gcm_key *key, const eb_gcm_message *message) {
  _mm_storeu_si128((__m128i *)(void *)message->tag, crypt_message(key, 1, message));
  vec_wipe_registers();
}

static int ops_message_open(const gcm_key *key, const eb_gcm_message *message) {
  const int verified = tag_matches(crypt_message(key, 0, message), message->tag);
  vec_wipe_registers();
  return verified;
}

const gcm_kernel_ops GCM_OPS = {ops_pages_seal, ops_pages_open, ops_message_seal, ops_message_open};
