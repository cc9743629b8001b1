/* Power-on self-test. The answers were made with an independent implementation (OpenSSL by way of
 * pyca/cryptography) from the patterns below. A tag vouches for the ciphertext as it was computed,
 * opening what was stored vouches for the stores. */
#include "eb_gcm_kernel.h"

#include <string.h>

#define MESSAGE_SIZE 1000u
#define MESSAGE_AAD_SIZE 20u

typedef struct {
  size_t key_len;
  uint8_t page_tag[EB_GCM_TAG_SIZE];
  uint8_t message_tag[EB_GCM_TAG_SIZE];
} known_answer;

static const known_answer known_answers[] = {
    {16,
     {0x66, 0xb4, 0x6c, 0x04, 0x1d, 0x06, 0x78, 0xfc, 0x4a, 0xa0, 0xb5, 0xe8, 0xb3, 0x4f, 0xa3, 0xa1},
     {0x72, 0x9e, 0x07, 0x43, 0x55, 0xa9, 0x22, 0x0d, 0x96, 0x08, 0x22, 0x6a, 0xf4, 0x3d, 0xa4, 0xe2}},
    {32,
     {0x3e, 0x59, 0x62, 0xec, 0x9d, 0xe8, 0x9b, 0xb3, 0x1c, 0xab, 0x09, 0xe1, 0x07, 0x70, 0xa4, 0x35},
     {0xe9, 0x15, 0xcb, 0x3e, 0x21, 0xed, 0x53, 0x61, 0xd7, 0x34, 0xad, 0x42, 0x3f, 0xb1, 0x77, 0x69}},
};

typedef struct {
  uint8_t key[32];
  uint8_t nonce[EB_GCM_NONCE_SIZE];
  uint8_t aad[EB_GCM_PAGE_AAD_SIZE];
  uint8_t plain[EB_GCM_PAGE_SIZE];
  uint8_t work[EB_GCM_PAGE_SIZE];
  uint8_t tag[EB_GCM_TAG_SIZE];
} patterns;

static void fill(uint8_t *out, size_t len, unsigned seed) {
  for (size_t i = 0; i < len; i++) {
    out[i] = (uint8_t)(i * 7 + seed + (i >> 8));
  }
}

static int all_zero(const uint8_t *bytes, size_t len) {
  uint8_t any = 0;
  for (size_t i = 0; i < len; i++) {
    any |= bytes[i];
  }
  return any == 0;
}

static int page_works(const eb_gcm_key *ctx, eb_gcm_workspace *workspace, patterns *p, const uint8_t *expected) {
  eb_gcm_page page = {.aad = p->aad, .in = p->plain, .out = p->work, .tag = p->tag};
  size_t opened = 0;
  memcpy(page.nonce, p->nonce, sizeof page.nonce);
  if (eb_gcm_pages_seal(ctx, workspace, &page, 1) != EB_GCM_OK || memcmp(p->tag, expected, sizeof p->tag) != 0) {
    return 0;
  }
  page.in = p->work; /* in place */
  if (eb_gcm_pages_open(ctx, workspace, &page, 1, &opened) != EB_GCM_OK || opened != 1 ||
      memcmp(p->work, p->plain, sizeof p->work) != 0) {
    return 0;
  }
  p->tag[15] ^= 1;
  page.in = p->plain;
  return eb_gcm_pages_open(ctx, workspace, &page, 1, &opened) == EB_GCM_ERR_TAG && opened == 0 &&
         all_zero(p->work, sizeof p->work);
}

static int message_works(const eb_gcm_key *ctx, patterns *p, const uint8_t *expected) {
  eb_gcm_message message = {.nonce = p->nonce,
                            .nonce_len = sizeof p->nonce,
                            .aad = p->aad,
                            .aad_len = MESSAGE_AAD_SIZE,
                            .in = p->plain,
                            .out = p->work,
                            .len = MESSAGE_SIZE,
                            .tag = p->tag};
  if (eb_gcm_message_seal(ctx, &message) != EB_GCM_OK || memcmp(p->tag, expected, sizeof p->tag) != 0) {
    return 0;
  }
  message.in = p->work;
  if (eb_gcm_message_open(ctx, &message) != EB_GCM_OK || memcmp(p->work, p->plain, MESSAGE_SIZE) != 0) {
    return 0;
  }
  p->tag[0] ^= 0x80;
  return eb_gcm_message_open(ctx, &message) == EB_GCM_ERR_TAG && all_zero(p->work, MESSAGE_SIZE);
}

eb_gcm_status eb_gcm_kernel_self_test(eb_gcm_kernel kernel) {
  if (!eb_gcm_kernel_supported(kernel)) {
    return EB_GCM_ERR_KERNEL;
  }
  eb_gcm_status status = EB_GCM_OK;
  eb_gcm_workspace workspace = {{0}};
  for (size_t i = 0; i < sizeof known_answers / sizeof known_answers[0]; i++) {
    const known_answer *known = &known_answers[i];
    eb_gcm_key ctx;
    patterns p;
    fill(p.key, sizeof p.key, 1);
    fill(p.nonce, sizeof p.nonce, 2);
    fill(p.aad, sizeof p.aad, 3);
    fill(p.plain, sizeof p.plain, 4);
    if (eb_gcm_key_init(&ctx, kernel, p.key, known->key_len) != EB_GCM_OK ||
        !page_works(&ctx, &workspace, &p, known->page_tag) || !message_works(&ctx, &p, known->message_tag)) {
      status = EB_GCM_ERR_SELF_TEST;
    }
    eb_gcm_key_wipe(&ctx);
  }
  eb_gcm_workspace_wipe(&workspace);
  return status;
}
