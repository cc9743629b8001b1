/*
 * Secret memory: one reservation at open, cut into fixed slots, never grown.
 *
 *   guard | sessions | guard | handshakes | guard | lanes | guard | staging | guard | guards and sealing keys | guard
 *
 * Guards are inaccessible pages. A slot is zero when taken and zeroised when given back.
 * The memory is not inherited by fork, not swapped and not dumped; with memfd_secret the
 * kernel itself has no mapping of it. A canary page that the kernel wipes in a forked child
 * tells parent from child without a system call.
 */
#ifndef EB_ARENA_H
#define EB_ARENA_H

#include "platform.h"

typedef enum {
  EB_POOL_SESSIONS,
  EB_POOL_HANDSHAKES,
  EB_POOL_LANES,
  EB_POOL_STAGING,
  EB_POOL_GUARDS,
  EB_POOLS
} eb_pool_kind;

typedef struct {
  uint8_t *base;
  size_t slot_size; /* multiple of 64 */
  uint32_t count;
  uint32_t free_count;
  uint32_t *free_slots; /* stack of free indices: the last used slot is the warmest */
} eb_pool;

typedef struct {
  eb_secret_memory memory;
  eb_mutex lock;
  eb_condition given_back;
  eb_pool pools[EB_POOLS];
} eb_arena;

typedef struct {
  size_t slot_size;
  uint32_t count;
} eb_pool_plan;

/* allow_secret false leaves out memfd_secret, so that the fallback can be tested.
 * EB_ERR_MEMORY_LOCK, EB_ERR_MEMORY. */
eb_status eb_arena_open(eb_arena *arena, const eb_pool_plan plan[EB_POOLS], bool allow_secret);
/* In a forked child only what the child owns is released; secret memory is not there. */
void eb_arena_close(eb_arena *arena);
/* False in a forked child. */
bool eb_arena_alive(const eb_arena *arena);

/* NULL when every slot is in use. */
void *eb_arena_take(eb_arena *arena, eb_pool_kind kind);
/* Waits until a slot is given back. */
void *eb_arena_wait(eb_arena *arena, eb_pool_kind kind);
/* Zeroises all of the slot. NULL is allowed. */
void eb_arena_give(eb_arena *arena, eb_pool_kind kind, void *slot);
/* Zeroises the first `used` bytes: the rest was not written since it was taken. */
void eb_arena_give_used(eb_arena *arena, eb_pool_kind kind, void *slot, size_t used);
uint32_t eb_arena_live(eb_arena *arena, eb_pool_kind kind);

#endif
