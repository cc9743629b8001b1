#include "sealing_sgx.h"

#include <openssl/crypto.h>
#include <stdbool.h>
#include <sgx_utils.h>
#include <string.h>

#include "guard.h"

_Static_assert(EB_SEALING_KEY_SIZE == 2 * sizeof(sgx_key_128bit_t), "two of EGETKEY's keys");
_Static_assert(_Generic(&eb_sgx_sealing_key, eb_sealing_source: 1, default: 0), "a source of eb_sealing_from");

static const uint8_t label[SGX_KEYID_SIZE - 1] = "pagegate/v1 sealing"; /* the key id but for its last byte */

static bool known(eb_sgx_sealing_policy policy) {
  return policy == EB_SGX_SEAL_TO_ENCLAVE || policy == EB_SGX_SEAL_TO_SIGNER;
}

eb_status eb_sgx_sealing_now(eb_sgx_sealing_policy policy, eb_sgx_sealing *sealing) {
  eb_status status = EB_OK;
  EB_ENSURE(known(policy) && sealing != NULL, EB_ERR_ARGUMENT);
  const sgx_report_t *self = sgx_self_report();
  *sealing = (eb_sgx_sealing){policy, self->body.cpu_svn, self->body.isv_svn, self->body.config_svn};
done:
  return status;
}

eb_status eb_sgx_sealing_key(void *context, uint8_t key[EB_SEALING_KEY_SIZE], uint8_t *room) {
  const eb_sgx_sealing *sealing = context;
  eb_status status = EB_OK;
  sgx_key_128bit_t half;
  (void)room;
  EB_ENSURE(sealing != NULL && key != NULL && known(sealing->policy), EB_ERR_ARGUMENT);
  for (uint8_t i = 0; i < 2; i++) {
    sgx_key_request_t request = {
        .key_name = SGX_KEYSELECT_SEAL,
        .key_policy = (uint16_t)sealing->policy,
        .isv_svn = sealing->isv_svn,
        .cpu_svn = sealing->cpu_svn,
        .attribute_mask = {.flags = SGX_FLAGS_INITTED | SGX_FLAGS_DEBUG},
        .config_svn = sealing->config_svn,
    };
    memcpy(request.key_id.id, label, sizeof label);
    request.key_id.id[SGX_KEYID_SIZE - 1] = i;
    EB_ENSURE(sgx_get_key(&request, &half) == SGX_SUCCESS, EB_ERR_CRYPTO);
    memcpy(key + i * sizeof half, half, sizeof half);
  }
done:
  OPENSSL_cleanse(half, sizeof half);
  if (status != EB_OK && key != NULL) OPENSSL_cleanse(key, EB_SEALING_KEY_SIZE);
  return status;
}
