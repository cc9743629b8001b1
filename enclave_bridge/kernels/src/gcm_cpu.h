/* How the processor is asked what it can do: CPUID itself here, but an SGX enclave may not execute it
 * and links a function of its own instead (../../sgx/trusted). */
#ifndef GCM_CPU_H
#define GCM_CPU_H

#include <stdint.h>

enum { GCM_EAX, GCM_EBX, GCM_ECX, GCM_EDX, GCM_REGISTERS };

/* 0: no such leaf, registers untouched. A wrong answer can end the program (an unknown instruction)
 * and do no other harm: every kernel gives the same result. */
int gcm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[GCM_REGISTERS]);

#endif
