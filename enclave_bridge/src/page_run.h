#ifndef EB_PAGE_RUN_H
#define EB_PAGE_RUN_H

#include "gcm.h"

/* One run: what is copied out of, or on its way into, records. */
typedef struct {
  uint8_t headers[EB_LANE_PAGES][EB_RECORD_HEADER_SIZE];
  uint8_t nonces[EB_LANE_PAGES][EB_GCM_IV_SIZE];
  uint8_t tags[EB_LANE_PAGES][EB_TAG_SIZE];
  eb_record_header parsed[EB_LANE_PAGES];
  uint64_t index[EB_LANE_PAGES]; /* page of the transfer's window */
  eb_gcm_item items[EB_LANE_PAGES];
  size_t n;
} eb_run;

#endif
