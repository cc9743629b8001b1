/* The platform inside an SGX enclave: no files, no clock that can be trusted, no fork, and all memory
 * is the enclave's. Waiting threads leave the enclave by the SDK's own OCALLs. */
#include "platform.h"

#include <sgx_trts.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"

#define ALIGNMENT 64u

void eb_mutex_init(eb_mutex *mutex) { (void)sgx_thread_mutex_init(mutex, NULL); }
void eb_mutex_lock(eb_mutex *mutex) { (void)sgx_thread_mutex_lock(mutex); }
void eb_mutex_unlock(eb_mutex *mutex) { (void)sgx_thread_mutex_unlock(mutex); }
void eb_mutex_destroy(eb_mutex *mutex) { (void)sgx_thread_mutex_destroy(mutex); }
void eb_condition_init(eb_condition *condition) { (void)sgx_thread_cond_init(condition, NULL); }
void eb_condition_wait(eb_condition *condition, eb_mutex *mutex) { (void)sgx_thread_cond_wait(condition, mutex); }
void eb_condition_signal(eb_condition *condition) { (void)sgx_thread_cond_signal(condition); }
void eb_condition_destroy(eb_condition *condition) { (void)sgx_thread_cond_destroy(condition); }

uint64_t eb_clock(void) { return 0; } /* durations are measured outside */

eb_status eb_platform_random(uint8_t *out, size_t len) {
  return sgx_read_rand(out, len) == SGX_SUCCESS ? EB_OK : EB_ERR_CRYPTO; /* RDRAND */
}

eb_status eb_platform_prepare(void) { return EB_OK; } /* libcrypto's heap is the enclave's too */

uint8_t *eb_file_map(int fd, uint64_t offset, uint64_t len) {
  (void)fd, (void)offset, (void)len;
  return NULL;
}

void eb_file_unmap(uint8_t *mapping, uint64_t len) { (void)mapping, (void)len; }

static size_t aligned(size_t n) { return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* No guard pages: an enclave's page tables are the host's, so it could not rely on them. */
eb_status eb_secret_map(eb_secret_memory *memory, const size_t *lengths, uint8_t **areas, size_t n,
                        bool allow_secret) {
  eb_status status = EB_OK;
  (void)allow_secret;
  memset(memory, 0, sizeof *memory);
  for (size_t i = 0; i < n; i++) memory->bytes += aligned(lengths[i]);
  memory->reserved_len = memory->bytes + ALIGNMENT;
  memory->reserved = calloc(1, memory->reserved_len);
  EB_ENSURE(memory->reserved != NULL, EB_ERR_MEMORY);
  uint8_t *at = memory->reserved + (ALIGNMENT - (uintptr_t)memory->reserved % ALIGNMENT) % ALIGNMENT;
  for (size_t i = 0; i < n; i++) {
    areas[i] = at;
    at += aligned(lengths[i]);
  }
  memory->kind = EB_MEMORY_ENCLAVE;
done:
  return status;
}

/* A forked child has no enclave at all: its calls fail before they get here. */
bool eb_secret_alive(const eb_secret_memory *memory) { return memory->reserved != NULL; }

void eb_secret_unmap(eb_secret_memory *memory) {
  free(memory->reserved);
  memset(memory, 0, sizeof *memory);
}
