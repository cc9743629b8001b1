/*
 * AES-GCM by our own kernels (../kernels). The expanded key is in the session's secret memory, what
 * is made of it for a batch in the lane's, and nowhere else. They read each input byte once, into a register that both the hash and the cipher
 * use, and never read what they wrote: hence single_pass (see eb_gcm_kernel.h, and OPAQUE in
 * gcm_body.h, which keeps a compiler from loading it again).
 */
#include "eb_gcm_kernel.h"

#include <string.h>

#include "gcm.h"
#include "guard.h"

_Static_assert(sizeof(eb_gcm_key) <= EB_GCM_SECRET_SIZE, "a key fits its secret memory");
_Static_assert(sizeof(eb_gcm_workspace) == EB_GCM_WORK_SIZE, "a lane has the workspace");
_Static_assert(EB_GCM_PAGE_SIZE == EB_PAGE_SIZE && EB_GCM_PAGE_AAD_SIZE == EB_RECORD_HEADER_SIZE, "pages are pages");
_Static_assert(EB_GCM_NONCE_SIZE == EB_GCM_IV_SIZE && EB_GCM_TAG_SIZE == EB_TAG_SIZE, "so are nonces and tags");

static eb_gcm_key *key_of(const eb_gcm *gcm) { return (eb_gcm_key *)(void *)gcm->secret; }

static eb_gcm_workspace *workspace(uint8_t *work) { return (eb_gcm_workspace *)(void *)work; }

static eb_status setup(eb_gcm *gcm, size_t key_size, bool seal) {
  (void)gcm, (void)key_size, (void)seal; /* its room is `secret` */
  return EB_OK;
}

static eb_status expand(eb_gcm *gcm, eb_gcm_kernel kernel, const uint8_t *key, size_t key_size) {
  return eb_gcm_key_init(key_of(gcm), kernel, key, key_size) == EB_GCM_OK ? EB_OK : EB_ERR_CRYPTO;
}

static bool are_pages(size_t aad_len, size_t len) { return aad_len == EB_GCM_PAGE_AAD_SIZE && len == EB_GCM_PAGE_SIZE; }

static void as_pages(eb_gcm_page *pages, const eb_gcm_item *items, size_t n) {
  for (size_t i = 0; i < n; i++) {
    memcpy(pages[i].nonce, items[i].iv, EB_GCM_NONCE_SIZE);
    pages[i].aad = items[i].aad;
    pages[i].in = items[i].in;
    pages[i].out = items[i].out;
    pages[i].tag = items[i].tag;
  }
}

static eb_gcm_message as_message(const eb_gcm_item *item, size_t aad_len, size_t len) {
  return (eb_gcm_message){item->iv, EB_GCM_IV_SIZE, item->aad, aad_len, item->in, item->out, len, item->tag};
}

static eb_status seal(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len, size_t len) {
  eb_status status = EB_OK;
  eb_gcm_page pages[EB_LANE_PAGES];
  EB_ENSURE(n <= EB_LANE_PAGES, EB_ERR_ARGUMENT);
  if (are_pages(aad_len, len)) {
    as_pages(pages, items, n);
    EB_ENSURE(eb_gcm_pages_seal(key_of(gcm), workspace(work), pages, n) == EB_GCM_OK, EB_ERR_CRYPTO);
    goto done;
  }
  for (size_t i = 0; i < n; i++) {
    const eb_gcm_message message = as_message(&items[i], aad_len, len);
    EB_ENSURE(eb_gcm_message_seal(key_of(gcm), &message) == EB_GCM_OK, EB_ERR_CRYPTO);
  }
done:
  return status;
}

static eb_status open(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len, size_t len,
                      size_t *verified) {
  eb_status status = EB_OK;
  eb_gcm_status outcome = EB_GCM_OK;
  eb_gcm_page pages[EB_LANE_PAGES];
  *verified = 0;
  EB_ENSURE(n <= EB_LANE_PAGES, EB_ERR_ARGUMENT);
  if (are_pages(aad_len, len)) {
    as_pages(pages, items, n);
    outcome = eb_gcm_pages_open(key_of(gcm), workspace(work), pages, n, verified);
  } else {
    while (*verified < n && outcome == EB_GCM_OK) {
      const eb_gcm_message message = as_message(&items[*verified], aad_len, len);
      outcome = eb_gcm_message_open(key_of(gcm), &message);
      if (outcome == EB_GCM_OK) *verified += 1;
    }
  }
  EB_ENSURE(outcome == EB_GCM_OK || outcome == EB_GCM_ERR_TAG, EB_ERR_CRYPTO);
done:
  return status;
}

static void release(eb_gcm *gcm) { eb_gcm_key_wipe(key_of(gcm)); }

#define KERNEL(word, number)                                                                  \
  static bool word##_usable(void) { return eb_gcm_kernel_supported(number) == 1; }            \
  static eb_status word##_set_key(eb_gcm *gcm, const uint8_t *key, size_t key_size) {         \
    return expand(gcm, number, key, key_size);                                                \
  }                                                                                           \
  const eb_gcm_ops eb_gcm_##word = {                                                          \
      .name = #word,                                                                          \
      .batch = EB_LANE_PAGES,                                                                 \
      .single_pass = true,                                                                    \
      .usable = word##_usable,                                                                \
      .setup = setup,                                                                         \
      .set_key = word##_set_key,                                                              \
      .seal = seal,                                                                           \
      .open = open,                                                                           \
      .release = release,                                                                     \
  };

KERNEL(avx512, EB_GCM_KERNEL_AVX512)
KERNEL(vaes256, EB_GCM_KERNEL_VAES256)
KERNEL(aesni, EB_GCM_KERNEL_AESNI)
