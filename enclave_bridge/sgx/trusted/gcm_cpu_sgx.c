/* CPUID may not be executed inside: the SDK asks outside, and the answer can be a lie. Then an
 * instruction may be unknown, which ends the enclave; what a kernel computes does not depend on it.
 * XGETBV, which the kernels ask too, is executed inside and tells what the enclave's attributes allow. */
#include "gcm_cpu.h"

#include <sgx_cpuid.h>

static int ask(uint32_t leaf, uint32_t subleaf, int answer[4]) {
  return sgx_cpuidex(answer, (int)leaf, (int)subleaf) == SGX_SUCCESS;
}

int gcm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[GCM_REGISTERS]) {
  int answer[4] = {0};
  if (!ask(0, 0, answer) || (uint32_t)answer[GCM_EAX] < leaf || !ask(leaf, subleaf, answer)) return 0;
  for (int i = 0; i < GCM_REGISTERS; i++) registers[i] = (uint32_t)answer[i];
  return 1;
}
