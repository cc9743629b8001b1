/*
 * All that the trusted code asks of the system under it. There are two: Linux (platform_linux.c)
 * and an SGX enclave (../sgx/trusted/platform_sgx.c), which has no system calls. Beside this header
 * the trusted code uses libcrypto and, of the C library, only what computes: see ../sgx/README.md.
 */
#ifndef EB_PLATFORM_H
#define EB_PLATFORM_H

#include <stdbool.h>

#include "enclave_bridge.h"

#ifdef EB_ENCLAVE
#include <sgx_thread.h>
typedef sgx_thread_mutex_t eb_mutex;
typedef sgx_thread_cond_t eb_condition;
#else
#include <pthread.h>
typedef pthread_mutex_t eb_mutex;
typedef pthread_cond_t eb_condition;
#endif

void eb_mutex_init(eb_mutex *mutex);
void eb_mutex_lock(eb_mutex *mutex);
void eb_mutex_unlock(eb_mutex *mutex);
void eb_mutex_destroy(eb_mutex *mutex);
void eb_condition_init(eb_condition *condition);
void eb_condition_wait(eb_condition *condition, eb_mutex *mutex);
void eb_condition_signal(eb_condition *condition);
void eb_condition_destroy(eb_condition *condition);

/* Nanoseconds from some start, for durations that are only reported; 0 where no clock can be trusted. */
uint64_t eb_clock(void);

/* EB_ERR_CRYPTO. */
eb_status eb_platform_random(uint8_t *out, size_t len);

/* Once a bridge, before anything secret is made: libcrypto's own secrets are kept where ours are as
 * far as it can. EB_ERR_MEMORY_LOCK. */
eb_status eb_platform_prepare(void);

/* Maps len bytes of a file at a page-aligned offset, shared and writable. NULL when that cannot be,
 * the file is too short, or there are no files. */
uint8_t *eb_file_map(int fd, uint64_t offset, uint64_t len);
void eb_file_unmap(uint8_t *mapping, uint64_t len);

/* Memory for secrets: not swapped, not dumped, not inherited by fork. */
typedef struct {
  eb_memory_kind kind;
  size_t bytes; /* guards not counted */
  uint8_t *reserved;
  size_t reserved_len; /* guards included */
  volatile uint64_t *canary; /* zero in a forked child */
} eb_secret_memory;

/* n areas, zeroed, with inaccessible pages around each where the system has such. allow_secret false
 * leaves out memfd_secret, so that the fallback can be tested. EB_ERR_MEMORY_LOCK, EB_ERR_MEMORY. */
eb_status eb_secret_map(eb_secret_memory *memory, const size_t *lengths, uint8_t **areas, size_t n,
                        bool allow_secret);
/* False in a forked child, and for one that is not mapped. */
bool eb_secret_alive(const eb_secret_memory *memory);
/* The caller has zeroised it. In a forked child only what the child owns is released. */
void eb_secret_unmap(eb_secret_memory *memory);

#endif
