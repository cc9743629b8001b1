/* OpenSSL's headers name these types; an enclave has no clock. */
#pragma once
typedef long time_t;
struct tm;
