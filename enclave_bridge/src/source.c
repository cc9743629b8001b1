#include "source.h"

#include <stdlib.h>
#include <string.h>

#include "guard.h"

eb_status eb_source_open(eb_bridge *bridge, int fd, uint64_t offset, uint64_t len, eb_source **source) {
  eb_status status = EB_OK;
  eb_source *made = NULL;
  EB_ENSURE(bridge != NULL && source != NULL && len > 0, EB_ERR_ARGUMENT);
  EB_ENSURE(eb_bridge_alive(bridge), EB_ERR_FORKED);
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  eb_bridge_hold(bridge);
  *made = (eb_source){bridge, eb_file_readable(fd, offset, len), offset, len};
  EB_ENSURE(made->fd >= 0, EB_ERR_SOURCE_UNREADABLE);
  *source = made;
  made = NULL;
done:
  eb_source_free(made);
  return status;
}

void eb_source_free(eb_source *source) {
  if (source == NULL) return;
  eb_file_close(source->fd);
  eb_bridge_free(source->bridge);
  free(source);
}

eb_status eb_source_check(const eb_source *source, uint64_t offset, uint64_t len) {
  if (source == NULL) return EB_ERR_ARGUMENT;
  if (!eb_bridge_alive(source->bridge)) return EB_ERR_FORKED;
  if (offset >= source->len) return EB_ERR_LENGTH;
  const uint64_t left = source->len - offset;
  return len <= left || len - left < EB_PAGE_SIZE ? EB_OK : EB_ERR_LENGTH;
}

static void read_ahead(eb_reader *reader) {
  const uint64_t left = reader->end - reader->at;
  const size_t chunk = reader->next_read % EB_STAGING_CHUNKS;
  const size_t want = left < EB_CHUNK_SIZE ? (size_t)left : EB_CHUNK_SIZE;
  if (want == 0) return;
  const uint64_t there = reader->source->len - reader->at;
  const size_t some = there < want ? (size_t)there : want;
  memset(eb_staging_chunk(reader->staging, chunk) + some, 0, want - some);
  eb_staging_read(reader->staging, chunk, reader->source->fd, reader->source->offset + reader->at, some);
  reader->at += want;
  reader->next_read++;
}

void eb_reader_start(eb_reader *reader, const eb_source *source, eb_staging *staging, uint64_t offset, uint64_t len) {
  *reader = (eb_reader){.source = source, .staging = staging, .at = offset, .end = offset + len};
  for (size_t i = 0; i < EB_STAGING_CHUNKS; i++) read_ahead(reader);
}

eb_status eb_reader_next(eb_reader *reader, uint8_t **chunk) {
  if (reader->next_taken > 0) read_ahead(reader); /* into the chunk that the caller is done with */
  const size_t next = reader->next_taken++ % EB_STAGING_CHUNKS;
  *chunk = eb_staging_chunk(reader->staging, next);
  return eb_staging_wait(reader->staging, next) == 0 ? EB_OK : EB_ERR_SOURCE_UNREADABLE;
}
