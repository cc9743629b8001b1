#ifndef EB_BRIDGE_H
#define EB_BRIDGE_H

#include <openssl/evp.h>
#include <stdatomic.h>

#include "arena.h"
#include "file_io.h"
#include "gcm.h"
#include "suite.h"

#define EB_LANES 8u /* calls of the page path that run at once; more wait for one */

struct eb_bridge {
  atomic_uint references;
  eb_arena arena;
  EVP_MD *digest[EB_SUITES]; /* of transcripts */
  const eb_gcm_ops *gcm;
  uint64_t memfd_device; /* where memfds are; 0: not known */
  eb_staging staging[EB_STAGING_SLOTS]; /* beside the arena's slots of the same number */
};

/* False in a child of the process that opened it: then nothing secret may be touched. */
bool eb_bridge_alive(const eb_bridge *bridge);
void eb_bridge_hold(eb_bridge *bridge);
/* Gives a lane back of whose pages the first so many were written. */
void eb_lane_give(eb_bridge *bridge, eb_lane_secret *lane, size_t pages);

#endif
