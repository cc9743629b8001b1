/*
 * A sealing key that only this enclave (MRENCLAVE) or any of its signer's with the same product id
 * (MRSIGNER) can have again, on this processor. It is EGETKEY's; nothing is stored.
 */
#ifndef EB_SEALING_SGX_H
#define EB_SEALING_SGX_H

#include <sgx_key.h>

#include "sealing.h"

typedef enum {
  EB_SGX_SEAL_TO_ENCLAVE = SGX_KEYPOLICY_MRENCLAVE, /* no other build can open it */
  EB_SGX_SEAL_TO_SIGNER = SGX_KEYPOLICY_MRSIGNER,   /* later builds can, with the same or a higher ISVSVN */
} eb_sgx_sealing_policy;

/* What the key is bound to. Public: it is kept beside what was sealed, to ask for the same key after
 * an update of the processor's microcode or of the enclave. */
typedef struct {
  eb_sgx_sealing_policy policy;
  sgx_cpu_svn_t cpu_svn;
  sgx_isv_svn_t isv_svn;
  sgx_config_svn_t config_svn;
} eb_sgx_sealing;

/* Bound to what runs now. EB_ERR_ARGUMENT: unknown policy. */
EB_MUST_USE eb_status eb_sgx_sealing_now(eb_sgx_sealing_policy policy, eb_sgx_sealing *sealing);

/* An eb_sealing_source, for eb_sealing_from. `context` is an eb_sgx_sealing; `room` is not used. A debug enclave's key is another.
 * EB_ERR_ARGUMENT; EB_ERR_CRYPTO when the processor refuses, as it does for SVNs above its own.
 * The strength is 128 bits, EGETKEY's, though it is 32 bytes: two keys that differ in their key id. */
EB_MUST_USE eb_status eb_sgx_sealing_key(void *context, uint8_t key[EB_SEALING_KEY_SIZE], uint8_t *room);

#endif
