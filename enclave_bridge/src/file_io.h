/*
 * Files in and out of secret memory.
 *
 * Reading: a staging slot has EB_STAGING_CHUNKS chunks; one is filled while the caller works on
 * another, where the kernel has io_uring. Without it a read is done when it is started. A slot
 * belongs to one call at a time, and is not given back while a read of it is in flight.
 *
 * Writing is by pwrite in either case: io_uring hands a buffered write to a thread of its own, which
 * docs/benchmarks.md (Files) shows to cost more than the write.
 */
#ifndef EB_FILE_IO_H
#define EB_FILE_IO_H

#include "gcm.h"
#include "uring.h"

#define EB_STAGING_SLOTS 4u /* calls that read or write a file at once; more wait for one */
#define EB_STAGING_CHUNKS 4u
#define EB_CHUNK_SIZE (EB_LANE_PAGES * EB_PAGE_SIZE)
#define EB_STAGING_SIZE (EB_STAGING_CHUNKS * EB_CHUNK_SIZE)
#define EB_FILE_CUT (-1) /* said of a file that ended early */

typedef struct {
  int fd;
  uint64_t offset;
  size_t len;
} eb_file_read;

typedef struct {
  uint8_t *memory; /* EB_STAGING_SIZE bytes */
  eb_uring ring;
  eb_file_read reads[EB_STAGING_CHUNKS];
  bool pending[EB_STAGING_CHUNKS];
  int failed[EB_STAGING_CHUNKS];
} eb_staging;

typedef enum {
  EB_FILE_NONE,   /* not open, no regular file or device, or it does not cover the bytes */
  EB_FILE_DEVICE, /* a character device */
  EB_FILE_MEMORY, /* memory behind a regular file: memfd, huge pages, a PCI BAR */
  EB_FILE_STORED, /* a regular file of a file system that can be full or fail; tmpfs too. Mapped, that
                   * would be a signal instead of an error */
} eb_file_kind;
eb_file_kind eb_file_look(const eb_bridge *bridge, int fd, uint64_t offset, uint64_t len);

/* Chooses how files are read, for the life of the bridge: io_uring where it can be had, or what
 * `name` says (NULL: nothing). EB_ERR_ARGUMENT when that is unknown or not to be had. */
eb_status eb_staging_open(eb_bridge *bridge, const char *name);
void eb_staging_close(eb_bridge *bridge);
/* "io_uring" or "pread". */
const char *eb_staging_name(const eb_bridge *bridge);

/* Waits until a slot is free. Taken before any lock of a session or transfer, so that a caller
 * who waits for one never holds what another needs. */
eb_staging *eb_staging_take(eb_bridge *bridge);
/* Waits for what is in flight and zeroises the first `used` bytes, which are all that was
 * written. NULL is allowed. */
void eb_staging_give(eb_bridge *bridge, eb_staging *staging, size_t used);
uint8_t *eb_staging_chunk(const eb_staging *staging, size_t chunk);

/* Starts to read len bytes of a file at offset into a chunk that has no read in flight. */
void eb_staging_read(eb_staging *staging, size_t chunk, int fd, uint64_t offset, size_t len);
/* Lets every read that was started begin, and waits for the chunk's. 0, errno or EB_FILE_CUT. */
int eb_staging_wait(eb_staging *staging, size_t chunk);

/* Writes all of it. 0 or errno. */
int eb_file_write(int fd, uint64_t offset, const uint8_t *from, size_t len);
/* Asks for what was written there to go to the disk now, so that less is left for fsync. */
void eb_file_write_behind(int fd, uint64_t offset, uint64_t len);

#endif
