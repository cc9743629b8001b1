#include "shared_io.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bridge.h"
#include "guard.h"

static bool takes_calls(const eb_bridge *bridge, int fd) {
  struct stat facts;
  return eb_file_is_stored(bridge, fd) || (fstat(fd, &facts) == 0 && facts.st_dev == bridge->memfd_device);
}

eb_status eb_shared_open(const eb_bridge *bridge, eb_shared *shared, int fd, uint64_t offset, uint64_t len) {
  eb_status status = EB_OK;
  EB_ENSURE(offset % EB_PAGE_SIZE == 0, EB_ERR_UNALIGNED);
  *shared = (eb_shared){.file = {.fd = -1}, .len = len};
  if (takes_calls(bridge, fd)) {
    const int mode = fcntl(fd, F_GETFL) & O_ACCMODE;
    EB_ENSURE(mode == O_RDWR, EB_ERR_TARGET);
    EB_TRY(eb_stored_open(&shared->file, fd, offset, len));
    shared->ahead = eb_file_is_stored(bridge, fd);
  } else {
    shared->mapping = eb_file_map(fd, offset, len);
    EB_ENSURE(shared->mapping != NULL, EB_ERR_TARGET);
  }
done:
  return status;
}

void eb_shared_close(eb_shared *shared) {
  eb_stored_close(&shared->file);
  eb_file_unmap(shared->mapping, shared->len);
  shared->mapping = NULL;
}

bool eb_shared_read(const eb_shared *shared, uint64_t at, uint8_t *into, size_t len) {
  if (shared->mapping == NULL) return eb_file_get(shared->file.fd, shared->file.offset + at, into, len);
  memcpy(into, shared->mapping + at, len);
  return true;
}

eb_status eb_shared_write(eb_shared *shared, uint64_t at, const uint8_t *from, size_t len) {
  if (shared->mapping == NULL) return eb_stored_write(&shared->file, at, from, len);
  memcpy(shared->mapping + at, from, len);
  return EB_OK;
}

int eb_file_hold(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); }

bool eb_file_get(int fd, uint64_t at, uint8_t *into, size_t len) {
  while (len > 0) {
    const ssize_t got = pread(fd, into, len, (off_t)at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    into += got;
    at += (uint64_t)got;
    len -= (size_t)got;
  }
  return true;
}

eb_status eb_file_put(int fd, uint64_t at, const uint8_t *from, size_t len) {
  eb_stored_file file = {.fd = fd};
  return eb_stored_write(&file, at, from, len);
}

eb_status eb_file_sync(int fd) { return fdatasync(fd) == 0 ? EB_OK : EB_ERR_TARGET_IO; }

eb_status eb_file_cut(int fd, uint64_t len) { return ftruncate(fd, (off_t)len) == 0 ? EB_OK : EB_ERR_TARGET_IO; }
