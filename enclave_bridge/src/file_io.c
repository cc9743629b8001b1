#include "file_io.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bridge.h"

bool eb_file_covers(int fd, uint64_t offset, uint64_t len) {
  struct stat facts;
  if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) return false;
  return len <= (uint64_t)facts.st_size && offset <= (uint64_t)facts.st_size - len;
}

eb_staging *eb_staging_take(eb_bridge *bridge) {
  uint8_t *slot = eb_arena_wait(&bridge->arena, EB_POOL_STAGING);
  eb_staging *staging = &bridge->staging[(size_t)(slot - bridge->arena.pools[EB_POOL_STAGING].base) / EB_STAGING_SIZE];
  *staging = (eb_staging){.memory = slot};
  return staging;
}

void eb_staging_give(eb_bridge *bridge, eb_staging *staging, size_t used) {
  if (staging == NULL) return;
  eb_arena_give_used(&bridge->arena, EB_POOL_STAGING, staging->memory, used);
}

uint8_t *eb_staging_chunk(const eb_staging *staging, size_t chunk) { return staging->memory + chunk * EB_CHUNK_SIZE; }

/* All of it, however many calls that takes. 0, errno or EB_FILE_CUT. */
static int read_all(int fd, uint8_t *at, uint64_t offset, size_t len) {
  while (len > 0) {
    const ssize_t got = pread(fd, at, len, (off_t)offset);
    if (got < 0 && errno != EINTR) return errno;
    if (got == 0) return EB_FILE_CUT;
    if (got < 0) continue;
    at += got;
    offset += (uint64_t)got;
    len -= (size_t)got;
  }
  return 0;
}

void eb_staging_read(eb_staging *staging, size_t chunk, int fd, uint64_t offset, size_t len) {
  staging->failed[chunk] = read_all(fd, eb_staging_chunk(staging, chunk), offset, len);
}

int eb_staging_wait(eb_staging *staging, size_t chunk) { return staging->failed[chunk]; }
