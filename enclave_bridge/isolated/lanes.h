/* Where a lane's two rings are in the shared memory. */
#ifndef EB_LANES_H
#define EB_LANES_H

#include "ring.h"
#include "wire.h"

static inline size_t eb_ring_stride(void) { return eb_ring_bytes(EB_LANE_CAPACITY); }
static inline size_t eb_lane_bytes(void) { return 2 * eb_ring_stride(); }
/* Calls of the lane; its replies are at eb_ring_stride() behind. */
static inline uint8_t *eb_lane_at(uint8_t *area, size_t lane) { return area + lane * eb_lane_bytes(); }

#endif
