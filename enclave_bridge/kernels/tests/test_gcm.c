/* Every kernel this CPU supports against OpenSSL: lengths, alignments, batches, refusals.
 * Usage: test_gcm [NAME ...]   runs the named tests, or all. */
#define _GNU_SOURCE
#include "eb_gcm_kernel.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ROOM (64u * 4096u)
#define CHECK(condition) \
  do { \
    if (!(condition)) { \
      (void)fprintf(stderr, "%s:%d: %s [%s]\n", __FILE__, __LINE__, #condition, context); \
      exit(1); \
    } \
  } while (0)

static char context[128] = "";

/* A buffer whose end is the end of the mapped memory: one byte too far is a fault. */
static uint8_t *guarded(size_t len) {
  const size_t whole = (len + 4095) / 4096 * 4096;
  uint8_t *base = mmap(NULL, whole + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(base != MAP_FAILED && mprotect(base + whole, 4096, PROT_NONE) == 0);
  return base + whole - len;
}

static uint64_t random_state = 88172645463325252u; /* fixed: a failure can be repeated */

static void random_bytes(uint8_t *out, size_t len) {
  for (size_t i = 0; i < len; i++) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    out[i] = (uint8_t)(random_state >> 32);
  }
}

static void openssl_seal(const uint8_t *key, size_t key_len, const uint8_t *nonce, size_t nonce_len,
                         const uint8_t *aad, size_t aad_len, const uint8_t *in, size_t len, uint8_t *out,
                         uint8_t *tag) {
  static EVP_CIPHER_CTX *ctx;
  int n = 0;
  uint8_t rest[16];
  if (ctx == NULL) {
    ctx = EVP_CIPHER_CTX_new();
  }
  CHECK(EVP_EncryptInit_ex(ctx, key_len == 16 ? EVP_aes_128_gcm() : EVP_aes_256_gcm(), NULL, NULL, NULL) == 1);
  CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_IVLEN, (int)nonce_len, NULL) == 1);
  CHECK(EVP_EncryptInit_ex(ctx, NULL, NULL, key, nonce) == 1);
  CHECK(aad_len == 0 || EVP_EncryptUpdate(ctx, NULL, &n, aad, (int)aad_len) == 1);
  CHECK(len == 0 || EVP_EncryptUpdate(ctx, out, &n, in, (int)len) == 1);
  CHECK(EVP_EncryptFinal_ex(ctx, rest, &n) == 1);
  CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, tag) == 1);
}

typedef struct {
  eb_gcm_kernel kernel;
  size_t key_len;
  uint8_t key[32];
  eb_gcm_key *ctx;
} subject;

static subject subjects[6];
static eb_gcm_workspace workspace; /* of all of them in turn */
static size_t subject_count;

static void make_subjects(void) {
  for (int kernel = EB_GCM_KERNEL_AESNI; kernel <= EB_GCM_KERNEL_AVX512; kernel++) {
    for (size_t key_len = 16; key_len <= 32 && eb_gcm_kernel_supported((eb_gcm_kernel)kernel); key_len += 16) {
      subject *s = &subjects[subject_count++];
      s->kernel = (eb_gcm_kernel)kernel;
      s->key_len = key_len;
      random_bytes(s->key, sizeof s->key);
      s->ctx = aligned_alloc(EB_GCM_KEY_ALIGNMENT, sizeof *s->ctx);
      CHECK(s->ctx != NULL && eb_gcm_key_init(s->ctx, s->kernel, s->key, key_len) == EB_GCM_OK);
    }
  }
}

static int all_equal(const uint8_t *bytes, size_t len, uint8_t value) {
  for (size_t i = 0; i < len; i++) {
    if (bytes[i] != value) {
      return 0;
    }
  }
  return 1;
}

/* Seals and opens one message, in place or not, against OpenSSL, at the very end of mapped memory. */
static void check_message(const subject *s, size_t len, size_t aad_len, size_t nonce_len, int in_place) {
  static uint8_t *plain_end, *expected, *work_end, *aad_end;
  if (plain_end == NULL) {
    plain_end = guarded(ROOM) + ROOM;
    work_end = guarded(ROOM) + ROOM;
    aad_end = guarded(ROOM) + ROOM;
    expected = malloc(ROOM);
    random_bytes(plain_end - ROOM, ROOM);
    random_bytes(aad_end - ROOM, ROOM);
  }
  uint8_t *plain = plain_end - len;
  uint8_t *work = work_end - len;
  uint8_t nonce[256];
  uint8_t tag[16];
  uint8_t expected_tag[16];
  (void)snprintf(context, sizeof context, "%s-%zu len %zu aad %zu nonce %zu in place %d", eb_gcm_kernel_name(s->kernel),
                 s->key_len * 8, len, aad_len, nonce_len, in_place);
  random_bytes(nonce, nonce_len);
  openssl_seal(s->key, s->key_len, nonce, nonce_len, aad_end - aad_len, aad_len, plain, len, expected, expected_tag);
  if (in_place) {
    memcpy(work, plain, len);
  }
  eb_gcm_message m = {nonce, nonce_len, aad_end - aad_len, aad_len, in_place ? work : plain, work, len, tag};
  CHECK(eb_gcm_message_seal(s->ctx, &m) == EB_GCM_OK);
  CHECK(memcmp(work, expected, len) == 0);
  CHECK(memcmp(tag, expected_tag, sizeof tag) == 0);
  m.in = in_place ? work : expected;
  CHECK(eb_gcm_message_open(s->ctx, &m) == EB_GCM_OK);
  CHECK(memcmp(work, plain, len) == 0);
  tag[len % 16] ^= (uint8_t)(1u << (len % 8));
  m.in = expected;
  CHECK(eb_gcm_message_open(s->ctx, &m) == EB_GCM_ERR_TAG);
  CHECK(all_equal(work, len, 0));
}

static void test_message_of_every_length_in_blocks(void) {
  for (size_t i = 0; i < subject_count; i++) {
    for (size_t blocks = 0; blocks <= 300; blocks++) {
      check_message(&subjects[i], blocks * 16, blocks % 80, 12, blocks % 2);
      check_message(&subjects[i], blocks * 16, 48, 12, 1 - (int)(blocks % 2));
    }
  }
}

static void test_message_of_every_length_in_bytes_near_block_edges(void) {
  for (size_t i = 0; i < subject_count; i++) {
    for (size_t len = 0; len <= 1100; len++) {
      check_message(&subjects[i], len, 20, 12, len % 2);
    }
    for (size_t blocks = 69; blocks <= 300; blocks++) {
      check_message(&subjects[i], blocks * 16 - 1, 48, 12, blocks % 2);
      check_message(&subjects[i], blocks * 16 + 1, 48, 12, blocks % 2);
    }
  }
}

static void test_message_with_aad_of_every_length(void) {
  for (size_t i = 0; i < subject_count; i++) {
    for (size_t aad_len = 0; aad_len <= 1200; aad_len++) {
      check_message(&subjects[i], 33, aad_len, 12, 0);
    }
    check_message(&subjects[i], 4096, 100000, 12, 0);
  }
}

static void test_message_with_nonce_of_every_length(void) {
  for (size_t i = 0; i < subject_count; i++) {
    for (size_t nonce_len = 1; nonce_len <= 128; nonce_len++) { /* OpenSSL takes no longer ones */
      check_message(&subjects[i], 600, 13, nonce_len, 0);
    }
  }
}

/* ---- pages --------------------------------------------------------------------------------- */

typedef struct {
  eb_gcm_page pages[64];
  uint8_t *plain;    /* guarded, 64 pages and 64 bytes */
  uint8_t *work;     /* likewise */
  uint8_t *aad;      /* 64 * 48 */
  uint8_t *tags;     /* 64 * 16 */
  uint8_t *expected; /* 64 pages, then tags */
} batch;

static batch *make_batch(void) {
  static batch b;
  if (b.plain == NULL) {
    b.plain = guarded(ROOM + 64);
    b.work = guarded(ROOM + 64);
    b.aad = guarded(64 * 48);
    b.tags = guarded(64 * 16);
    b.expected = malloc(ROOM + 64 * 16);
  }
  random_bytes(b.plain, ROOM + 64);
  random_bytes(b.aad, 64 * 48);
  return &b;
}

/* Which bytes of nonces differ within a batch: all, one, or those of consecutive sequence numbers. */
enum { ALL = -1, SEQUENCE = EB_GCM_NONCE_SIZE };
static int differing = ALL;

static void next_nonce(batch *b, size_t i) {
  uint8_t *nonce = b->pages[i].nonce;
  if (differing == ALL || i == 0) {
    random_bytes(nonce, EB_GCM_NONCE_SIZE);
    if (differing == SEQUENCE) {
      nonce[EB_GCM_NONCE_SIZE - 1] = 0xe0; /* the next byte changes within the batch */
    }
    return;
  }
  memcpy(nonce, b->pages[i - 1].nonce, EB_GCM_NONCE_SIZE);
  if (differing != SEQUENCE) {
    random_bytes(&nonce[differing], 1);
    return;
  }
  for (size_t k = EB_GCM_NONCE_SIZE; k-- > 4 && ++nonce[k] == 0;) {
  }
}

static void lay_out(batch *b, const subject *s, size_t count, size_t in_offset, size_t out_offset, int in_place) {
  memset(b->work, 0xa5, ROOM + 64);
  for (size_t i = 0; i < count; i++) {
    eb_gcm_page *page = &b->pages[i];
    next_nonce(b, i);
    page->aad = b->aad + i * 48;
    page->out = b->work + out_offset + i * 4096;
    page->in = in_place ? page->out : b->plain + in_offset + i * 4096;
    page->tag = b->tags + i * 16;
    openssl_seal(s->key, s->key_len, page->nonce, 12, page->aad, 48, b->plain + in_offset + i * 4096, 4096,
                 b->expected + i * 4096, b->expected + ROOM + i * 16);
    if (in_place) {
      memcpy(page->out, b->plain + in_offset + i * 4096, 4096);
    }
  }
}

static void check_batch(const subject *s, size_t count, size_t in_offset, size_t out_offset, int in_place) {
  batch *b = make_batch();
  size_t opened = 0;
  (void)snprintf(context, sizeof context, "%s-%zu pages %zu offsets %zu %zu in place %d", eb_gcm_kernel_name(s->kernel),
                 s->key_len * 8, count, in_offset, out_offset, in_place);
  lay_out(b, s, count, in_offset, out_offset, in_place);
  CHECK(eb_gcm_pages_seal(s->ctx, &workspace, b->pages, count) == EB_GCM_OK);
  CHECK(memcmp(b->work + out_offset, b->expected, count * 4096) == 0);
  CHECK(memcmp(b->tags, b->expected + ROOM, count * 16) == 0);
  CHECK(all_equal(b->work, out_offset, 0xa5));
  CHECK(all_equal(b->work + out_offset + count * 4096, ROOM + 64 - out_offset - count * 4096, 0xa5));
  for (size_t i = 0; i < count && !in_place; i++) {
    b->pages[i].in = b->expected + i * 4096;
  }
  CHECK(eb_gcm_pages_open(s->ctx, &workspace, b->pages, count, &opened) == EB_GCM_OK);
  CHECK(opened == count);
  CHECK(memcmp(b->work + out_offset, b->plain + in_offset, count * 4096) == 0);
}

static void test_pages_at_every_alignment(void) {
  for (size_t i = 0; i < subject_count; i++) {
    for (size_t offset = 0; offset < 64; offset++) {
      check_batch(&subjects[i], 2, offset, 63 - offset, 0);
      check_batch(&subjects[i], 1, 0, offset, 1);
      check_batch(&subjects[i], 1, offset, 0, 0);
    }
    check_batch(&subjects[i], 64, 64, 64, 0); /* to the last mapped byte */
    check_batch(&subjects[i], 64, 64, 64, 1);
  }
}

static void test_pages_in_batches_of_every_size(void) {
  for (size_t i = 0; i < subject_count; i++) {
    for (size_t count = 0; count <= 64; count++) {
      check_batch(&subjects[i], count, 0, 0, count % 2);
      check_batch(&subjects[i], count, 0, 48, 1 - (int)(count % 2));
    }
  }
}

static void test_pages_whose_nonces_differ_in_part(void) {
  for (size_t i = 0; i < subject_count; i++) {
    for (differing = 0; differing <= SEQUENCE; differing++) {
      check_batch(&subjects[i], 64, 0, 48, 0);
      check_batch(&subjects[i], 64, 0, 48, 1);
    }
  }
  differing = ALL;
}

/* Parts of a batch, under keys that take turns and in both directions: what the workspace keeps of one call must
 * not count in another key's. */
static void test_pages_in_parts_under_keys_in_turn(void) {
  enum { PAGES = 20 };
  differing = SEQUENCE;
  for (size_t i = 0; i < subject_count; i++) {
    const subject *s = &subjects[i];
    static eb_gcm_key other;
    static uint8_t key[32]; /* where nobody looks for what the kernels leave behind */
    uint8_t expected[4096], tag[16];
    batch *b = make_batch();
    lay_out(b, s, PAGES, 0, 0, 0);
    (void)snprintf(context, sizeof context, "%s-%zu in parts", eb_gcm_kernel_name(s->kernel), s->key_len * 8);
    random_bytes(key, sizeof key);
    memcpy(key, s->key, 16); /* the second round key alone makes the difference */
    CHECK(eb_gcm_key_init(&other, s->kernel, key, s->key_len) == EB_GCM_OK);
    for (size_t done = 0, part = 1; done < PAGES; done += part, part = part % 4 + 1) {
      part = done + part < PAGES ? part : PAGES - done;
      eb_gcm_page *pages = b->pages + done;
      eb_gcm_page mine = pages[0];
      size_t opened = 0;
      if (part % 2 == 1) { /* the same nonce under the other key just before */
        CHECK(eb_gcm_pages_seal(&other, &workspace, &mine, 1) == EB_GCM_OK);
        openssl_seal(key, s->key_len, mine.nonce, 12, mine.aad, 48, mine.in, 4096, expected, tag);
        CHECK(memcmp(mine.out, expected, 4096) == 0 && memcmp(mine.tag, tag, 16) == 0);
      }
      CHECK(eb_gcm_pages_seal(s->ctx, &workspace, pages, part) == EB_GCM_OK);
      CHECK(memcmp(pages[0].out, b->expected + done * 4096, part * 4096) == 0);
      CHECK(memcmp(pages[0].tag, b->expected + ROOM + done * 16, part * 16) == 0);
      for (size_t p = 0; p < part; p++) pages[p].in = pages[p].out;
      CHECK(eb_gcm_pages_open(s->ctx, &workspace, pages, part, &opened) == EB_GCM_OK && opened == part);
      CHECK(memcmp(pages[0].out, b->plain + done * 4096, part * 4096) == 0);
    }
    eb_gcm_key_wipe(&other);
  }
  differing = ALL;
}

static void test_pages_open_when_tampered_then_stops_there(void) {
  for (size_t i = 0; i < subject_count; i++) {
    const subject *s = &subjects[i];
    batch *b = make_batch();
    lay_out(b, s, 4, 0, 0, 0);
    CHECK(eb_gcm_pages_seal(s->ctx, &workspace, b->pages, 4) == EB_GCM_OK);
    for (size_t bit = 0; bit < 3 * 8 * 48; bit++) {
      const size_t bad = bit % 4;
      uint8_t *target = NULL;
      (void)snprintf(context, sizeof context, "%s tamper %zu page %zu", eb_gcm_kernel_name(s->kernel), bit, bad);
      if (bit < 128) {
        target = &b->tags[bad * 16 + bit / 8];
      } else if (bit < 128 + 8 * 48) {
        target = &b->aad[bad * 48 + (bit - 128) / 8];
      } else if (bit < 128 + 8 * 48 + 8 * 12) {
        target = &b->pages[bad].nonce[(bit - 128 - 8 * 48) / 8];
      } else {
        target = &b->expected[bad * 4096 + (bit * 2654435761u) % 4096];
      }
      memset(b->work, 0xa5, 4 * 4096);
      for (size_t p = 0; p < 4; p++) {
        b->pages[p].in = b->expected + p * 4096;
      }
      *target ^= (uint8_t)(1u << (bit % 8));
      size_t opened = 99;
      CHECK(eb_gcm_pages_open(s->ctx, &workspace, b->pages, 4, &opened) == EB_GCM_ERR_TAG);
      CHECK(opened == bad);
      CHECK(memcmp(b->work, b->plain, bad * 4096) == 0);
      CHECK(all_equal(b->work + bad * 4096, 4096, 0));
      CHECK(all_equal(b->work + (bad + 1) * 4096, (3 - bad) * 4096, 0xa5));
      *target ^= (uint8_t)(1u << (bit % 8));
    }
  }
}

/* A host that writes to shared memory while it is being written: the tag must not notice. */
typedef struct {
  atomic_int stop;
  volatile uint8_t *target;
  size_t len;
} vandal;

static void *vandalise(void *argument) {
  vandal *v = argument;
  while (!atomic_load(&v->stop)) {
    for (size_t i = 0; i < v->len; i += 61) {
      v->target[i] = (uint8_t)(v->target[i] ^ 0xff);
    }
  }
  return NULL;
}

static void test_pages_seal_when_output_is_rewritten_meanwhile_then_tags_stand(void) {
  for (size_t i = 0; i < subject_count; i++) {
    const subject *s = &subjects[i];
    batch *b = make_batch();
    pthread_t thread;
    (void)snprintf(context, sizeof context, "%s", eb_gcm_kernel_name(s->kernel));
    lay_out(b, s, 16, 0, 0, 0);
    vandal v = {.target = b->work, .len = 16 * 4096};
    CHECK(pthread_create(&thread, NULL, vandalise, &v) == 0);
    for (int round = 0; round < 200; round++) {
      CHECK(eb_gcm_pages_seal(s->ctx, &workspace, b->pages, 16) == EB_GCM_OK);
      CHECK(memcmp(b->tags, b->expected + ROOM, 16 * 16) == 0);
    }
    atomic_store(&v.stop, 1);
    CHECK(pthread_join(thread, NULL) == 0);
  }
}

/* The same on the way in: what verifies is what was sealed, however the input changes meanwhile. */
static void test_pages_open_when_input_is_rewritten_meanwhile_then_never_wrong_plaintext(void) {
  for (size_t i = 0; i < subject_count; i++) {
    const subject *s = &subjects[i];
    batch *b = make_batch();
    pthread_t thread;
    (void)snprintf(context, sizeof context, "%s", eb_gcm_kernel_name(s->kernel));
    lay_out(b, s, 1, 0, 0, 0);
    memcpy(b->tags, b->expected + ROOM, 16);
    b->pages[0].in = b->expected;
    vandal v = {.target = b->expected + 2048, .len = 1};
    CHECK(pthread_create(&thread, NULL, vandalise, &v) == 0);
    size_t good = 0;
    for (int round = 0; round < 20000; round++) {
      if (eb_gcm_pages_open(s->ctx, &workspace, b->pages, 1, NULL) == EB_GCM_OK) {
        CHECK(memcmp(b->work, b->plain, 4096) == 0);
        good++;
      } else {
        CHECK(all_equal(b->work, 4096, 0));
      }
    }
    atomic_store(&v.stop, 1);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(good > 0);
  }
}

/* ---- arguments, secrets, self-test ----------------------------------------------------------- */

static void test_bad_arguments_are_refused(void) {
  static eb_gcm_key ctx;
  uint8_t key[32] = {0};
  uint8_t bytes[4096] = {0};
  const subject *s = &subjects[0];
  context[0] = '\0';
  CHECK(eb_gcm_key_init(NULL, s->kernel, key, 32) == EB_GCM_ERR_ARGUMENT);
  CHECK(eb_gcm_key_init((eb_gcm_key *)(void *)(bytes + 1 + (64 - (uintptr_t)bytes % 64)), s->kernel, key, 32) ==
        EB_GCM_ERR_ARGUMENT);
  CHECK(eb_gcm_key_init(&ctx, s->kernel, NULL, 32) == EB_GCM_ERR_ARGUMENT);
  CHECK(eb_gcm_key_init(&ctx, s->kernel, key, 24) == EB_GCM_ERR_ARGUMENT);
  CHECK(eb_gcm_key_init(&ctx, EB_GCM_KERNEL_NONE, key, 32) == EB_GCM_ERR_KERNEL);
  CHECK(eb_gcm_key_init(&ctx, (eb_gcm_kernel)77, key, 32) == EB_GCM_ERR_KERNEL);
  eb_gcm_page page = {.aad = bytes, .in = bytes, .out = bytes, .tag = bytes};
  size_t opened = 9;
  CHECK(eb_gcm_pages_seal(&ctx, &workspace, &page, 1) == EB_GCM_ERR_KEY);
  CHECK(eb_gcm_pages_open(&ctx, &workspace, &page, 1, &opened) == EB_GCM_ERR_KEY && opened == 0);
  CHECK(eb_gcm_key_init(&ctx, s->kernel, key, 32) == EB_GCM_OK);
  CHECK(eb_gcm_pages_seal(&ctx, &workspace, NULL, 0) == EB_GCM_OK);
  CHECK(eb_gcm_pages_open(&ctx, &workspace, NULL, 0, NULL) == EB_GCM_OK);
  CHECK(eb_gcm_pages_seal(&ctx, &workspace, NULL, 1) == EB_GCM_ERR_ARGUMENT);
  CHECK(eb_gcm_pages_seal(&ctx, NULL, &page, 1) == EB_GCM_ERR_ARGUMENT);
  CHECK(eb_gcm_pages_open(&ctx, NULL, &page, 1, &opened) == EB_GCM_ERR_ARGUMENT && opened == 0);
  CHECK(eb_gcm_pages_seal(&ctx, (eb_gcm_workspace *)(void *)(workspace.opaque + 1), &page, 1) == EB_GCM_ERR_ARGUMENT);
  for (int field = 0; field < 4; field++) {
    eb_gcm_page pages[2] = {page, page};
    pages[1].aad = field == 0 ? NULL : bytes;
    pages[1].in = field == 1 ? NULL : bytes;
    pages[1].out = field == 2 ? NULL : bytes;
    pages[1].tag = field == 3 ? NULL : bytes;
    CHECK(eb_gcm_pages_seal(&ctx, &workspace, pages, 2) == EB_GCM_ERR_ARGUMENT);
    CHECK(eb_gcm_pages_open(&ctx, &workspace, pages, 2, &opened) == EB_GCM_ERR_ARGUMENT);
    CHECK(all_equal(bytes, sizeof bytes, 0));
  }
  const eb_gcm_message good = {bytes, 12, NULL, 0, NULL, NULL, 0, bytes + 64};
  eb_gcm_message m = good;
  CHECK(eb_gcm_message_seal(&ctx, NULL) == EB_GCM_ERR_ARGUMENT);
  m.nonce_len = 0;
  CHECK(eb_gcm_message_seal(&ctx, &m) == EB_GCM_ERR_ARGUMENT);
  m = good;
  m.len = 1;
  CHECK(eb_gcm_message_open(&ctx, &m) == EB_GCM_ERR_ARGUMENT);
  m = good;
  m.in = m.out = bytes;
  m.len = EB_GCM_MAX_MESSAGE + 1;
  CHECK(eb_gcm_message_seal(&ctx, &m) == EB_GCM_ERR_ARGUMENT);
  m = good;
  m.aad_len = 1;
  CHECK(eb_gcm_message_seal(&ctx, &m) == EB_GCM_ERR_ARGUMENT);
  eb_gcm_key_wipe(&ctx);
  eb_gcm_key_wipe(NULL);
  CHECK(all_equal(ctx.opaque, sizeof ctx.opaque, 0));
  eb_gcm_workspace_wipe(&workspace);
  eb_gcm_workspace_wipe(NULL);
  CHECK(all_equal(workspace.opaque, sizeof workspace.opaque, 0));
  CHECK(eb_gcm_message_seal(&ctx, &good) == EB_GCM_ERR_KEY);
  CHECK(eb_gcm_message_open(&ctx, &good) == EB_GCM_ERR_KEY);
}

static void test_names_and_choice(void) {
  CHECK(strcmp(eb_gcm_kernel_name(EB_GCM_KERNEL_NONE), "none") == 0);
  CHECK(strcmp(eb_gcm_kernel_name(EB_GCM_KERNEL_AESNI), "aesni") == 0);
  CHECK(strcmp(eb_gcm_kernel_name(EB_GCM_KERNEL_VAES256), "vaes256") == 0);
  CHECK(strcmp(eb_gcm_kernel_name(EB_GCM_KERNEL_AVX512), "avx512") == 0);
  CHECK(strcmp(eb_gcm_kernel_name((eb_gcm_kernel)77), "unknown") == 0);
  CHECK(!eb_gcm_kernel_supported(EB_GCM_KERNEL_NONE) && !eb_gcm_kernel_supported((eb_gcm_kernel)77));
  const eb_gcm_kernel best = eb_gcm_kernel_best();
  CHECK(best == EB_GCM_KERNEL_NONE || eb_gcm_kernel_supported(best));
  for (int better = (int)best + 1; better <= EB_GCM_KERNEL_AVX512; better++) {
    CHECK(!eb_gcm_kernel_supported((eb_gcm_kernel)better));
  }
}

static void test_self_test_passes(void) {
  for (size_t i = 0; i < subject_count; i++) {
    CHECK(eb_gcm_kernel_self_test(subjects[i].kernel) == EB_GCM_OK);
  }
  CHECK(eb_gcm_kernel_self_test(EB_GCM_KERNEL_NONE) == EB_GCM_ERR_KERNEL);
}

#if !defined(EB_SANITIZE_ADDRESS)
#define LOOK_AT_STACK 1
#else
#define LOOK_AT_STACK 0 /* ASan's frames are not where they seem */
#endif

/* Looks for 16-byte pieces of the expanded key in 32 KiB of stack that are no longer in use. */
__attribute__((noinline)) static size_t traces_on_stack(const uint8_t *key, size_t len) {
  volatile uint8_t here = 0;
  const volatile uint8_t *top = &here;
  size_t found = 0;
  for (size_t depth = 256; depth < 32768; depth += 16) {
    const volatile uint8_t *at = (const volatile uint8_t *)((uintptr_t)(top - depth) & ~(uintptr_t)15);
    for (size_t piece = 0; piece + 16 <= len; piece += 16) {
      size_t same = 0;
      size_t nonzero = 0;
      for (size_t k = 0; k < 16; k++) {
        same += at[k] == key[piece + k];
        nonzero += key[piece + k] != 0;
      }
      found += same == 16 && nonzero > 8;
    }
  }
  return found;
}

static void test_no_part_of_the_key_stays_on_the_stack(void) {
  for (size_t i = 0; i < subject_count && LOOK_AT_STACK; i++) {
    const subject *s = &subjects[i];
    batch *b = make_batch();
    static eb_gcm_key ctx;
    (void)snprintf(context, sizeof context, "%s", eb_gcm_kernel_name(s->kernel));
    lay_out(b, s, 2, 0, 0, 0);
    CHECK(eb_gcm_key_init(&ctx, s->kernel, s->key, s->key_len) == EB_GCM_OK);
    CHECK(traces_on_stack(ctx.opaque, sizeof ctx.opaque) == 0);
    CHECK(eb_gcm_pages_seal(&ctx, &workspace, b->pages, 2) == EB_GCM_OK);
    CHECK(traces_on_stack(ctx.opaque, sizeof ctx.opaque) == 0);
    CHECK(traces_on_stack(b->plain, 4096) == 0);
  }
}

static const struct {
  const char *name;
  void (*run)(void);
} tests[] = {
#define TEST(name) {#name, test_##name}
    TEST(names_and_choice),
    TEST(self_test_passes),
    TEST(bad_arguments_are_refused),
    TEST(message_of_every_length_in_blocks),
    TEST(message_of_every_length_in_bytes_near_block_edges),
    TEST(message_with_aad_of_every_length),
    TEST(message_with_nonce_of_every_length),
    TEST(pages_at_every_alignment),
    TEST(pages_in_batches_of_every_size),
    TEST(pages_whose_nonces_differ_in_part),
    TEST(pages_in_parts_under_keys_in_turn),
    TEST(pages_open_when_tampered_then_stops_there),
    TEST(pages_seal_when_output_is_rewritten_meanwhile_then_tags_stand),
    TEST(pages_open_when_input_is_rewritten_meanwhile_then_never_wrong_plaintext),
    TEST(no_part_of_the_key_stays_on_the_stack),
};

int main(int argc, char **argv) {
  size_t passed = 0;
  make_subjects();
  for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
    int wanted = argc == 1;
    for (int k = 1; k < argc; k++) {
      wanted |= strcmp(argv[k], tests[i].name) == 0;
    }
    if (wanted) {
      context[0] = '\0';
      tests[i].run();
      passed++;
      printf("ok %s\n", tests[i].name);
    }
  }
  printf("%zu passed, 0 failed (%zu kernels and key sizes)\n", passed, subject_count);
  return passed == 0;
}
