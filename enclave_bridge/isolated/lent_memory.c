#include "lent_memory.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "guard.h"

struct eb_lent_memory {
  uint8_t *at;
  size_t len;
};

static bool cannot_shrink_below(int fd, uint64_t len) {
  struct stat facts;
  const int seals = fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && fstat(fd, &facts) == 0 && (uint64_t)facts.st_size >= len;
}

eb_status eb_lent_memory_map(int fd, uint64_t len, eb_lent_memory **memory) {
  eb_status status = EB_OK;
  eb_lent_memory *made = NULL;
  EB_ENSURE(len > 0 && len <= SIZE_MAX && cannot_shrink_below(fd, len), EB_ERR_RING_MEMORY);
  made = malloc(sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  void *at = mmap(NULL, (size_t)len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  EB_ENSURE(at != MAP_FAILED, EB_ERR_RING_MEMORY);
  *made = (eb_lent_memory){at, (size_t)len};
  *memory = made;
  made = NULL;
done:
  free(made);
  return status;
}

void eb_lent_memory_free(eb_lent_memory *memory) {
  if (memory == NULL) return;
  munmap(memory->at, memory->len);
  free(memory);
}

uint8_t *eb_lent_memory_at(const eb_lent_memory *memory, uint64_t offset, uint64_t len) {
  return offset <= memory->len && len <= memory->len - offset ? memory->at + offset : NULL;
}
