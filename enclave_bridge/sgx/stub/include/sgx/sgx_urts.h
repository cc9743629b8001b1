#pragma once
#include "sgx_error.h"
#include "sgx_report.h"
typedef uint64_t sgx_enclave_id_t;
typedef uint8_t sgx_launch_token_t[1024];
typedef struct {
  sgx_attributes_t secs_attr;
  sgx_misc_select_t misc_select;
} sgx_misc_attribute_t;
sgx_status_t sgx_create_enclave(const char *file_name, const int debug, sgx_launch_token_t *token, int *updated,
                                sgx_enclave_id_t *eid, sgx_misc_attribute_t *attributes);
sgx_status_t sgx_destroy_enclave(const sgx_enclave_id_t eid);
