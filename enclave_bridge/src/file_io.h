/*
 * Files in and out of secret memory: file_io.c with uring.c on Linux, file_none.c where there are none.
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

/* ---- what is read ------------------------------------------------------------------------------ */

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

/* A descriptor of our own for a regular file (memfd and tmpfs are too) that is open for reading and
 * covers [offset, offset + len); -1 when it is not. */
int eb_file_readable(int fd, uint64_t offset, uint64_t len);
void eb_file_close(int fd); /* -1 is allowed */

/* ---- what is written ------------------------------------------------------------------------ */

/* A file of a file system, which can be full or fail: tmpfs too. Mapped, that would be a signal
 * instead of an error. False for memory behind a descriptor: memfd, huge pages, a PCI BAR, a device. */
bool eb_file_is_stored(const eb_bridge *bridge, int fd);

typedef struct {
  int fd; /* -1: none */
  uint64_t offset;
  uint64_t behind_first, behind_end; /* written one after the other, not yet sent to the disk */
} eb_stored_file;

/* EB_ERR_TARGET: not open for writing, or it does not cover [offset, offset + len). */
eb_status eb_stored_open(eb_stored_file *file, int fd, uint64_t offset, uint64_t len);
/* Writes all of it, at `at` bytes from the offset. EB_ERR_TARGET_FULL, EB_ERR_TARGET_IO. */
eb_status eb_stored_write(eb_stored_file *file, uint64_t at, const uint8_t *from, size_t len);
void eb_stored_close(eb_stored_file *file);

#endif
