/*
 * Which sequence numbers of one direction and epoch were received: a sliding bitmap over the
 * newest EB_REPLAY_WINDOW numbers (the construction of RFC 6479). Not thread-safe.
 */
#ifndef EB_WINDOW_H
#define EB_WINDOW_H

#include <stdbool.h>

#include "enclave_bridge.h"

typedef struct {
  uint64_t next; /* one more than the highest number marked; 0: none yet */
  uint64_t seen[EB_REPLAY_WINDOW / 64];
} eb_replay;

void eb_replay_reset(eb_replay *replay);
/* False: marked before, or too old to tell. Changes nothing. */
bool eb_replay_fresh(const eb_replay *replay, uint64_t sequence);
/* sequence must be fresh and below UINT64_MAX. */
void eb_replay_mark(eb_replay *replay, uint64_t sequence);

#endif
