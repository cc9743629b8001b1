#include "platform.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447 /* Linux 5.14, the same number on x86-64 and arm64 */
#endif

#define CANARY UINT64_C(0x656e636c61766531)

/* ---- threads, time, random, libcrypto ------------------------------------------------------ */

void eb_mutex_init(eb_mutex *mutex) { pthread_mutex_init(mutex, NULL); }
void eb_mutex_lock(eb_mutex *mutex) { pthread_mutex_lock(mutex); }
void eb_mutex_unlock(eb_mutex *mutex) { pthread_mutex_unlock(mutex); }
void eb_mutex_destroy(eb_mutex *mutex) { pthread_mutex_destroy(mutex); }
void eb_condition_init(eb_condition *condition) { pthread_cond_init(condition, NULL); }
void eb_condition_wait(eb_condition *condition, eb_mutex *mutex) { pthread_cond_wait(condition, mutex); }
void eb_condition_signal(eb_condition *condition) { pthread_cond_signal(condition); }
void eb_condition_destroy(eb_condition *condition) { pthread_cond_destroy(condition); }

uint64_t eb_clock(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

eb_status eb_platform_random(uint8_t *out, size_t len) {
  return RAND_bytes(out, (int)len) == 1 ? EB_OK : EB_ERR_CRYPTO;
}

/* libcrypto keeps EC private keys in its secure heap when there is one. It is one a process, so
 * the first bridge makes it and it stays. */
eb_status eb_platform_prepare(void) {
  static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
  eb_status status = EB_OK;
  pthread_mutex_lock(&once);
  if (!CRYPTO_secure_malloc_initialized()) {
    int made = CRYPTO_secure_malloc_init(512 * 1024, 32);
    if (made == 2) CRYPTO_secure_malloc_done(); /* made, but not locked */
    EB_ENSURE(made == 1, EB_ERR_MEMORY_LOCK);
  }
done:
  pthread_mutex_unlock(&once);
  return status;
}

/* ---- files ----------------------------------------------------------------------------------- */

/* A file shorter than the mapping would kill the process at the first write beyond its end. */
static bool covers(int fd, uint64_t offset, uint64_t len) {
  struct stat facts;
  if (fstat(fd, &facts) != 0 || offset > INT64_MAX - len) return false;
  return S_ISCHR(facts.st_mode) || (S_ISREG(facts.st_mode) && (uint64_t)facts.st_size >= offset + len);
}

uint8_t *eb_file_map(int fd, uint64_t offset, uint64_t len) {
  if (!covers(fd, offset, len)) return NULL;
  void *mapping = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
  return mapping != MAP_FAILED ? mapping : NULL;
}

void eb_file_unmap(uint8_t *mapping, uint64_t len) {
  if (mapping != NULL) munmap(mapping, len);
}

/* ---- secret memory ----------------------------------------------------------------------------- */

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static size_t whole_pages(size_t n) { return (n + page_size() - 1) / page_size() * page_size(); }

/* Maps [at, at + len) as secret memory from fd, or as locked anonymous memory when fd is -1. */
static bool map_area(uint8_t *at, size_t len, int fd, size_t offset) {
  int flags = MAP_FIXED | (fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
  if (mmap(at, len, PROT_READ | PROT_WRITE, flags, fd, fd >= 0 ? (off_t)offset : 0) == MAP_FAILED) return false;
  if (fd < 0 && (mlock(at, len) != 0 || madvise(at, len, MADV_DONTDUMP) != 0)) return false;
  if (madvise(at, len, MADV_DONTFORK) != 0) return false;
  memset(at, 0, len); /* fault everything in now, not in the page path */
  return true;
}

static bool map_areas(const eb_secret_memory *memory, const size_t *lengths, uint8_t **areas, size_t n, int fd) {
  uint8_t *at = memory->reserved + page_size();
  size_t offset = 0;
  for (size_t i = 0; i < n; i++) {
    const size_t len = whole_pages(lengths[i]);
    if (!map_area(at, len, fd, offset)) return false;
    areas[i] = at;
    at += len + page_size();
    offset += len;
  }
  return true;
}

static bool open_canary(eb_secret_memory *memory) {
  void *page = mmap(NULL, page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  memory->canary = page;
  if (madvise(page, page_size(), MADV_WIPEONFORK) != 0) return false;
  *memory->canary = CANARY;
  return true;
}

eb_status eb_secret_map(eb_secret_memory *memory, const size_t *lengths, uint8_t **areas, size_t n,
                        bool allow_secret) {
  eb_status status = EB_OK;
  int fd = -1;

  memset(memory, 0, sizeof *memory);
  EB_ENSURE(open_canary(memory), EB_ERR_MEMORY);
  for (size_t i = 0; i < n; i++) memory->bytes += whole_pages(lengths[i]);
  memory->reserved_len = memory->bytes + (n + 1) * page_size();
  void *reserved = mmap(NULL, memory->reserved_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  EB_ENSURE(reserved != MAP_FAILED, EB_ERR_MEMORY);
  memory->reserved = reserved;

  if (allow_secret) fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
  if (fd >= 0 && ftruncate(fd, (off_t)memory->bytes) == 0 && map_areas(memory, lengths, areas, n, fd)) {
    memory->kind = EB_MEMORY_SECRET;
  } else {
    EB_ENSURE(map_areas(memory, lengths, areas, n, -1), EB_ERR_MEMORY_LOCK);
    memory->kind = EB_MEMORY_LOCKED;
  }
done:
  if (fd >= 0) close(fd); /* the mappings keep it; no descriptor leads to the secrets */
  if (status != EB_OK) eb_secret_unmap(memory);
  return status;
}

bool eb_secret_alive(const eb_secret_memory *memory) { return memory->canary != NULL && *memory->canary == CANARY; }

void eb_secret_unmap(eb_secret_memory *memory) {
  /* A child may have mapped something else where the parent's secrets were. */
  if (eb_secret_alive(memory) && memory->reserved != NULL) munmap(memory->reserved, memory->reserved_len);
  if (memory->canary != NULL) munmap((void *)(uintptr_t)memory->canary, page_size());
  memset(memory, 0, sizeof *memory);
}
