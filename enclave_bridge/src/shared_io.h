/*
 * Memory that others can write, and the tables kept of it: shared_io.c on Linux, file_none.c where there is none.
 * What is read comes into private memory and is not read again.
 */
#ifndef EB_SHARED_IO_H
#define EB_SHARED_IO_H

#include "file_io.h"

/* A file or memfd is read and written by calls, so that cutting it short is no signal; other memory behind a
 * descriptor (a device, a PCI BAR, huge pages) is mapped. */
typedef struct {
  eb_stored_file file; /* its fd is -1 when it is mapped, or closed */
  uint8_t *mapping;    /* NULL when it is not */
  bool ahead;          /* a file of a file system: worth reading ahead, as it may come from a disk */
  uint64_t len;
} eb_shared;

/* EB_ERR_TARGET: fd does not cover [offset, offset + len), or is not open for reading and writing. */
eb_status eb_shared_open(const eb_bridge *bridge, eb_shared *shared, int fd, uint64_t offset, uint64_t len);
void eb_shared_close(eb_shared *shared);
/* False when not all of it is there. */
bool eb_shared_read(const eb_shared *shared, uint64_t at, uint8_t *into, size_t len);
/* EB_ERR_TARGET_FULL, EB_ERR_TARGET_IO. */
eb_status eb_shared_write(eb_shared *shared, uint64_t at, const uint8_t *from, size_t len);

/* A descriptor of our own; -1 when there is none. Closed by eb_file_close. */
int eb_file_hold(int fd);
/* All of it, or false. */
bool eb_file_get(int fd, uint64_t at, uint8_t *into, size_t len);
/* All of it, or EB_ERR_TARGET_FULL or EB_ERR_TARGET_IO. */
eb_status eb_file_put(int fd, uint64_t at, const uint8_t *from, size_t len);
/* EB_ERR_TARGET_IO. */
eb_status eb_file_sync(int fd);
eb_status eb_file_cut(int fd, uint64_t len);

#endif
