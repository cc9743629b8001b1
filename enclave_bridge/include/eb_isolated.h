/*
 * The bridge as a process of its own: enclave_bridge.h's functions, made by a program that holds the keys and the
 * plaintext staging. They are in the library eb_isolated_client instead of enclave_bridge; a process links one.
 *
 * Differences from the bridge in process
 *   - EB_ERR_BRIDGE_DIED: the program has ended; every handle of the bridge is of no more use but for its _free.
 *     Calls in progress return it at once.
 *   - Files are read and written by pread and pwrite: requests of io_uring pass a system call filter by.
 *   - eb_transfer_set_target_memory has the verified pages copied here, where the caller's memory is.
 */
#ifndef EB_ISOLATED_H
#define EB_ISOLATED_H

#include "enclave_bridge.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  const char *program;   /* NULL: "pagegate-bridge" beside the file that this code is in */
  uint32_t lanes;        /* calls that cross at once, 1..16; further ones wait; 0: 4 */
  uint64_t memory_limit; /* bytes of private memory beside the secret pool's; 0: 1 GiB */
} eb_isolated_options;

/* Starts the program and waits until it serves (10 s at most). Either of the options may be NULL.
 * Beside the statuses of eb_bridge_open: EB_ERR_BRIDGE_DIED: the program cannot be started, or it refused to run
 * unconfined (its standard error says why). eb_bridge_open is this with the default options. */
EB_API EB_MUST_USE eb_status eb_isolated_open(const eb_bridge_options *options, const eb_isolated_options *isolated,
                                              eb_bridge **bridge);
/* A pidfd of the program, readable when it has ended; belongs to the bridge. */
EB_API EB_MUST_USE eb_status eb_isolated_pidfd(eb_bridge *bridge, int *fd);

#ifdef __cplusplus
}
#endif
#endif
