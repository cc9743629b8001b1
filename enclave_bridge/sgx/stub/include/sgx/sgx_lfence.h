#pragma once
#define sgx_lfence __builtin_ia32_lfence
