/* HMAC and HKDF (RFC 5869) of a suite's hash, by libcrypto. */
#ifndef EB_KDF_H
#define EB_KDF_H

#include <openssl/evp.h>

#include "suite.h"

/* What is fetched from libcrypto once a bridge. */
typedef struct {
  EVP_MD *digest[EB_SUITES];
  EVP_MAC_CTX *hmac[EB_SUITES]; /* template, keyed with nothing of worth; copied for each use */
} eb_crypto;

eb_status eb_crypto_open(eb_crypto *crypto);
void eb_crypto_close(eb_crypto *crypto);

/* A keyed HMAC to stream into; the caller frees it with EVP_MAC_CTX_free, which zeroises it. */
eb_status eb_hmac_begin(const eb_crypto *crypto, eb_suite suite, const uint8_t *key, size_t key_len,
                        EVP_MAC_CTX **mac);
/* Writes exactly the suite's hash size. */
eb_status eb_hmac_end(EVP_MAC_CTX *mac, eb_suite suite, uint8_t *out);
eb_status eb_hmac(const eb_crypto *crypto, eb_suite suite, const uint8_t *key, size_t key_len, const uint8_t *message,
                  size_t len, uint8_t *out);

/* prk has the suite's hash size. */
eb_status eb_hkdf_extract(const eb_crypto *crypto, eb_suite suite, const uint8_t *salt, size_t salt_len,
                          const uint8_t *ikm, size_t ikm_len, uint8_t *prk);
/* out_len at most 255 times the hash size, else EB_ERR_LENGTH. */
eb_status eb_hkdf_expand(const eb_crypto *crypto, eb_suite suite, const uint8_t *prk, const uint8_t *info,
                         size_t info_len, uint8_t *out, size_t out_len);
/* Expand with info = "pagegate/v1 " || label. */
eb_status eb_hkdf_expand_label(const eb_crypto *crypto, eb_suite suite, const uint8_t *prk, const char *label,
                               uint8_t *out, size_t out_len);

#endif
