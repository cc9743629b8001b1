/*
 * AES-GCM by libcrypto's EVP: always there, the reference for the other kernels.
 *
 * Honest limit: the expanded key and hash key are in libcrypto's heap, outside our secret memory.
 * They may be swapped or dumped and are copied by fork. libcrypto zeroises them on free.
 */
#include <openssl/evp.h>

#include "gcm.h"
#include "guard.h"

static bool usable(void) { return true; }

static eb_status setup(eb_gcm *gcm, size_t key_size, bool seal) {
  eb_status status = EB_OK;
  EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, key_size == 32 ? "AES-256-GCM" : "AES-128-GCM", NULL);
  EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
  EB_ENSURE(cipher != NULL && context != NULL, EB_ERR_CRYPTO);
  EB_ENSURE(EVP_CipherInit_ex2(context, cipher, NULL, NULL, seal ? 1 : 0, NULL) == 1, EB_ERR_CRYPTO);
  gcm->state = context; /* holds a reference to the cipher */
  context = NULL;
done:
  EVP_CIPHER_CTX_free(context);
  EVP_CIPHER_free(cipher);
  return status;
}

static eb_status set_key(eb_gcm *gcm, const uint8_t *key, size_t key_size) {
  if (EVP_CIPHER_CTX_get_key_length(gcm->state) != (int)key_size) return EB_ERR_CRYPTO;
  return EVP_CipherInit_ex2(gcm->state, NULL, key, NULL, -1, NULL) == 1 ? EB_OK : EB_ERR_CRYPTO;
}

/* All of a message but its tag. */
static bool run(EVP_CIPHER_CTX *context, const eb_gcm_item *item, size_t aad_len, size_t len) {
  int done = 0;
  return EVP_CipherInit_ex2(context, NULL, NULL, item->iv, -1, NULL) == 1 &&
         (aad_len == 0 || EVP_CipherUpdate(context, NULL, &done, item->aad, (int)aad_len) == 1) &&
         (len == 0 || (EVP_CipherUpdate(context, item->out, &done, item->in, (int)len) == 1 && done == (int)len));
}

static eb_status seal(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len, size_t len) {
  (void)work;
  uint8_t none[1];
  int rest = 0;
  for (size_t i = 0; i < n; i++) {
    if (!run(gcm->state, &items[i], aad_len, len) || EVP_CipherFinal_ex(gcm->state, none, &rest) != 1 ||
        EVP_CIPHER_CTX_ctrl(gcm->state, EVP_CTRL_AEAD_GET_TAG, EB_TAG_SIZE, items[i].tag) != 1)
      return EB_ERR_CRYPTO;
  }
  return EB_OK;
}

static eb_status open(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len, size_t len,
                      size_t *verified) {
  (void)work;
  uint8_t none[1];
  int rest = 0;
  *verified = 0;
  for (size_t i = 0; i < n; i++) {
    if (!run(gcm->state, &items[i], aad_len, len) ||
        EVP_CIPHER_CTX_ctrl(gcm->state, EVP_CTRL_AEAD_SET_TAG, EB_TAG_SIZE, items[i].tag) != 1)
      return EB_ERR_CRYPTO;
    if (EVP_CipherFinal_ex(gcm->state, none, &rest) != 1) break;
    *verified += 1;
  }
  return EB_OK;
}

static void release(eb_gcm *gcm) { EVP_CIPHER_CTX_free(gcm->state); }

const eb_gcm_ops eb_gcm_openssl = {
    .name = "openssl",
    .batch = 1, /* a page stays in the first-level cache */
    .single_pass = false,
    .usable = usable,
    .setup = setup,
    .set_key = set_key,
    .seal = seal,
    .open = open,
    .release = release,
};
