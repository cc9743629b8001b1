#include "arena.h"

#include <stdlib.h>
#include <string.h>

#include "guard.h"

/* As OPENSSL_cleanse, which takes five times as long for the many pages of a batch. The compiler cannot know that
 * nobody looks at the memory any more. */
static void wipe(void *memory, size_t len) {
  memset(memory, 0, len);
  __asm__ volatile("" : : "r"(memory) : "memory");
}

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

eb_status eb_arena_open(eb_arena *arena, const eb_pool_plan plan[EB_POOLS], bool allow_secret) {
  eb_status status = EB_OK;
  size_t lengths[EB_POOLS];
  uint8_t *areas[EB_POOLS];

  memset(arena, 0, sizeof *arena);
  eb_mutex_init(&arena->lock);
  eb_condition_init(&arena->given_back);
  for (int i = 0; i < EB_POOLS; i++) {
    eb_pool *pool = &arena->pools[i];
    pool->slot_size = round_up(plan[i].slot_size, 64);
    pool->count = plan[i].count;
    lengths[i] = pool->slot_size * pool->count;
    pool->free_slots = calloc(pool->count, sizeof *pool->free_slots);
    EB_ENSURE(pool->free_slots != NULL, EB_ERR_MEMORY);
    for (uint32_t slot = 0; slot < pool->count; slot++) pool->free_slots[slot] = pool->count - 1 - slot;
    pool->free_count = pool->count;
  }
  EB_TRY(eb_secret_map(&arena->memory, lengths, areas, EB_POOLS, allow_secret));
  for (int i = 0; i < EB_POOLS; i++) arena->pools[i].base = areas[i];
done:
  if (status != EB_OK) eb_arena_close(arena);
  return status;
}

bool eb_arena_alive(const eb_arena *arena) { return eb_secret_alive(&arena->memory); }

void eb_arena_close(eb_arena *arena) {
  if (eb_arena_alive(arena)) { /* in a child neither the secrets nor the locks are its own */
    for (int i = 0; i < EB_POOLS; i++)
      wipe(arena->pools[i].base, arena->pools[i].slot_size * arena->pools[i].count);
    eb_mutex_destroy(&arena->lock);
    eb_condition_destroy(&arena->given_back);
  }
  eb_secret_unmap(&arena->memory);
  for (int i = 0; i < EB_POOLS; i++) free(arena->pools[i].free_slots);
  memset(arena, 0, sizeof *arena);
}

static void *take(eb_arena *arena, eb_pool_kind kind, bool wait) {
  eb_pool *pool = &arena->pools[kind];
  void *slot = NULL;
  eb_mutex_lock(&arena->lock);
  while (wait && pool->free_count == 0) eb_condition_wait(&arena->given_back, &arena->lock);
  if (pool->free_count > 0) slot = pool->base + (size_t)pool->free_slots[--pool->free_count] * pool->slot_size;
  eb_mutex_unlock(&arena->lock);
  return slot;
}

void *eb_arena_take(eb_arena *arena, eb_pool_kind kind) { return take(arena, kind, false); }

void *eb_arena_wait(eb_arena *arena, eb_pool_kind kind) { return take(arena, kind, true); }

void eb_arena_give_used(eb_arena *arena, eb_pool_kind kind, void *slot, size_t used) {
  if (slot == NULL) return;
  eb_pool *pool = &arena->pools[kind];
  wipe(slot, used);
  eb_mutex_lock(&arena->lock);
  pool->free_slots[pool->free_count++] = (uint32_t)((size_t)((uint8_t *)slot - pool->base) / pool->slot_size);
  eb_condition_signal(&arena->given_back);
  eb_mutex_unlock(&arena->lock);
}

void eb_arena_give(eb_arena *arena, eb_pool_kind kind, void *slot) {
  eb_arena_give_used(arena, kind, slot, arena->pools[kind].slot_size);
}

uint32_t eb_arena_live(eb_arena *arena, eb_pool_kind kind) {
  eb_mutex_lock(&arena->lock);
  uint32_t live = arena->pools[kind].count - arena->pools[kind].free_count;
  eb_mutex_unlock(&arena->lock);
  return live;
}
