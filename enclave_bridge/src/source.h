#ifndef EB_SOURCE_H
#define EB_SOURCE_H

#include "bridge.h"

struct eb_source { /* never changes */
  eb_bridge *bridge;
  int fd;
  uint64_t offset, len;
};

/* Argument and fork checks, and that [offset, offset + len) is in the source but for less than a
 * page, which is the padding. EB_ERR_LENGTH. */
eb_status eb_source_check(const eb_source *source, uint64_t offset, uint64_t len);

/* A seal from a source: what is read ahead, and what is next. */
typedef struct {
  const eb_source *source;
  eb_staging *staging;
  uint64_t at, end;    /* of the source: next byte to read, and the end of what is asked for */
  size_t next_read, next_taken; /* chunks, counted from the start */
} eb_reader;

/* Starts to read as far ahead as the staging slot has room. */
void eb_reader_start(eb_reader *reader, const eb_source *source, eb_staging *staging, uint64_t offset, uint64_t len);
/* The next chunk, once it is read: EB_CHUNK_SIZE bytes, or what is left, zero beyond the end of the
 * source. It is the caller's until the next call. EB_ERR_SOURCE_UNREADABLE. */
eb_status eb_reader_next(eb_reader *reader, uint8_t **chunk);

#endif
