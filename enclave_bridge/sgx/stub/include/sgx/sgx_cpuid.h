#pragma once
#include "sgx_error.h"
sgx_status_t sgx_cpuidex(int cpuinfo[4], int leaf, int subleaf);
