#ifndef EB_TRANSFER_H
#define EB_TRANSFER_H

#include "bridge.h"
#include "page_guard.h"

struct eb_transfer {
  eb_bridge *bridge;
  uint8_t id[EB_TRANSFER_ID_SIZE];
  eb_window window;
  pthread_mutex_t lock; /* guards all below */
  uint8_t (*tags)[EB_TAG_SIZE];
  uint64_t *recorded; /* bitmap */
  uint64_t pages;     /* bits set */
  uint8_t *target;    /* NULL: none */
  void *mapping;      /* what to unmap; NULL when the target is the caller's memory */
  eb_guard *guard;    /* writes in place of `target`; NULL: none */
};

/* The page of the window at gpa. EB_ERR_WRONG_REGION, EB_ERR_UNALIGNED, EB_ERR_OUT_OF_RANGE. */
eb_status eb_transfer_locate(const eb_transfer *transfer, uint32_t region, uint64_t gpa, uint64_t *index);
/* With the lock held. */
void eb_transfer_record(eb_transfer *transfer, uint64_t index, const uint8_t tag[EB_TAG_SIZE]);
void eb_transfer_drop(eb_transfer *transfer, uint64_t index);

bool eb_transfer_has_target(const eb_transfer *transfer);
/* One verified page goes to the target. EB_ERR_TARGET and others of a guard. */
eb_status eb_transfer_write(eb_transfer *transfer, uint64_t index, const uint8_t *page);

#endif
