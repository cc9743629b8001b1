#include "handles.h"

#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "lent_memory.h"

static void destroy(eb_kind kind, void *object) {
  switch (kind) {
    case EB_KIND_HANDSHAKE: eb_handshake_free(object); break;
    case EB_KIND_SESSION: eb_session_free(object); break;
    case EB_KIND_TRANSFER: eb_transfer_free(object); break;
    case EB_KIND_SOURCE: eb_source_free(object); break;
    case EB_KIND_GUARD: eb_guard_free(object); break;
    case EB_KIND_SEALING: eb_sealing_free(object); break;
    case EB_KIND_LENT: eb_lent_memory_free(object); break;
    default: break;
  }
}

eb_status eb_handles_open(eb_handles *handles, uint32_t count) {
  eb_status status = EB_OK;
  memset(handles, 0, sizeof *handles);
  pthread_mutex_init(&handles->lock, NULL);
  handles->slots = calloc(count, sizeof *handles->slots);
  handles->free_slots = calloc(count, sizeof *handles->free_slots);
  EB_ENSURE(handles->slots != NULL && handles->free_slots != NULL, EB_ERR_MEMORY);
  handles->count = handles->free_count = count;
  for (uint32_t i = 0; i < count; i++) handles->free_slots[i] = count - 1 - i;
done:
  if (status != EB_OK) eb_handles_close(handles);
  return status;
}

void eb_handles_close(eb_handles *handles) {
  for (uint32_t i = 0; i < handles->count; i++) destroy(handles->slots[i].kind, handles->slots[i].object);
  free(handles->slots);
  free(handles->free_slots);
  pthread_mutex_destroy(&handles->lock);
  memset(handles, 0, sizeof *handles);
}

eb_status eb_handles_put(eb_handles *handles, eb_kind kind, void *object, uint64_t *number) {
  eb_status status = EB_OK;
  pthread_mutex_lock(&handles->lock);
  EB_ENSURE(handles->free_count > 0, EB_ERR_LIMIT);
  const uint32_t index = handles->free_slots[--handles->free_count];
  eb_handle_slot *slot = &handles->slots[index];
  slot->object = object;
  slot->kind = kind;
  slot->users = 0;
  slot->released = false;
  *number = (uint64_t)slot->generation << 32 | (index + 1); /* never 0 */
done:
  pthread_mutex_unlock(&handles->lock);
  return status;
}

/* With the lock held: NULL unless the number is that of a handle which nobody released. */
static eb_handle_slot *find(eb_handles *handles, uint64_t number) {
  const uint64_t place = number & UINT32_MAX;
  if (place < 1 || place > handles->count) return NULL;
  eb_handle_slot *slot = &handles->slots[place - 1];
  return slot->object != NULL && !slot->released && slot->generation == number >> 32 ? slot : NULL;
}

eb_status eb_handles_take(eb_handles *handles, eb_kind kind, uint64_t number, void **object) {
  eb_status status = EB_OK;
  pthread_mutex_lock(&handles->lock);
  eb_handle_slot *slot = find(handles, number);
  EB_ENSURE(slot != NULL && slot->kind == kind, EB_ERR_ARGUMENT);
  EB_ENSURE(kind != EB_KIND_HANDSHAKE || slot->users == 0, EB_ERR_STATE);
  slot->users++;
  *object = slot->object;
done:
  pthread_mutex_unlock(&handles->lock);
  return status;
}

/* With the lock held, by the one who ends the last use; gives the lock back. */
static void retire(eb_handles *handles, eb_handle_slot *slot) {
  void *object = slot->object;
  const eb_kind kind = slot->kind;
  slot->object = NULL;
  slot->generation++;
  handles->free_slots[handles->free_count++] = (uint32_t)(slot - handles->slots);
  pthread_mutex_unlock(&handles->lock);
  destroy(kind, object); /* may unmap gigabytes: not under the lock */
}

void eb_handles_give(eb_handles *handles, uint64_t number) {
  pthread_mutex_lock(&handles->lock);
  eb_handle_slot *slot = &handles->slots[(number & UINT32_MAX) - 1];
  slot->users--;
  if (slot->users == 0 && slot->released)
    retire(handles, slot);
  else
    pthread_mutex_unlock(&handles->lock);
}

eb_status eb_handles_release(eb_handles *handles, uint64_t number) {
  pthread_mutex_lock(&handles->lock);
  eb_handle_slot *slot = find(handles, number);
  if (slot == NULL) {
    pthread_mutex_unlock(&handles->lock);
    return EB_ERR_ARGUMENT;
  }
  slot->released = true;
  if (slot->users == 0)
    retire(handles, slot);
  else
    pthread_mutex_unlock(&handles->lock);
  return EB_OK;
}
