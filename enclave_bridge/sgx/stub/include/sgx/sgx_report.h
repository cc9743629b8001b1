#pragma once
#include "sgx_key.h"
typedef struct {
  uint8_t m[32];
} sgx_measurement_t;
typedef struct {
  uint8_t d[64];
} sgx_report_data_t;
typedef struct {
  sgx_measurement_t mr_enclave;
  sgx_attributes_t attributes;
  uint8_t reserved1[2];
  sgx_config_svn_t config_svn;
  sgx_misc_select_t misc_select;
  uint8_t reserved2[8], config_id[64], reserved3[384];
} sgx_target_info_t;
typedef struct {
  sgx_cpu_svn_t cpu_svn;
  sgx_misc_select_t misc_select;
  uint8_t reserved1[12], isv_ext_prod_id[16];
  sgx_attributes_t attributes;
  sgx_measurement_t mr_enclave;
  uint8_t reserved2[32];
  sgx_measurement_t mr_signer;
  uint8_t reserved3[32], config_id[64];
  uint16_t isv_prod_id;
  sgx_isv_svn_t isv_svn;
  sgx_config_svn_t config_svn;
  uint8_t reserved4[42], isv_family_id[16];
  sgx_report_data_t report_data;
} sgx_report_body_t;
typedef struct {
  sgx_report_body_t body;
  sgx_key_id_t key_id;
  uint8_t mac[16];
} sgx_report_t;
_Static_assert(sizeof(sgx_target_info_t) == 512 && sizeof(sgx_report_t) == 432, "TARGETINFO and REPORT");
