#pragma once
#include "sgx_defs.h"
#define SGX_FLAGS_INITTED 0x1ULL
#define SGX_FLAGS_DEBUG 0x2ULL
#define SGX_KEYSELECT_SEAL 0x0004
#define SGX_KEYPOLICY_MRENCLAVE 0x0001
#define SGX_KEYPOLICY_MRSIGNER 0x0002
#define SGX_KEYID_SIZE 32
typedef uint8_t sgx_key_128bit_t[16];
typedef uint16_t sgx_isv_svn_t, sgx_config_svn_t;
typedef uint32_t sgx_misc_select_t;
typedef struct {
  uint8_t svn[16];
} sgx_cpu_svn_t;
typedef struct {
  uint8_t id[SGX_KEYID_SIZE];
} sgx_key_id_t;
typedef struct {
  uint64_t flags, xfrm;
} sgx_attributes_t;
typedef struct {
  uint16_t key_name, key_policy;
  sgx_isv_svn_t isv_svn;
  uint16_t reserved1;
  sgx_cpu_svn_t cpu_svn;
  sgx_attributes_t attribute_mask;
  sgx_key_id_t key_id;
  sgx_misc_select_t misc_mask;
  sgx_config_svn_t config_svn;
  uint8_t reserved2[434];
} sgx_key_request_t;
_Static_assert(sizeof(sgx_key_request_t) == 512, "KEYREQUEST");
