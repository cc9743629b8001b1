/*
 * Handles that a hostile process names by number.
 *
 * A number is the place in the table and how often the place was used, so a number that was released stays wrong.
 * What is in use is not freed: a release takes effect when the last call that uses the object has ended. A
 * handshake is used by one call at a time.
 */
#ifndef EB_HANDLES_H
#define EB_HANDLES_H

#include <pthread.h>
#include <stdbool.h>

#include "wire.h"

typedef struct {
  void *object; /* NULL: the place is free */
  uint32_t generation;
  uint32_t users;
  eb_kind kind;
  bool released;
} eb_handle_slot;

typedef struct {
  pthread_mutex_t lock;
  eb_handle_slot *slots;
  uint32_t *free_slots;
  uint32_t count, free_count;
} eb_handles;

eb_status eb_handles_open(eb_handles *handles, uint32_t count);
/* Frees every object. No call may be in progress. */
void eb_handles_close(eb_handles *handles);
/* EB_ERR_LIMIT when the table is full: the object is still the caller's then. */
eb_status eb_handles_put(eb_handles *handles, eb_kind kind, void *object, uint64_t *number);
/* The object of a number, in use until eb_handles_give. EB_ERR_ARGUMENT: there is none of that kind.
 * EB_ERR_STATE: it is a handshake that another call uses. */
eb_status eb_handles_take(eb_handles *handles, eb_kind kind, uint64_t number, void **object);
void eb_handles_give(eb_handles *handles, uint64_t number);
/* EB_ERR_ARGUMENT: there is none. */
eb_status eb_handles_release(eb_handles *handles, uint64_t number);

#endif
