#pragma once
#include "sgx_defs.h"
/* Room for what the simulation's runtime puts there. */
typedef struct {
  uint64_t opaque[8];
} sgx_thread_mutex_t, sgx_thread_cond_t;
typedef struct {
  unsigned char unused;
} sgx_thread_mutexattr_t, sgx_thread_condattr_t;
#define SGX_THREAD_MUTEX_INITIALIZER {{0}}
int sgx_thread_mutex_init(sgx_thread_mutex_t *mutex, const sgx_thread_mutexattr_t *unused);
int sgx_thread_mutex_destroy(sgx_thread_mutex_t *mutex);
int sgx_thread_mutex_lock(sgx_thread_mutex_t *mutex);
int sgx_thread_mutex_unlock(sgx_thread_mutex_t *mutex);
int sgx_thread_cond_init(sgx_thread_cond_t *cond, const sgx_thread_condattr_t *unused);
int sgx_thread_cond_destroy(sgx_thread_cond_t *cond);
int sgx_thread_cond_wait(sgx_thread_cond_t *cond, sgx_thread_mutex_t *mutex);
int sgx_thread_cond_signal(sgx_thread_cond_t *cond);
