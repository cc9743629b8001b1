#include "kdf.h"

#include <openssl/crypto.h>
#include <string.h>

#include "hmac.h"

void eb_hkdf_extract(eb_suite suite, const uint8_t *salt, size_t salt_len, const uint8_t *ikm, size_t ikm_len,
                     uint8_t *prk) {
  eb_hmac mac;
  eb_hmac_begin(&mac, suite, salt, salt_len);
  eb_hmac_update(&mac, ikm, ikm_len);
  eb_hmac_end(&mac, prk);
}

eb_status eb_hkdf_expand(eb_suite suite, const uint8_t *prk, const uint8_t *info, size_t info_len, uint8_t *out,
                         size_t out_len) {
  const size_t hash_size = eb_suite_find(suite)->hash_size;
  uint8_t block[EB_MAX_HASH_SIZE];
  uint8_t counter = 0;
  if (out_len > 255 * hash_size) return EB_ERR_LENGTH;
  for (size_t done = 0; done < out_len;) {
    const size_t n = out_len - done < hash_size ? out_len - done : hash_size;
    eb_hmac mac;
    eb_hmac_begin(&mac, suite, prk, hash_size);
    if (counter > 0) eb_hmac_update(&mac, block, hash_size);
    counter++;
    eb_hmac_update(&mac, info, info_len);
    eb_hmac_update(&mac, &counter, 1);
    eb_hmac_end(&mac, block);
    memcpy(out + done, block, n);
    done += n;
  }
  OPENSSL_cleanse(block, sizeof block);
  return EB_OK;
}

eb_status eb_hkdf_expand_label(eb_suite suite, const uint8_t *prk, const char *label, uint8_t *out, size_t out_len) {
  static const char prefix[] = "pagegate/v1 ";
  uint8_t info[64];
  const size_t prefix_len = sizeof prefix - 1, label_len = strlen(label);
  if (prefix_len + label_len > sizeof info) return EB_ERR_ARGUMENT;
  memcpy(info, prefix, prefix_len);
  memcpy(info + prefix_len, label, label_len);
  return eb_hkdf_expand(suite, prk, info, prefix_len + label_len, out, out_len);
}
