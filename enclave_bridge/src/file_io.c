#include "file_io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "bridge.h"
#include "guard.h"

#define BEHIND (UINT64_C(1) << 20) /* bytes written one after the other before they are sent to the disk */

static dev_t memfd_device(void) {
  struct stat facts = {0};
  const int fd = memfd_create("pagegate", MFD_CLOEXEC);
  if (fd < 0) return 0;
  if (fstat(fd, &facts) != 0) facts.st_dev = 0;
  close(fd);
  return facts.st_dev;
}

static bool covers(int fd, uint64_t offset, uint64_t len) {
  struct stat facts;
  if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) return false;
  return len <= (uint64_t)facts.st_size && offset <= (uint64_t)facts.st_size - len;
}

int eb_file_readable(int fd, uint64_t offset, uint64_t len) {
  const int mode = fcntl(fd, F_GETFL); /* of a bad descriptor: all bits */
  if ((mode & O_PATH) != 0 || (mode & O_ACCMODE) == O_WRONLY || !covers(fd, offset, len)) return -1;
  return fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

void eb_file_close(int fd) {
  if (fd >= 0) close(fd);
}

/* ---- slots -------------------------------------------------------------------------------- */

eb_status eb_staging_open(eb_bridge *bridge, const char *name) {
  eb_status status = EB_OK;
  const bool any = name == NULL, wanted = any || strcmp(name, "io_uring") == 0;
  bool have = wanted;
  bridge->memfd_device = memfd_device();
  EB_ENSURE(wanted || strcmp(name, "pread") == 0, EB_ERR_ARGUMENT);
  for (size_t i = 0; i < EB_STAGING_SLOTS; i++) {
    eb_staging *staging = &bridge->staging[i];
    staging->memory = bridge->arena.pools[EB_POOL_STAGING].base + i * EB_STAGING_SIZE;
    staging->ring.fd = -1;
    have = have && eb_uring_open(&staging->ring, staging->memory, EB_STAGING_SIZE);
  }
  if (!have) eb_staging_close(bridge); /* all slots or none */
  EB_ENSURE(any || have == wanted, EB_ERR_ARGUMENT);
done:
  return status;
}

void eb_staging_close(eb_bridge *bridge) {
  for (size_t i = 0; i < EB_STAGING_SLOTS; i++)
    if (bridge->staging[i].memory != NULL) eb_uring_close(&bridge->staging[i].ring, !eb_bridge_alive(bridge));
}

const char *eb_staging_name(const eb_bridge *bridge) { return bridge->staging[0].ring.fd >= 0 ? "io_uring" : "pread"; }

eb_staging *eb_staging_take(eb_bridge *bridge) {
  const uint8_t *slot = eb_arena_wait(&bridge->arena, EB_POOL_STAGING);
  eb_staging *staging = &bridge->staging[(size_t)(slot - bridge->staging[0].memory) / EB_STAGING_SIZE];
  return staging;
}

void eb_staging_give(eb_bridge *bridge, eb_staging *staging, size_t used) {
  if (staging == NULL) return;
  for (size_t i = 0; i < EB_STAGING_CHUNKS; i++)
    if (staging->pending[i]) (void)eb_staging_wait(staging, i);
  eb_arena_give_used(&bridge->arena, EB_POOL_STAGING, staging->memory, used);
}

uint8_t *eb_staging_chunk(const eb_staging *staging, size_t chunk) { return staging->memory + chunk * EB_CHUNK_SIZE; }

/* ---- reads -------------------------------------------------------------------------------- */

/* What is left of a read after `done` bytes, however many calls that takes. 0, errno or EB_FILE_CUT. */
static int read_rest(const eb_staging *staging, size_t chunk, size_t done) {
  const eb_file_read *read = &staging->reads[chunk];
  while (done < read->len) {
    const ssize_t got =
        pread(read->fd, eb_staging_chunk(staging, chunk) + done, read->len - done, (off_t)(read->offset + done));
    if (got < 0 && errno != EINTR) return errno;
    if (got == 0) return EB_FILE_CUT;
    if (got > 0) done += (size_t)got;
  }
  return 0;
}

static void ended(eb_staging *staging, size_t chunk, int error) {
  staging->pending[chunk] = false;
  staging->failed[chunk] = error;
}

/* A read that was short, or that the kernel would have us repeat, is finished here. */
static void reap(eb_staging *staging) {
  uint32_t chunk;
  int result;
  while (eb_uring_reap(&staging->ring, &chunk, &result)) {
    if (result < 0 && result != -EINTR && result != -EAGAIN)
      ended(staging, chunk, -result);
    else
      ended(staging, chunk, read_rest(staging, chunk, result > 0 ? (size_t)result : 0));
  }
}

/* What the kernel does not take is done here, so that nothing waits for it. */
static void submit(eb_staging *staging, bool wait) {
  uint32_t chunk;
  eb_uring_enter(&staging->ring, wait);
  while (eb_uring_withdraw(&staging->ring, &chunk)) ended(staging, chunk, read_rest(staging, chunk, 0));
  reap(staging);
}

void eb_staging_read(eb_staging *staging, size_t chunk, int fd, uint64_t offset, size_t len) {
  staging->reads[chunk] = (eb_file_read){fd, offset, len};
  staging->pending[chunk] = true;
  if (staging->ring.fd >= 0)
    eb_uring_queue(&staging->ring, (uint32_t)chunk, fd, offset, eb_staging_chunk(staging, chunk), len);
  else
    ended(staging, chunk, read_rest(staging, chunk, 0));
}

int eb_staging_wait(eb_staging *staging, size_t chunk) {
  if (staging->ring.fd >= 0) {
    reap(staging);
    submit(staging, staging->pending[chunk]);
    while (staging->pending[chunk]) submit(staging, true);
  }
  return staging->failed[chunk];
}

/* ---- writes ------------------------------------------------------------------------------- */

bool eb_file_is_stored(const eb_bridge *bridge, int fd) {
  struct stat facts;
  struct statfs system;
  if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode) || facts.st_dev == bridge->memfd_device) return false;
  /* A PCI BAR (sysfs) and huge pages cannot be written but through a mapping. */
  return fstatfs(fd, &system) == 0 && system.f_type != SYSFS_MAGIC && system.f_type != HUGETLBFS_MAGIC;
}

eb_status eb_stored_open(eb_stored_file *file, int fd, uint64_t offset, uint64_t len) {
  eb_status status = EB_OK;
  const int mode = fcntl(fd, F_GETFL);
  /* pwrite(2) to a file that is open for appending ignores the offset. */
  EB_ENSURE((mode & (O_PATH | O_APPEND)) == 0 && (mode & O_ACCMODE) != O_RDONLY, EB_ERR_TARGET);
  EB_ENSURE(covers(fd, offset, len), EB_ERR_TARGET);
  const int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  EB_ENSURE(own >= 0, EB_ERR_TARGET);
  *file = (eb_stored_file){.fd = own, .offset = offset};
done:
  return status;
}

void eb_stored_close(eb_stored_file *file) {
  eb_file_close(file->fd);
  file->fd = -1;
}

/* What comes one after the other goes to the disk a piece at a time: otherwise all of it waits for
 * the fsync of the commit. It is advice: a file system that has no such thing says so, and an error
 * comes again with fsync. */
static void write_behind(eb_stored_file *file, uint64_t at, size_t len) {
  if (at != file->behind_end) file->behind_first = at;
  file->behind_end = at + len;
  const uint64_t waiting = file->behind_end - file->behind_first;
  if (waiting < BEHIND) return;
  (void)sync_file_range(file->fd, (off_t)(file->offset + file->behind_first), (off_t)waiting, SYNC_FILE_RANGE_WRITE);
  file->behind_first = file->behind_end;
}

eb_status eb_stored_write(eb_stored_file *file, uint64_t at, const uint8_t *from, size_t len) {
  for (size_t done = 0; done < len;) {
    const ssize_t put = pwrite(file->fd, from + done, len - done, (off_t)(file->offset + at + done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) return EB_ERR_TARGET_FULL;
    if (put <= 0) return EB_ERR_TARGET_IO;
    done += (size_t)put;
  }
  write_behind(file, at, len);
  return EB_OK;
}
