/* For scripts: a fuzzer's bytes as numbers. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* Big-endian, of `bytes` bytes. */
static inline uint64_t fuzz_number(const uint8_t *at, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; i++) value = value << 8 | at[i];
  return value;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
