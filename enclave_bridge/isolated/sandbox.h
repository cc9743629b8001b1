/*
 * How the bridge process confines itself. In this order:
 *   eb_sandbox_begin       before anything else: limits, not dumpable, no new privileges, ends with its parent
 *   (the bridge is opened: secret memory is locked, libcrypto has read its files)
 *   eb_sandbox_separate    single-threaded: namespaces of its own, no capabilities
 *   (threads are started)
 *   eb_sandbox_seal        the filter, for every thread
 */
#ifndef EB_SANDBOX_H
#define EB_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>

/* Each returns the eb_hardening bits that are in force by it. */
uint32_t eb_sandbox_begin(int keep_fd);
uint32_t eb_sandbox_separate(void);
uint32_t eb_sandbox_limit_memory(uint64_t bytes);
uint32_t eb_sandbox_seal(void);

#endif
