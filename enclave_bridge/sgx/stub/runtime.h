/* The simulation's own controls, for tests. */
#pragma once
#include <sgx_report.h>

/* What the enclave is said to be; tests change it. */
extern sgx_report_t stub_self;
/* Some address in the enclave's heap. */
void *stub_address_inside(void);
/* Bytes that the enclave has allocated and not freed. */
size_t stub_heap_used(void);
