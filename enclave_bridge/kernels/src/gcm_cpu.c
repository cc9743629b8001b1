#include "gcm_cpu.h"

#if defined(__x86_64__)

#include <cpuid.h>

int gcm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[GCM_REGISTERS]) {
  return __get_cpuid_count(leaf, subleaf, &registers[GCM_EAX], &registers[GCM_EBX], &registers[GCM_ECX],
                           &registers[GCM_EDX]);
}

#endif
