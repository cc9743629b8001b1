#include "arena.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guard.h"

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447 /* Linux 5.14, the same number on x86-64 and arm64 */
#endif

#define CANARY UINT64_C(0x656e636c61766531)

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

/* Maps [at, at + len) as secret memory from fd, or as locked anonymous memory when fd is -1. */
static bool map_secret(uint8_t *at, size_t len, int fd, size_t offset) {
  int flags = MAP_FIXED | (fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
  if (mmap(at, len, PROT_READ | PROT_WRITE, flags, fd, fd >= 0 ? (off_t)offset : 0) == MAP_FAILED) return false;
  if (fd < 0 && (mlock(at, len) != 0 || madvise(at, len, MADV_DONTDUMP) != 0)) return false;
  if (madvise(at, len, MADV_DONTFORK) != 0) return false;
  memset(at, 0, len); /* fault everything in now, not in the page path */
  return true;
}

static bool map_pools(eb_arena *arena, const size_t lengths[EB_POOLS], int fd) {
  uint8_t *at = arena->reserved + page_size();
  size_t offset = 0;
  for (int i = 0; i < EB_POOLS; i++) {
    if (!map_secret(at, lengths[i], fd, offset)) return false;
    arena->pools[i].base = at;
    at += lengths[i] + page_size();
    offset += lengths[i];
  }
  return true;
}

static bool open_canary(eb_arena *arena) {
  void *page = mmap(NULL, page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  arena->canary = page;
  if (madvise(page, page_size(), MADV_WIPEONFORK) != 0) return false;
  *arena->canary = CANARY;
  return true;
}

eb_status eb_arena_open(eb_arena *arena, const eb_pool_plan plan[EB_POOLS], bool allow_secret) {
  eb_status status = EB_OK;
  size_t lengths[EB_POOLS];
  int fd = -1;

  memset(arena, 0, sizeof *arena);
  pthread_mutex_init(&arena->lock, NULL);
  pthread_cond_init(&arena->given_back, NULL);
  EB_ENSURE(open_canary(arena), EB_ERR_MEMORY);

  for (int i = 0; i < EB_POOLS; i++) {
    eb_pool *pool = &arena->pools[i];
    pool->slot_size = round_up(plan[i].slot_size, 64);
    pool->count = plan[i].count;
    lengths[i] = round_up(pool->slot_size * pool->count, page_size());
    arena->secret_bytes += lengths[i];
    pool->free_slots = calloc(pool->count, sizeof *pool->free_slots);
    EB_ENSURE(pool->free_slots != NULL, EB_ERR_MEMORY);
    for (uint32_t slot = 0; slot < pool->count; slot++) pool->free_slots[slot] = pool->count - 1 - slot;
    pool->free_count = pool->count;
  }
  arena->reserved_len = arena->secret_bytes + (EB_POOLS + 1) * page_size();
  void *reserved = mmap(NULL, arena->reserved_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  EB_ENSURE(reserved != MAP_FAILED, EB_ERR_MEMORY);
  arena->reserved = reserved;

  if (allow_secret) fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
  if (fd >= 0 && ftruncate(fd, (off_t)arena->secret_bytes) == 0 && map_pools(arena, lengths, fd)) {
    arena->kind = EB_MEMORY_SECRET;
  } else {
    EB_ENSURE(map_pools(arena, lengths, -1), EB_ERR_MEMORY_LOCK);
    arena->kind = EB_MEMORY_LOCKED;
  }

done:
  if (fd >= 0) close(fd); /* the mappings keep it; no descriptor leads to the secrets */
  if (status != EB_OK) eb_arena_close(arena);
  return status;
}

bool eb_arena_alive(const eb_arena *arena) { return *arena->canary == CANARY; }

void eb_arena_close(eb_arena *arena) {
  if (arena->canary != NULL) {
    /* A child may have mapped something else where the parent's secrets were. */
    bool parent = eb_arena_alive(arena);
    if (parent && arena->reserved != NULL) {
      for (int i = 0; i < EB_POOLS; i++)
        if (arena->kind != 0) OPENSSL_cleanse(arena->pools[i].base, arena->pools[i].slot_size * arena->pools[i].count);
      munmap(arena->reserved, arena->reserved_len);
    }
    munmap((void *)(uintptr_t)arena->canary, page_size());
    if (parent) {
      pthread_mutex_destroy(&arena->lock);
      pthread_cond_destroy(&arena->given_back);
    }
  }
  for (int i = 0; i < EB_POOLS; i++) free(arena->pools[i].free_slots);
  memset(arena, 0, sizeof *arena);
}

static void *take(eb_arena *arena, eb_pool_kind kind, bool wait) {
  eb_pool *pool = &arena->pools[kind];
  void *slot = NULL;
  pthread_mutex_lock(&arena->lock);
  while (wait && pool->free_count == 0) pthread_cond_wait(&arena->given_back, &arena->lock);
  if (pool->free_count > 0) slot = pool->base + (size_t)pool->free_slots[--pool->free_count] * pool->slot_size;
  pthread_mutex_unlock(&arena->lock);
  return slot;
}

void *eb_arena_take(eb_arena *arena, eb_pool_kind kind) { return take(arena, kind, false); }

void *eb_arena_wait(eb_arena *arena, eb_pool_kind kind) { return take(arena, kind, true); }

void eb_arena_give_used(eb_arena *arena, eb_pool_kind kind, void *slot, size_t used) {
  if (slot == NULL) return;
  eb_pool *pool = &arena->pools[kind];
  OPENSSL_cleanse(slot, used);
  pthread_mutex_lock(&arena->lock);
  pool->free_slots[pool->free_count++] = (uint32_t)((size_t)((uint8_t *)slot - pool->base) / pool->slot_size);
  pthread_cond_signal(&arena->given_back);
  pthread_mutex_unlock(&arena->lock);
}

void eb_arena_give(eb_arena *arena, eb_pool_kind kind, void *slot) {
  eb_arena_give_used(arena, kind, slot, arena->pools[kind].slot_size);
}

uint32_t eb_arena_live(eb_arena *arena, eb_pool_kind kind) {
  pthread_mutex_lock(&arena->lock);
  uint32_t live = arena->pools[kind].count - arena->pools[kind].free_count;
  pthread_mutex_unlock(&arena->lock);
  return live;
}
