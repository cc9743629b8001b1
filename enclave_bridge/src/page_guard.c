/*
 * A MAC for each page of memory that others can write: AES-256-GMAC over a private copy of the page. The nonce
 * is page index || write counter, the key is one table's (HKDF over a fresh salt, the generation, the region),
 * so neither a page of another place, time, generation or region nor a nonce used twice can pass.
 */
#include "page_guard.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "equal.h"
#include "guard.h"
#include "kdf.h"
#include "record.h"
#include "transfer.h"

_Static_assert(EB_GCM_IV_SIZE == 4 + 8, "a nonce is an index and a counter");

static size_t smaller(uint64_t a, uint64_t b) { return (size_t)(a < b ? a : b); }

/* ---- making and freeing -------------------------------------------------------------------- */

eb_status eb_guard_usable(const eb_guard *guard) {
  if (guard == NULL) return EB_ERR_ARGUMENT;
  return eb_bridge_alive(guard->bridge) ? EB_OK : EB_ERR_FORKED;
}

void eb_guard_hold(eb_guard *guard) { atomic_fetch_add(&guard->references, 1); }

static void drop_keys(eb_guard *guard) {
  const bool alive = eb_bridge_alive(guard->bridge);
  if (!alive) guard->gcm.secret = NULL; /* secret memory is not there in a forked child */
  eb_gcm_release(&guard->gcm);
  if (alive) eb_arena_give(&guard->bridge->arena, EB_POOL_GUARDS, guard->secret);
  guard->secret = NULL;
}

void eb_guard_free(eb_guard *guard) {
  if (guard == NULL || atomic_fetch_sub(&guard->references, 1) != 1) return;
  drop_keys(guard);
  eb_shared_close(&guard->memory);
  eb_file_close(guard->journal);
  if (eb_bridge_alive(guard->bridge)) eb_mutex_destroy(&guard->lock);
  free(guard->entries);
  eb_sealing_free(guard->sealing);
  eb_bridge_free(guard->bridge);
  free(guard);
}

/* The table's keys from the sealing key, or from one that ends with the guard. */
static eb_status derive_keys(eb_guard *guard) {
  static const char label[] = "pagegate/v1 region guard"; /* its terminating zero is part of the info */
  const eb_gcm_ops *ops = guard->bridge->gcm;
  eb_guard_secret *secret = guard->secret;
  const uint8_t *root = secret->root;
  eb_status status = EB_OK;
  uint8_t info[sizeof label + 16 + EB_MAX_REGION_NAME];
  const size_t name_len = strlen(guard->region);

  memcpy(info, label, sizeof label);
  eb_store_u64le(info + sizeof label, guard->first_generation);
  eb_store_u64le(info + sizeof label + 8, guard->pages);
  memcpy(info + sizeof label + 16, guard->region, name_len);
  if (guard->sealing != NULL)
    root = guard->sealing->key;
  else
    EB_TRY(eb_platform_random(secret->root, sizeof secret->root));
  eb_hkdf_extract(EB_GUARD_SUITE, guard->salt, sizeof guard->salt, root, EB_SEALING_KEY_SIZE, secret->prk);
  EB_TRY(eb_hkdf_expand(EB_GUARD_SUITE, secret->prk, info, sizeof label + 16 + name_len, secret->keys,
                        sizeof secret->keys));
  guard->gcm = (eb_gcm){.ops = ops, .secret = secret->gcm};
  EB_TRY(ops->setup(&guard->gcm, EB_GUARD_KEY_SIZE, true));
  EB_TRY(ops->set_key(&guard->gcm, secret->keys, EB_GUARD_KEY_SIZE));
done:
  OPENSSL_cleanse(secret->root, sizeof secret->root);
  OPENSSL_cleanse(secret->prk, sizeof secret->prk);
  OPENSSL_cleanse(secret->keys, EB_GUARD_KEY_SIZE);
  return status;
}

static eb_status check_scope(const eb_guard_scope *scope) {
  if (scope == NULL || scope->region == NULL) return EB_ERR_ARGUMENT;
  const size_t len = strlen(scope->region);
  if (len == 0 || len > EB_MAX_REGION_NAME) return EB_ERR_LENGTH;
  return scope->pages >= 1 && scope->pages <= EB_MAX_WINDOW_PAGES ? EB_OK : EB_ERR_ARGUMENT;
}

eb_status eb_guard_make(eb_bridge *bridge, eb_sealing *sealing, const eb_guard_scope *scope, int fd, uint64_t fd_offset,
                        const uint8_t *salt, eb_guard **guard) {
  eb_status status = EB_OK;
  eb_guard *made = NULL;
  EB_ENSURE(bridge != NULL && guard != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(sealing == NULL || sealing->bridge == bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(eb_bridge_alive(bridge), EB_ERR_FORKED);
  EB_TRY(check_scope(scope));
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  atomic_init(&made->references, 1);
  eb_mutex_init(&made->lock);
  eb_bridge_hold(bridge);
  made->bridge = bridge;
  if (sealing != NULL) eb_sealing_hold(sealing);
  made->sealing = sealing;
  made->memory.file.fd = made->journal = -1;
  made->pages = scope->pages;
  made->generation = made->first_generation = scope->generation;
  strncpy(made->region, scope->region, EB_MAX_REGION_NAME);
  EB_TRY(eb_shared_open(bridge, &made->memory, fd, fd_offset, made->pages * EB_PAGE_SIZE));
  made->entries = calloc(made->pages, sizeof *made->entries);
  EB_ENSURE(made->entries != NULL, EB_ERR_MEMORY);
  made->secret = eb_arena_take(&bridge->arena, EB_POOL_GUARDS);
  EB_ENSURE(made->secret != NULL, EB_ERR_LIMIT);
  if (salt != NULL)
    memcpy(made->salt, salt, sizeof made->salt);
  else
    EB_TRY(eb_platform_random(made->salt, sizeof made->salt));
  EB_TRY(derive_keys(made));
  *guard = made;
  made = NULL;
done:
  eb_guard_free(made);
  return status;
}

eb_status eb_guard_new(eb_bridge *bridge, eb_sealing *sealing, const eb_guard_scope *scope, int fd, uint64_t fd_offset,
                       eb_guard **guard) {
  return eb_guard_make(bridge, sealing, scope, fd, fd_offset, NULL, guard);
}

/* ---- pages ----------------------------------------------------------------------------------- */

/* MACs of n private pages under the counters of their entries, which may be any. */
static eb_status make_tags(eb_guard *guard, uint64_t first, size_t n, const uint8_t *pages,
                           const eb_guard_entry *entries, uint8_t (*tags)[EB_TAG_SIZE]) {
  uint8_t nonces[EB_LANE_PAGES][EB_GCM_IV_SIZE], none[1] = {0};
  eb_gcm_item items[EB_LANE_PAGES];
  for (size_t i = 0; i < n; i++) {
    uint8_t index[8];
    eb_store_u64le(index, first + i); /* below 2^28 */
    memcpy(nonces[i], index, 4);
    eb_store_u64le(nonces[i] + 4, entries[i].counter);
    items[i] = (eb_gcm_item){
        .iv = nonces[i], .aad = pages + i * EB_PAGE_SIZE, .in = none, .out = none, .tag = tags[i]};
  }
  return guard->gcm.ops->seal(&guard->gcm, NULL, items, n, EB_PAGE_SIZE, 0);
}

/* With the lock held. Copies n pages from `first` into private memory; returns how many were there. */
static size_t fetch(const eb_guard *guard, uint64_t first, size_t n, uint8_t *into) {
  size_t there = 0;
  if (eb_shared_read(&guard->memory, first * EB_PAGE_SIZE, into, n * EB_PAGE_SIZE)) return n;
  while (there < n && eb_shared_read(&guard->memory, (first + there) * EB_PAGE_SIZE, into + there * EB_PAGE_SIZE,
                                     EB_PAGE_SIZE)) /* cut short, or unreadable in part: page by page */
    there++;
  return there;
}

static bool is_zero(const uint8_t *page) { return page[0] == 0 && memcmp(page, page + 1, EB_PAGE_SIZE - 1) == 0; }

eb_status eb_guard_check(eb_guard *guard, uint64_t first, size_t n, const uint8_t *pages, bool *good) {
  eb_status status = EB_OK;
  uint8_t tags[EB_LANE_PAGES][EB_TAG_SIZE];
  const eb_guard_entry *entries = guard->entries + first;
  for (size_t i = 0; i < n; i++) { /* runs of written pages, by MAC; the others must be zero */
    size_t written = 0;
    while (i + written < n && entries[i + written].counter != 0) written++;
    if (written > 0) EB_TRY(make_tags(guard, first + i, written, pages + i * EB_PAGE_SIZE, entries + i, tags));
    for (size_t j = 0; j < written; j++)
      good[i + j] = eb_equal(tags[j], entries[i + j].tag, EB_TAG_SIZE);
    i += written;
    if (i < n) good[i] = is_zero(pages + i * EB_PAGE_SIZE);
  }
done:
  OPENSSL_cleanse(tags, sizeof tags); /* of a changed page: under a nonce that its own MAC has */
  return status;
}

/* With the lock held: fetch and check; what is not there is not good. */
static eb_status fetch_checked(eb_guard *guard, uint64_t first, size_t n, uint8_t *into, bool *good) {
  const size_t there = fetch(guard, first, n, into);
  for (size_t i = there; i < n; i++) good[i] = false;
  return eb_guard_check(guard, first, there, into, good);
}

static size_t first_bad(const bool *good, size_t n) {
  size_t i = 0;
  while (i < n && good[i]) i++;
  return i;
}

void eb_guard_walk_start(eb_guard_walk *walk, eb_guard *guard, uint64_t first, uint64_t pages) {
  const eb_stored_file *file = &guard->memory.file;
  *walk = (eb_guard_walk){.guard = guard, .next = first, .end = first + pages};
  walk->file = (eb_source){guard->bridge, file->fd, file->offset, guard->memory.len};
  walk->used = smaller(pages * EB_PAGE_SIZE, EB_STAGING_SIZE);
  walk->staging = eb_staging_take(guard->bridge);
  if (guard->memory.ahead)
    eb_reader_start(&walk->reader, &walk->file, walk->staging, first * EB_PAGE_SIZE, pages * EB_PAGE_SIZE);
}

eb_status eb_guard_walk_next(eb_guard_walk *walk, uint8_t **pages, size_t *n, bool good[EB_LANE_PAGES]) {
  eb_guard *guard = walk->guard;
  eb_status status = EB_OK;
  bool there = false;
  *n = smaller(EB_LANE_PAGES, walk->end - walk->next);
  *pages = eb_staging_chunk(walk->staging, 0);
  if (guard->memory.ahead) there = eb_reader_next(&walk->reader, pages) == EB_OK;
  memset(good, 0, *n * sizeof good[0]);
  eb_mutex_lock(&guard->lock);
  if (there) status = eb_guard_check(guard, walk->next, *n, *pages, good);
  /* Memory is read here. What was read ahead may have been written since, or be there in part only. */
  if (status == EB_OK && first_bad(good, *n) < *n) status = fetch_checked(guard, walk->next, *n, *pages, good);
  eb_mutex_unlock(&guard->lock);
  walk->next += *n;
  return status;
}

void eb_guard_walk_end(eb_guard_walk *walk) {
  if (walk->staging != NULL) eb_staging_give(walk->guard->bridge, walk->staging, walk->used);
}

/* With the lock held: new MACs for n private pages; nothing else changes. */
static eb_status make_entries(eb_guard *guard, uint64_t first, size_t n, const uint8_t *pages,
                              eb_guard_entry *entries) {
  eb_status status = EB_OK;
  uint8_t tags[EB_LANE_PAGES][EB_TAG_SIZE];
  EB_ENSURE(!guard->frozen, EB_ERR_STATE);
  EB_ENSURE(guard->counter <= UINT64_MAX - n, EB_ERR_EXHAUSTED);
  for (size_t i = 0; i < n; i++) entries[i].counter = ++guard->counter; /* used up, whatever happens */
  EB_TRY(make_tags(guard, first, n, pages, entries, tags));
  for (size_t i = 0; i < n; i++) memcpy(entries[i].tag, tags[i], EB_TAG_SIZE);
done:
  return status;
}

eb_status eb_guard_put(eb_guard *guard, uint64_t first, const uint8_t *pages, size_t n) {
  eb_status status = EB_OK;
  eb_guard_entry entries[EB_LANE_PAGES];
  eb_mutex_lock(&guard->lock);
  EB_TRY(make_entries(guard, first, n, pages, entries));
  for (size_t i = 0; i < n && guard->journal >= 0; i++)
    EB_TRY(eb_guard_journal_write(guard, first + i, &entries[i], pages + i * EB_PAGE_SIZE));
  /* Half a page may be written when this fails: then it verifies neither as the old nor as the new one. */
  memcpy(guard->entries + first, entries, n * sizeof entries[0]);
  EB_TRY(eb_shared_write(&guard->memory, first * EB_PAGE_SIZE, pages, n * EB_PAGE_SIZE));
done:
  eb_mutex_unlock(&guard->lock);
  return status;
}

/* ---- whole regions ----------------------------------------------------------------------------- */

static void note_bad(eb_page_range *bad, size_t cap, eb_verify_result *result, uint64_t index) {
  result->bad_pages++;
  if (result->ranges > 0 && bad[result->ranges - 1].first + bad[result->ranges - 1].pages == index)
    bad[result->ranges - 1].pages++;
  else if (result->ranges < cap)
    bad[result->ranges++] = (eb_page_range){index, 1};
}

eb_status eb_guard_verify(eb_guard *guard, uint64_t first, uint64_t pages, eb_page_range *bad, size_t bad_cap,
                          eb_verify_result *result) {
  eb_status status = EB_OK;
  eb_guard_walk walk = {.staging = NULL};
  eb_verify_result found = {0};
  bool good[EB_LANE_PAGES];
  EB_TRY(eb_guard_usable(guard));
  EB_ENSURE(result != NULL && (bad != NULL || bad_cap == 0), EB_ERR_ARGUMENT);
  EB_ENSURE(pages >= 1 && first < guard->pages && pages <= guard->pages - first, EB_ERR_OUT_OF_RANGE);
  eb_guard_walk_start(&walk, guard, first, pages);
  while (found.pages < pages) {
    uint8_t *copies = NULL;
    size_t n = 0;
    EB_TRY(eb_guard_walk_next(&walk, &copies, &n, good));
    for (size_t i = 0; i < n; i++)
      if (!good[i]) note_bad(bad, bad_cap, &found, first + found.pages + i);
    found.pages += n;
  }
  *result = found;
done:
  eb_guard_walk_end(&walk);
  return status;
}

/* Pages of `from` that were written, whose verified copies are in `pages`, become `to`'s under its own key. */
static eb_status adopt(eb_guard *to, const eb_guard_entry *from, uint64_t first, size_t n, const uint8_t *pages) {
  eb_status status = EB_OK;
  eb_guard_entry entries[EB_LANE_PAGES];
  uint8_t now[EB_PAGE_SIZE];
  EB_TRY(make_entries(to, first, n, pages, entries));
  for (size_t i = 0; i < n; i++) {
    const uint8_t *page = pages + i * EB_PAGE_SIZE;
    if (from[i].counter == 0) continue;
    to->entries[first + i] = entries[i];
    /* Not if it is there already: the memory stays sparse, and a file clean. */
    if (fetch(to, first + i, 1, now) == 1 && memcmp(now, page, EB_PAGE_SIZE) == 0) continue;
    EB_TRY(eb_shared_write(&to->memory, (first + i) * EB_PAGE_SIZE, page, EB_PAGE_SIZE));
  }
done:
  OPENSSL_cleanse(now, sizeof now);
  return status;
}

/* `from` is locked for each batch, or by the caller for all of it. The lane was taken before: who opens pages has one
 * and waits for a guard's lock. */
static eb_status carry(eb_guard *to, eb_guard *from, bool from_is_locked, eb_lane_secret *lane, uint64_t *bad_page) {
  eb_status status = EB_OK;
  eb_guard_entry entries[EB_LANE_PAGES];
  bool good[EB_LANE_PAGES];
  for (uint64_t first = 0; first < to->pages; first += EB_LANE_PAGES) {
    const size_t n = smaller(EB_LANE_PAGES, to->pages - first);
    if (!from_is_locked) eb_mutex_lock(&from->lock);
    status = fetch_checked(from, first, n, lane->pages, good);
    memcpy(entries, from->entries + first, n * sizeof entries[0]);
    if (!from_is_locked) eb_mutex_unlock(&from->lock);
    if (status != EB_OK) goto done;
    *bad_page = first + first_bad(good, n);
    EB_ENSURE(*bad_page == first + n, EB_ERR_TAMPERED);
    eb_mutex_lock(&to->lock);
    status = adopt(to, entries, first, n, lane->pages);
    eb_mutex_unlock(&to->lock);
    if (status != EB_OK) goto done;
  }
done:
  return status;
}

eb_status eb_guard_carry(eb_guard *guard, eb_guard *from, uint64_t *bad_page) {
  eb_status status = EB_OK;
  EB_TRY(eb_guard_usable(guard));
  EB_TRY(eb_guard_usable(from));
  EB_ENSURE(bad_page != NULL && guard != from && guard->bridge == from->bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(guard->pages == from->pages, EB_ERR_LENGTH);
  EB_ENSURE(guard->journal < 0, EB_ERR_STATE);
  eb_lane_secret *lane = eb_arena_wait(&guard->bridge->arena, EB_POOL_LANES);
  status = carry(guard, from, false, lane, bad_page);
  eb_arena_give(&guard->bridge->arena, EB_POOL_LANES, lane);
done:
  return status;
}

eb_status eb_guard_renew(eb_guard *guard, uint64_t generation, uint64_t *bad_page) {
  eb_status status = EB_OK;
  eb_guard *fresh = NULL;
  eb_lane_secret *lane = NULL;
  bool locked = false;
  EB_TRY(eb_guard_usable(guard));
  EB_ENSURE(bad_page != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(guard->memory.mapping == NULL, EB_ERR_STATE); /* a device's memory keeps nothing to load */
  const eb_guard_scope scope = {guard->region, generation, guard->pages};
  EB_TRY(eb_guard_make(guard->bridge, guard->sealing, &scope, guard->memory.file.fd, guard->memory.file.offset, NULL, &fresh));
  lane = eb_arena_wait(&guard->bridge->arena, EB_POOL_LANES);
  eb_mutex_lock(&guard->lock);
  locked = true;
  EB_TRY(carry(fresh, guard, true, lane, bad_page));
  drop_keys(guard);
  free(guard->entries);
  eb_file_close(guard->journal);
  guard->secret = fresh->secret;
  guard->gcm = fresh->gcm;
  guard->entries = fresh->entries;
  guard->counter = fresh->counter;
  guard->generation = guard->first_generation = generation;
  memcpy(guard->salt, fresh->salt, sizeof guard->salt);
  guard->frozen = false;
  guard->journal = -1;
  guard->journalled = 0;
  fresh->secret = NULL;
  fresh->gcm = (eb_gcm){0};
  fresh->entries = NULL;
done:
  if (locked) eb_mutex_unlock(&guard->lock);
  eb_arena_give(&guard->bridge->arena, EB_POOL_LANES, lane);
  eb_guard_free(fresh);
  return status;
}
