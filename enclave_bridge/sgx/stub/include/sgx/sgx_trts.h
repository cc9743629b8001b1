#pragma once
#include "sgx_error.h"
int sgx_is_within_enclave(const void *address, size_t size);
int sgx_is_outside_enclave(const void *address, size_t size);
sgx_status_t sgx_read_rand(unsigned char *out, size_t length);
