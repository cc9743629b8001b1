/*
 * A guard's insides. Its entries are private memory of the guest, so the host cannot change them; what leaves
 * it (guard_store.c) is authenticated.
 */
#ifndef EB_PAGE_GUARD_H
#define EB_PAGE_GUARD_H

#include "bridge.h"
#include "sealing.h"
#include "shared_io.h"
#include "source.h"

#define EB_GUARD_SALT_SIZE 32u
#define EB_GUARD_KEY_SIZE 32u
#define EB_GUARD_SUITE EB_SUITE_P256_SHA256_AES128GCM /* its hash: HMAC and HKDF are by SHA-256 here */

/* In secret memory. */
typedef struct {
  _Alignas(64) uint8_t gcm[EB_GCM_SECRET_SIZE];
  /* The first authenticates pages and is here only while it is being set, the second the stored table. */
  uint8_t keys[2 * EB_GUARD_KEY_SIZE];
  uint8_t root[EB_SEALING_KEY_SIZE], prk[EB_GUARD_KEY_SIZE]; /* only on the way to the keys */
} eb_guard_secret;

/* What a page is now. */
typedef struct {
  uint64_t counter; /* of the write that made it, never used twice under one key; 0: never written, so zero */
  uint8_t tag[EB_TAG_SIZE];
} eb_guard_entry;

struct eb_guard {
  eb_bridge *bridge;
  eb_sealing *sealing; /* NULL: the keys end with the guard */
  atomic_uint references;
  char region[EB_MAX_REGION_NAME + 1];
  uint64_t pages;
  eb_shared memory; /* the pages */

  eb_mutex lock; /* guards all below; taken after a transfer's */
  uint8_t salt[EB_GUARD_SALT_SIZE];
  uint64_t first_generation; /* of the table: bound into its keys */
  eb_guard_secret *secret;
  eb_gcm gcm;
  eb_guard_entry *entries;
  uint64_t generation;       /* that the next journalled write makes */
  uint64_t counter;          /* last one used */
  bool frozen;         /* loaded: others may have seen MACs under counters that follow, so it makes none */
  int journal;         /* the stored table, where writes go before they are made; -1: nowhere */
  uint64_t journalled; /* writes in it */
};

/* Argument and fork checks of every call on a guard. */
eb_status eb_guard_usable(const eb_guard *guard);
void eb_guard_hold(eb_guard *guard);
/* A guard with its keys, over zero pages. `salt` NULL: a fresh one. */
eb_status eb_guard_make(eb_bridge *bridge, eb_sealing *sealing, const eb_guard_scope *scope, int fd, uint64_t fd_offset,
                        const uint8_t *salt, eb_guard **guard);
/* With the lock held: which of n private pages, 1..EB_LANE_PAGES, are what the entries from `first` say. */
eb_status eb_guard_check(eb_guard *guard, uint64_t first, size_t n, const uint8_t *pages, bool *good);
/* A way over a guard's pages, in private copies that were checked; what may come from a disk is read ahead. */
typedef struct {
  eb_guard *guard;
  eb_source file;
  eb_staging *staging;
  eb_reader reader;
  uint64_t next, end; /* pages */
  size_t used;        /* bytes of the staging slot */
} eb_guard_walk;
/* Waits for a staging slot, so it comes before any lock. The pages are the guard's. */
void eb_guard_walk_start(eb_guard_walk *walk, eb_guard *guard, uint64_t first, uint64_t pages);
/* The next n pages, at most EB_LANE_PAGES, and which of them are as they were written. They are the caller's until
 * the next call. Takes the lock. */
eb_status eb_guard_walk_next(eb_guard_walk *walk, uint8_t **pages, size_t *n, bool good[EB_LANE_PAGES]);
void eb_guard_walk_end(eb_guard_walk *walk);
/* Writes n private pages, 1..EB_LANE_PAGES, from `first`: MAC, journal, memory, in this order. EB_ERR_TARGET_FULL,
 * EB_ERR_TARGET_IO, EB_ERR_STATE (it only verifies), EB_ERR_EXHAUSTED. Takes the lock. */
eb_status eb_guard_put(eb_guard *guard, uint64_t first, const uint8_t *pages, size_t n);
/* With the lock held: a write that is about to be made goes to the journal. */
eb_status eb_guard_journal_write(eb_guard *guard, uint64_t index, const eb_guard_entry *entry, const uint8_t *page);

#endif
