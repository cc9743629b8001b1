#pragma once
#include "sgx_error.h"
#include "sgx_report.h"
sgx_status_t sgx_create_report(const sgx_target_info_t *target, const sgx_report_data_t *data, sgx_report_t *report);
const sgx_report_t *sgx_self_report(void);
sgx_status_t sgx_get_key(const sgx_key_request_t *request, sgx_key_128bit_t *key);
