/* What only the SGX backend has. */
#ifndef ENCLAVE_BRIDGE_SGX_H
#define ENCLAVE_BRIDGE_SGX_H

#include <sgx_report.h>

#include "enclave_bridge.h"

/* A local report for `target` (the quoting enclave) whose REPORT_DATA is eb_handshake_binding's for
 * `role`: the enclave reports nothing else. EB_ERR_CRYPTO, and what eb_handshake_binding returns. */
EB_API EB_MUST_USE eb_status eb_sgx_handshake_report(eb_handshake *handshake, eb_role role,
                                                     const sgx_target_info_t *target, sgx_report_t *report);

#endif
