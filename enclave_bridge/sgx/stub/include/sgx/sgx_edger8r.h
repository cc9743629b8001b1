#pragma once
#include "sgx_urts.h"
sgx_status_t sgx_ecall(const sgx_enclave_id_t eid, const int index, const void *ocall_table, void *ms);
