#include "kdf.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <string.h>

#include "guard.h"

eb_status eb_crypto_open(eb_crypto *crypto) {
  eb_status status = EB_OK;
  EVP_MAC *hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
  static const uint8_t no_key[1] = {0};

  memset(crypto, 0, sizeof *crypto);
  EB_ENSURE(hmac != NULL, EB_ERR_CRYPTO);
  for (eb_suite suite = 1; suite <= EB_SUITES; suite++) {
    const eb_suite_facts *facts = eb_suite_find(suite);
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)(uintptr_t)facts->digest, 0),
        OSSL_PARAM_construct_end()};
    crypto->digest[suite - 1] = EVP_MD_fetch(NULL, facts->digest, NULL);
    crypto->hmac[suite - 1] = EVP_MAC_CTX_new(hmac);
    EB_ENSURE(crypto->digest[suite - 1] != NULL && crypto->hmac[suite - 1] != NULL, EB_ERR_CRYPTO);
    EB_ENSURE(EVP_MAC_init(crypto->hmac[suite - 1], no_key, sizeof no_key, params) == 1, EB_ERR_CRYPTO);
  }
done:
  EVP_MAC_free(hmac);
  if (status != EB_OK) eb_crypto_close(crypto);
  return status;
}

void eb_crypto_close(eb_crypto *crypto) {
  for (size_t i = 0; i < EB_SUITES; i++) {
    EVP_MD_free(crypto->digest[i]);
    EVP_MAC_CTX_free(crypto->hmac[i]);
  }
  memset(crypto, 0, sizeof *crypto);
}

eb_status eb_hmac_begin(const eb_crypto *crypto, eb_suite suite, const uint8_t *key, size_t key_len,
                        EVP_MAC_CTX **mac) {
  eb_status status = EB_OK;
  static const uint8_t empty[1] = {0};
  EVP_MAC_CTX *copy = EVP_MAC_CTX_dup(crypto->hmac[suite - 1]);
  EB_ENSURE(copy != NULL, EB_ERR_CRYPTO);
  EB_ENSURE(EVP_MAC_init(copy, key_len > 0 ? key : empty, key_len, NULL) == 1, EB_ERR_CRYPTO);
  *mac = copy;
  copy = NULL;
done:
  EVP_MAC_CTX_free(copy);
  return status;
}

eb_status eb_hmac_end(EVP_MAC_CTX *mac, eb_suite suite, uint8_t *out) {
  size_t size = eb_suite_find(suite)->hash_size;
  size_t written = 0;
  return EVP_MAC_final(mac, out, &written, size) == 1 && written == size ? EB_OK : EB_ERR_CRYPTO;
}

eb_status eb_hmac(const eb_crypto *crypto, eb_suite suite, const uint8_t *key, size_t key_len, const uint8_t *message,
                  size_t len, uint8_t *out) {
  eb_status status = EB_OK;
  EVP_MAC_CTX *mac = NULL;
  EB_TRY(eb_hmac_begin(crypto, suite, key, key_len, &mac));
  EB_ENSURE(len == 0 || EVP_MAC_update(mac, message, len) == 1, EB_ERR_CRYPTO);
  EB_TRY(eb_hmac_end(mac, suite, out));
done:
  EVP_MAC_CTX_free(mac);
  return status;
}

eb_status eb_hkdf_extract(const eb_crypto *crypto, eb_suite suite, const uint8_t *salt, size_t salt_len,
                          const uint8_t *ikm, size_t ikm_len, uint8_t *prk) {
  return eb_hmac(crypto, suite, salt, salt_len, ikm, ikm_len, prk);
}

eb_status eb_hkdf_expand(const eb_crypto *crypto, eb_suite suite, const uint8_t *prk, const uint8_t *info,
                         size_t info_len, uint8_t *out, size_t out_len) {
  eb_status status = EB_OK;
  const size_t hash_size = eb_suite_find(suite)->hash_size;
  uint8_t block[EB_MAX_HASH_SIZE];
  uint8_t counter = 0;
  EVP_MAC_CTX *mac = NULL;

  EB_ENSURE(out_len <= 255 * hash_size, EB_ERR_LENGTH);
  for (size_t done = 0; done < out_len;) {
    size_t n = out_len - done < hash_size ? out_len - done : hash_size;
    EB_TRY(eb_hmac_begin(crypto, suite, prk, hash_size, &mac));
    EB_ENSURE(counter == 0 || EVP_MAC_update(mac, block, hash_size) == 1, EB_ERR_CRYPTO);
    counter++;
    EB_ENSURE(info_len == 0 || EVP_MAC_update(mac, info, info_len) == 1, EB_ERR_CRYPTO);
    EB_ENSURE(EVP_MAC_update(mac, &counter, 1) == 1, EB_ERR_CRYPTO);
    EB_TRY(eb_hmac_end(mac, suite, block));
    memcpy(out + done, block, n);
    done += n;
    EVP_MAC_CTX_free(mac);
    mac = NULL;
  }
done:
  OPENSSL_cleanse(block, sizeof block);
  EVP_MAC_CTX_free(mac);
  return status;
}

eb_status eb_hkdf_expand_label(const eb_crypto *crypto, eb_suite suite, const uint8_t *prk, const char *label,
                               uint8_t *out, size_t out_len) {
  static const char prefix[] = "pagegate/v1 ";
  uint8_t info[64];
  const size_t prefix_len = sizeof prefix - 1, label_len = strlen(label);
  if (prefix_len + label_len > sizeof info) return EB_ERR_ARGUMENT;
  memcpy(info, prefix, prefix_len);
  memcpy(info + prefix_len, label, label_len);
  return eb_hkdf_expand(crypto, suite, prk, info, prefix_len + label_len, out, out_len);
}
