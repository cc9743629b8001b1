#ifndef EB_TRANSFER_H
#define EB_TRANSFER_H

#include "bridge.h"
#include "page_guard.h"

struct eb_transfer {
  eb_bridge *bridge;
  uint8_t id[EB_TRANSFER_ID_SIZE];
  eb_window window;
  eb_mutex lock; /* guards all below */
  uint8_t (*tags)[EB_TAG_SIZE];
  uint64_t *recorded; /* bitmap */
  uint64_t pages;     /* bits set */
  uint8_t *target;    /* NULL: none, or a file */
  uint8_t *mapping;   /* what to unmap; NULL when the target is the caller's memory */
  eb_stored_file file; /* the target when it is written instead */
  eb_guard *guard;     /* writes in place of both; NULL: none */
};

/* The page of the window at gpa. EB_ERR_WRONG_REGION, EB_ERR_UNALIGNED, EB_ERR_OUT_OF_RANGE. */
eb_status eb_transfer_locate(const eb_transfer *transfer, uint32_t region, uint64_t gpa, uint64_t *index);
/* With the lock held. */
bool eb_transfer_has_target(const eb_transfer *transfer);
/* Puts n verified pages that lie one after the other in memory at their places in the target, and
 * their tags into the account. *stored of them, in order, are there: what comes after a failure is
 * not in the account. EB_ERR_TARGET_FULL, EB_ERR_TARGET_IO, and others of a guard. */
eb_status eb_transfer_store(eb_transfer *transfer, const uint64_t *index, uint8_t (*tags)[EB_TAG_SIZE],
                            const uint8_t *pages, size_t n, size_t *stored);
void eb_transfer_record(eb_transfer *transfer, uint64_t index, const uint8_t tag[EB_TAG_SIZE]);
void eb_transfer_drop(eb_transfer *transfer, uint64_t index);

#endif
