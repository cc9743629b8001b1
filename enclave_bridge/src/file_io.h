/*
 * Files in and out of secret memory. A staging slot has EB_STAGING_CHUNKS chunks; what is started
 * for one chunk goes on while the caller works on another. A slot belongs to one call at a time,
 * and is not given back before everything started on it has ended.
 */
#ifndef EB_FILE_IO_H
#define EB_FILE_IO_H

#include <stdbool.h>

#include "gcm.h"

#define EB_STAGING_SLOTS 4u /* calls that read or write a file at once; more wait for one */
#define EB_STAGING_CHUNKS 4u
#define EB_CHUNK_SIZE (EB_LANE_PAGES * EB_PAGE_SIZE)
#define EB_STAGING_SIZE (EB_STAGING_CHUNKS * EB_CHUNK_SIZE)
#define EB_FILE_CUT (-1) /* what eb_staging_wait says of a file that ended early */

typedef struct {
  uint8_t *memory; /* EB_STAGING_SIZE bytes */
  int failed[EB_STAGING_CHUNKS];
} eb_staging;

/* A regular file (memfd and tmpfs are too) that covers [offset, offset + len). A file that is cut
 * later makes reads fail; mapped it would kill the process. */
bool eb_file_covers(int fd, uint64_t offset, uint64_t len);

/* Waits until a slot is free. Taken before any lock of a session or transfer, so that a caller
 * who waits for one never holds what another needs. */
eb_staging *eb_staging_take(eb_bridge *bridge);
/* Waits for what is in flight and zeroises the first `used` bytes, which are all that was
 * written. NULL is allowed. */
void eb_staging_give(eb_bridge *bridge, eb_staging *staging, size_t used);
uint8_t *eb_staging_chunk(const eb_staging *staging, size_t chunk);

/* Starts to read len bytes of the file at offset to the start of a chunk. */
void eb_staging_read(eb_staging *staging, size_t chunk, int fd, uint64_t offset, size_t len);
/* Waits for all that was started for the chunk. 0, the errno of the first failure, or EB_FILE_CUT. */
int eb_staging_wait(eb_staging *staging, size_t chunk);

#endif
