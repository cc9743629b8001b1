/* Page MACs of memory that others write: what they find, and what is kept of them. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "page_guard.h"
#include "pair.h"

enum { TABLE_HEADER = 72, TABLE_ENTRY = 24, TABLE_MAC = 32, WRITE_HEAD = 80 };

static const uint8_t id[EB_TRANSFER_ID_SIZE] = {9};

static eb_guard_scope scope_of(uint64_t generation) { return (eb_guard_scope){"book", generation, WINDOW_PAGES}; }

static int region_fd(void) {
  const int fd = memfd_create("region", MFD_CLOEXEC);
  CHECK(fd >= 0 && ftruncate(fd, WINDOW_PAGES * EB_PAGE_SIZE) == 0);
  return fd;
}

/* One that a file system keeps: read ahead. */
static int stored_fd(void) {
  char path[] = "/tmp/eb-region-XXXXXX";
  const int fd = mkstemp(path);
  CHECK(fd >= 0 && unlink(path) == 0 && ftruncate(fd, WINDOW_PAGES * EB_PAGE_SIZE) == 0);
  return fd;
}

static int empty_fd(void) {
  const int fd = memfd_create("table", MFD_CLOEXEC);
  CHECK(fd >= 0);
  return fd;
}

static void read_page(int fd, size_t index, uint8_t page[EB_PAGE_SIZE]) {
  CHECK(pread(fd, page, EB_PAGE_SIZE, (off_t)(index * EB_PAGE_SIZE)) == (ssize_t)EB_PAGE_SIZE);
}

static void write_page(int fd, size_t index, const uint8_t page[EB_PAGE_SIZE]) {
  CHECK(pwrite(fd, page, EB_PAGE_SIZE, (off_t)(index * EB_PAGE_SIZE)) == (ssize_t)EB_PAGE_SIZE);
}

static void flip(int fd, off_t at) {
  uint8_t byte = 0;
  CHECK(pread(fd, &byte, 1, at) == 1);
  byte ^= 0x10;
  CHECK(pwrite(fd, &byte, 1, at) == 1);
}

/* A region under a guard, and a transfer into it. */
typedef struct {
  eb_pair *pair;
  eb_sealing *sealing;
  eb_guard *guard;
  int fd;
} guarded;

static eb_sealing *file_sealing(eb_bridge *bridge) {
  eb_sealing *sealing = NULL;
  const int fd = memfd_create("key", MFD_CLOEXEC);
  const uint8_t key[EB_SEALING_KEY_SIZE] = {1, 2, 3};
  CHECK(fchmod(fd, 0600) == 0 && write(fd, key, sizeof key) == (ssize_t)sizeof key);
  CHECK_OK(eb_sealing_open_file(bridge, fd, &sealing));
  close(fd);
  return sealing;
}

/* The client sends pages [first, first + n) of its plaintext to whatever the guard guards. */
static eb_status send_pages(eb_pair *pair, eb_guard *guard, size_t first, size_t n) {
  const eb_window window = {REGION, BASE_GPA, WINDOW_PAGES};
  eb_transfer *transfer = NULL;
  eb_result result;
  CHECK_OK(eb_transfer_new(pair->bridge, id, &window, &transfer));
  CHECK_OK(eb_transfer_set_guard(transfer, guard));
  pair_seal(pair, first, n);
  const eb_status status = eb_pages_open(pair->server, transfer, pair->records, pair->records_len, &result);
  eb_transfer_free(transfer);
  return status;
}

static guarded guard_on(const eb_gcm_ops *ops, int fd) {
  guarded made = {.pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, ops), .fd = fd};
  const eb_guard_scope scope = scope_of(3);
  made.sealing = file_sealing(made.pair->bridge);
  CHECK_OK(eb_guard_new(made.pair->bridge, made.sealing, &scope, fd, 0, &made.guard));
  CHECK_OK(send_pages(made.pair, made.guard, 0, 40));
  return made;
}

static void drop(guarded *region) {
  eb_guard_free(region->guard);
  eb_sealing_free(region->sealing);
  CHECK(eb_arena_live(&region->pair->bridge->arena, EB_POOL_GUARDS) == 0);
  CHECK(pool_is_zero(region->pair->bridge, EB_POOL_GUARDS) && pool_is_zero(region->pair->bridge, EB_POOL_LANES));
  pair_free(region->pair);
  close(region->fd);
}

static eb_verify_result verify(eb_guard *guard, eb_page_range *bad, size_t cap) {
  eb_verify_result result;
  CHECK_OK(eb_guard_verify(guard, 0, WINDOW_PAGES, bad, cap, &result));
  CHECK(result.pages == WINDOW_PAGES);
  return result;
}

static uint64_t bad_pages(eb_guard *guard) { return verify(guard, NULL, 0).bad_pages; }

static eb_status seal_all(guarded *region, eb_result *result) {
  const eb_window window = {REGION, BASE_GPA, WINDOW_PAGES};
  eb_transfer *transfer = NULL;
  eb_pair *pair = region->pair;
  CHECK_OK(eb_transfer_new(pair->bridge, id, &window, &transfer));
  memset(pair->records, 0xee, sizeof pair->records);
  const eb_status status = eb_guard_seal(region->guard, pair->server, transfer, BASE_GPA, WINDOW_PAGES, pair->records,
                                         sizeof pair->records, &pair->records_len, result);
  eb_transfer_free(transfer);
  return status;
}

static void finds(guarded *region) {
  uint8_t a[EB_PAGE_SIZE], b[EB_PAGE_SIZE];
  eb_page_range bad[4];
  CHECK(bad_pages(region->guard) == 0);
  /* One bit of a written page, one of a page that is zero. */
  flip(region->fd, 17 * EB_PAGE_SIZE + 4095);
  flip(region->fd, 50 * EB_PAGE_SIZE);
  eb_verify_result found = verify(region->guard, bad, 4);
  CHECK(found.bad_pages == 2 && found.ranges == 2 && bad[0].first == 17 && bad[0].pages == 1 && bad[1].first == 50);
  flip(region->fd, 17 * EB_PAGE_SIZE + 4095);
  flip(region->fd, 50 * EB_PAGE_SIZE);
  /* Two good pages swapped. */
  read_page(region->fd, 15, a);
  read_page(region->fd, 16, b);
  write_page(region->fd, 15, b);
  write_page(region->fd, 16, a);
  found = verify(region->guard, bad, 4);
  CHECK(found.bad_pages == 2 && found.ranges == 1 && bad[0].first == 15 && bad[0].pages == 2);
  write_page(region->fd, 15, a);
  write_page(region->fd, 16, b);
  /* An older version of a page. */
  memset(region->pair->plain, 0x77, EB_PAGE_SIZE);
  read_page(region->fd, 0, a);
  CHECK_OK(send_pages(region->pair, region->guard, 0, 1));
  CHECK(bad_pages(region->guard) == 0);
  write_page(region->fd, 0, a);
  CHECK(bad_pages(region->guard) == 1);
  /* More ranges than there is room for are counted all the same. */
  for (size_t i = 0; i < WINDOW_PAGES; i += 2) flip(region->fd, (off_t)(i * EB_PAGE_SIZE + 9));
  found = verify(region->guard, bad, 4);
  CHECK(found.bad_pages == WINDOW_PAGES / 2 && found.ranges == 4 && bad[3].first == 6);
  /* A part of the region. */
  CHECK_OK(eb_guard_verify(region->guard, 1, 1, bad, 4, &found));
  CHECK(found.pages == 1 && found.bad_pages == 0 && found.ranges == 0);
}

static void test_verify_when_memory_changed_names_the_pages(void) {
  const eb_gcm_ops *kernels[] = {&eb_gcm_openssl, &eb_gcm_aesni, &eb_gcm_vaes256, &eb_gcm_avx512};
  for (size_t k = 0; k < sizeof kernels / sizeof kernels[0]; k++) {
    if (!kernels[k]->usable()) continue;
    for (int stored = 0; stored < 2; stored++) {
      guarded region = guard_on(kernels[k], stored ? stored_fd() : region_fd());
      CHECK(region.guard->memory.ahead == (stored == 1));
      finds(&region);
      drop(&region);
    }
  }
}

static void test_verify_when_the_file_was_cut_counts_what_is_gone(void) {
  for (int stored = 0; stored < 2; stored++) {
    guarded region = guard_on(NULL, stored ? stored_fd() : region_fd());
    eb_page_range bad[4];
    CHECK(ftruncate(region.fd, 20 * EB_PAGE_SIZE + 100) == 0);
    const eb_verify_result found = verify(region.guard, bad, 4);
    CHECK(found.bad_pages == WINDOW_PAGES - 20 && found.ranges == 1 && bad[0].first == 20);
    drop(&region);
  }
}

static void test_verify_when_asked_wrongly_is_refused(void) {
  guarded region = guard_on(NULL, region_fd());
  eb_verify_result result;
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_verify(NULL, 0, 1, NULL, 0, &result));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_verify(region.guard, 0, 1, NULL, 0, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_verify(region.guard, 0, 1, NULL, 1, &result));
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, eb_guard_verify(region.guard, 0, 0, NULL, 0, &result));
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, eb_guard_verify(region.guard, 1, WINDOW_PAGES, NULL, 0, &result));
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, eb_guard_verify(region.guard, WINDOW_PAGES, 1, NULL, 0, &result));
  drop(&region);
}

static void test_device_memory_when_changed_is_found(void) {
  guarded region = guard_on(NULL, open("/dev/zero", O_RDWR | O_CLOEXEC));
  uint64_t bad = 0;
  CHECK(region.guard->memory.mapping != NULL && bad_pages(region.guard) == 0);
  region.guard->memory.mapping[17 * EB_PAGE_SIZE] ^= 1;
  CHECK(bad_pages(region.guard) == 1);
  CHECK_STATUS(EB_ERR_STATE, eb_guard_renew(region.guard, 4, &bad));
  drop(&region);
}

static void test_seal_when_all_verifies_sends_the_pages(void) {
  const eb_gcm_ops *kernels[] = {&eb_gcm_openssl, NULL};
  for (size_t k = 0; k < 2; k++) {
    guarded region = guard_on(kernels[k], k == 0 ? stored_fd() : region_fd());
    const eb_window window = {REGION, BASE_GPA, WINDOW_PAGES};
    eb_pair *pair = region.pair;
    eb_transfer *arrives = NULL;
    eb_result result;
    CHECK_OK(seal_all(&region, &result));
    CHECK(result.pages == WINDOW_PAGES && result.bad_index == UINT64_MAX);
    CHECK_OK(eb_transfer_new(pair->bridge, id, &window, &arrives));
    CHECK_OK(eb_transfer_set_target_memory(arrives, pair->target, sizeof pair->target));
    CHECK_OK(eb_pages_open(pair->client, arrives, pair->records, pair->records_len, &result));
    CHECK(memcmp(pair->target, pair->plain, 40 * EB_PAGE_SIZE) == 0 && pair->target[41 * EB_PAGE_SIZE] == 0);
    eb_transfer_free(arrives);
    drop(&region);
  }
}

static void test_seal_when_a_page_was_changed_sends_nothing(void) {
  const eb_gcm_ops *kernels[] = {&eb_gcm_openssl, NULL};
  for (size_t k = 0; k < 2; k++) {
    guarded region = guard_on(kernels[k], k == 0 ? stored_fd() : region_fd());
    eb_result result;
    flip(region.fd, 33 * EB_PAGE_SIZE + 5);
    CHECK_STATUS(EB_ERR_TAMPERED, seal_all(&region, &result));
    CHECK(result.bad_index == 33);
    for (size_t i = 0; i < 32 * EB_RECORD_SIZE; i++) CHECK(region.pair->records[i] == 0);
    for (size_t i = 32 * EB_RECORD_SIZE; i < sizeof region.pair->records; i++) CHECK(region.pair->records[i] == 0xee);
    drop(&region);
  }
}

static void test_seal_when_asked_wrongly_is_refused(void) {
  guarded region = guard_on(NULL, region_fd());
  eb_pair *pair = region.pair;
  const eb_window small = {REGION, BASE_GPA, 8}, same = {REGION, BASE_GPA, WINDOW_PAGES};
  eb_transfer *transfer = NULL, *other = NULL;
  eb_result result;
  size_t len = 0;
  CHECK_OK(eb_transfer_new(pair->bridge, id, &same, &transfer));
  CHECK_OK(eb_transfer_new(pair->bridge, id, &small, &other));
#define SEAL(guard, session, transfer, gpa, pages, cap, result) \
  eb_guard_seal(guard, session, transfer, gpa, pages, pair->records, cap, &len, result)
  CHECK_STATUS(EB_ERR_ARGUMENT, SEAL(region.guard, pair->server, transfer, BASE_GPA, 1, 4160, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, SEAL(NULL, pair->server, transfer, BASE_GPA, 1, 4160, &result));
  CHECK_STATUS(EB_ERR_ARGUMENT, SEAL(region.guard, NULL, transfer, BASE_GPA, 1, 4160, &result));
  CHECK_STATUS(EB_ERR_ARGUMENT, SEAL(region.guard, pair->server, NULL, BASE_GPA, 1, 4160, &result));
  CHECK_STATUS(EB_ERR_LENGTH, SEAL(region.guard, pair->server, other, BASE_GPA, 1, 4160, &result));
  CHECK_STATUS(EB_ERR_LENGTH, SEAL(region.guard, pair->server, transfer, BASE_GPA, UINT64_MAX, 4160, &result));
  CHECK_STATUS(EB_ERR_LENGTH, SEAL(region.guard, pair->server, transfer, BASE_GPA, 0, 4160, &result));
  CHECK_STATUS(EB_ERR_BUFFER, SEAL(region.guard, pair->server, transfer, BASE_GPA, 1, 4159, &result));
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, SEAL(region.guard, pair->server, transfer, BASE_GPA - 4096, 1, 4160, &result));
#undef SEAL
  CHECK_STATUS(EB_ERR_LENGTH, eb_transfer_set_guard(other, region.guard));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_set_guard(other, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_set_guard(NULL, region.guard));
  CHECK_OK(eb_transfer_set_guard(transfer, region.guard));
  CHECK_STATUS(EB_ERR_STATE, eb_transfer_set_guard(transfer, region.guard));
  CHECK_STATUS(EB_ERR_STATE, eb_transfer_set_target_fd(transfer, region.fd, 0));
  CHECK_STATUS(EB_ERR_STATE, eb_transfer_set_target_memory(transfer, pair->target, sizeof pair->target));
  eb_transfer_free(transfer);
  eb_transfer_free(other);
  drop(&region);
}

static void test_new_when_asked_wrongly_is_refused(void) {
  const eb_bridge_options one = {.max_sessions = 1, .max_handshakes = 1, .max_guards = 1};
  eb_bridge *bridge = NULL, *other = NULL;
  eb_guard *guard = NULL, *second = NULL;
  eb_guard_scope scope = scope_of(0);
  const int fd = region_fd();
  int pipes[2];
  CHECK_OK(eb_bridge_open(&one, &bridge));
  CHECK_OK(eb_bridge_open(NULL, &other));
  CHECK(pipe(pipes) == 0);
  eb_sealing *foreign = file_sealing(other);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_new(NULL, NULL, &scope, fd, 0, &guard));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_new(bridge, NULL, NULL, fd, 0, &guard));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_new(bridge, foreign, &scope, fd, 0, &guard));
  CHECK_STATUS(EB_ERR_UNALIGNED, eb_guard_new(bridge, NULL, &scope, fd, 5, &guard));
  CHECK_STATUS(EB_ERR_TARGET, eb_guard_new(bridge, NULL, &scope, fd, EB_PAGE_SIZE, &guard));
  CHECK_STATUS(EB_ERR_TARGET, eb_guard_new(bridge, NULL, &scope, fd, INT64_MAX - 4095, &guard));
  CHECK_STATUS(EB_ERR_TARGET, eb_guard_new(bridge, NULL, &scope, -1, 0, &guard));
  CHECK_STATUS(EB_ERR_TARGET, eb_guard_new(bridge, NULL, &scope, pipes[0], 0, &guard));
  scope.pages = 0;
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_new(bridge, NULL, &scope, fd, 0, &guard));
  scope = scope_of(0);
  scope.region = "";
  CHECK_STATUS(EB_ERR_LENGTH, eb_guard_new(bridge, NULL, &scope, fd, 0, &guard));
  scope.region = "a-name-of-sixty-four-bytes-is-one-byte-too-long-for-the-name-of-";
  CHECK_STATUS(EB_ERR_LENGTH, eb_guard_new(bridge, NULL, &scope, fd, 0, &guard));
  scope = scope_of(0);
  CHECK_OK(eb_guard_new(bridge, NULL, &scope, fd, 0, &guard));
  CHECK_STATUS(EB_ERR_LIMIT, eb_guard_new(bridge, NULL, &scope, fd, 0, &second));
  CHECK_STATUS(EB_ERR_STATE, eb_guard_save(guard, fd)); /* no sealing key */
  CHECK_STATUS(EB_ERR_STATE, eb_guard_journal(guard, fd, 1));
  eb_guard_free(guard);
  eb_guard_free(NULL);
  eb_sealing_free(foreign);
  eb_bridge_free(bridge);
  eb_bridge_free(other);
  close(pipes[0]);
  close(pipes[1]);
  close(fd);
}

static void test_carry_when_all_verifies_copies_the_pages(void) {
  guarded region = guard_on(NULL, region_fd());
  const eb_guard_scope scope = scope_of(4);
  const int fd = region_fd();
  uint8_t page[EB_PAGE_SIZE];
  uint64_t bad = 0;
  eb_guard *next = NULL;
  CHECK_OK(eb_guard_new(region.pair->bridge, region.sealing, &scope, fd, 0, &next));
  CHECK_OK(eb_guard_carry(next, region.guard, &bad));
  CHECK(bad_pages(next) == 0);
  read_page(fd, 39, page);
  CHECK(memcmp(page, region.pair->plain + 39 * EB_PAGE_SIZE, EB_PAGE_SIZE) == 0);
  /* Each generation has its own keys: the former one's MACs say nothing of the new one's pages. */
  CHECK(memcmp(next->entries[5].tag, region.guard->entries[5].tag, EB_TAG_SIZE) != 0);
  CHECK(next->entries[50].counter == 0);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_carry(next, next, &bad));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_carry(next, NULL, &bad));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_carry(NULL, next, &bad));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_carry(next, region.guard, NULL));
  flip(region.fd, 21 * EB_PAGE_SIZE);
  CHECK_STATUS(EB_ERR_TAMPERED, eb_guard_carry(next, region.guard, &bad));
  CHECK(bad == 21);
  CHECK(ftruncate(fd, 0) == 0);
  flip(region.fd, 21 * EB_PAGE_SIZE);
  CHECK_OK(eb_guard_carry(next, region.guard, &bad)); /* the memory may be short: it is written again */
  CHECK(bad_pages(next) == WINDOW_PAGES - 40);         /* but not the zero pages */
  eb_guard_free(next);
  close(fd);
  drop(&region);
}

static void test_carry_when_sizes_differ_is_refused(void) {
  guarded region = guard_on(NULL, region_fd());
  const eb_guard_scope scope = {"book", 4, WINDOW_PAGES - 1};
  uint64_t bad = 0;
  eb_guard *next = NULL;
  const int fd = region_fd(), table = empty_fd();
  CHECK_OK(eb_guard_new(region.pair->bridge, region.sealing, &scope, fd, 0, &next));
  CHECK_STATUS(EB_ERR_LENGTH, eb_guard_carry(next, region.guard, &bad));
  eb_guard_free(next);
  const eb_guard_scope right = scope_of(4);
  CHECK_OK(eb_guard_new(region.pair->bridge, region.sealing, &right, fd, 0, &next));
  CHECK_OK(eb_guard_journal(next, table, 5));
  CHECK_STATUS(EB_ERR_STATE, eb_guard_carry(next, region.guard, &bad)); /* it is in use */
  eb_guard_free(next);
  close(fd);
  close(table);
  drop(&region);
}

/* ---- kept -------------------------------------------------------------------------------------- */

static eb_status load(guarded *region, uint64_t generation, int table, eb_guard **guard) {
  const eb_guard_scope scope = scope_of(generation);
  return eb_guard_load(region->pair->bridge, region->sealing, &scope, region->fd, 0, table, guard);
}

static void test_load_when_nothing_changed_verifies_what_was_saved(void) {
  guarded region = guard_on(NULL, region_fd());
  eb_guard *again = NULL;
  const int table = empty_fd();
  CHECK_OK(eb_guard_save(region.guard, table));
  CHECK(lseek(table, 0, SEEK_END) == TABLE_HEADER + WINDOW_PAGES * TABLE_ENTRY + TABLE_MAC);
  CHECK_OK(load(&region, 3, table, &again));
  CHECK(bad_pages(again) == 0);
  flip(region.fd, 4096);
  CHECK(bad_pages(again) == 1);
  CHECK_STATUS(EB_ERR_STATE, send_pages(region.pair, again, 0, 1)); /* it only verifies */
  CHECK_STATUS(EB_ERR_STATE, eb_guard_save(again, table));
  CHECK_STATUS(EB_ERR_STATE, eb_guard_journal(again, table, 4));
  eb_guard_free(again);
  close(table);
  drop(&region);
}

static void test_load_when_any_byte_of_the_table_changed_is_refused(void) {
  guarded region = guard_on(NULL, region_fd());
  eb_guard *again = NULL;
  const int table = empty_fd();
  CHECK_OK(eb_guard_save(region.guard, table));
  const off_t size = lseek(table, 0, SEEK_END);
  for (off_t at = 0; at < size; at++) {
    flip(table, at);
    CHECK_STATUS(EB_ERR_TABLE, load(&region, 3, table, &again));
    flip(table, at);
  }
  for (off_t cut = size - 1; cut > 0; cut = cut / 3) {
    CHECK(ftruncate(table, cut) == 0);
    CHECK_STATUS(EB_ERR_TABLE, load(&region, 3, table, &again));
  }
  CHECK_STATUS(EB_ERR_TABLE, load(&region, 3, -1, &again));
  close(table);
  drop(&region);
}

static void test_load_when_it_is_another_regions_or_generations_is_refused(void) {
  guarded region = guard_on(NULL, region_fd());
  eb_guard *again = NULL;
  eb_sealing *fresh = NULL;
  const int table = empty_fd(), key = empty_fd();
  eb_guard_scope scope = scope_of(3);
  CHECK_OK(eb_guard_save(region.guard, table));
  CHECK_STATUS(EB_ERR_TABLE, load(&region, 4, table, &again));
  CHECK_STATUS(EB_ERR_TABLE, load(&region, 2, table, &again));
  scope.region = "disk";
  eb_bridge *bridge = region.pair->bridge;
  CHECK_STATUS(EB_ERR_TABLE, eb_guard_load(bridge, region.sealing, &scope, region.fd, 0, table, &again));
  scope = scope_of(3);
  scope.pages--;
  CHECK_STATUS(EB_ERR_TABLE, eb_guard_load(bridge, region.sealing, &scope, region.fd, 0, table, &again));
  scope = scope_of(3);
  CHECK(fchmod(key, 0600) == 0);
  CHECK_OK(eb_sealing_open_file(bridge, key, &fresh));
  CHECK_STATUS(EB_ERR_TABLE, eb_guard_load(bridge, fresh, &scope, region.fd, 0, table, &again));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_load(bridge, NULL, &scope, region.fd, 0, table, &again));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_load(bridge, fresh, NULL, region.fd, 0, table, &again));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_load(bridge, fresh, &scope, region.fd, 0, table, NULL));
  eb_sealing_free(fresh);
  close(key);
  close(table);
  drop(&region);
}

/* One page written in place under the journal; generation 4 is then its generation. */
static int journalled(guarded *region) {
  const int table = empty_fd();
  CHECK_OK(eb_guard_save(region->guard, table));
  CHECK_OK(eb_guard_journal(region->guard, table, 4));
  memset(region->pair->plain + 7 * EB_PAGE_SIZE, 0x5a, EB_PAGE_SIZE);
  CHECK_OK(send_pages(region->pair, region->guard, 7, 1));
  return table;
}

static void test_journal_when_a_page_was_written_in_place_is_loaded(void) {
  guarded region = guard_on(NULL, region_fd());
  uint8_t old[EB_PAGE_SIZE];
  eb_guard *again = NULL;
  read_page(region.fd, 7, old);
  const int table = journalled(&region);
  CHECK_OK(load(&region, 4, table, &again));
  CHECK(bad_pages(again) == 0 && bad_pages(region.guard) == 0);
  write_page(region.fd, 7, old); /* the former content is no longer the page */
  CHECK(bad_pages(again) == 1);
  eb_guard_free(again);
  /* Without its record the table is one of an older generation. */
  CHECK(ftruncate(table, lseek(table, 0, SEEK_END) - 1) == 0);
  CHECK_STATUS(EB_ERR_TABLE, load(&region, 4, table, &again));
  close(table);
  drop(&region);
}

static void test_journal_when_the_write_was_cut_off_makes_it_again(void) {
  guarded region = guard_on(NULL, region_fd());
  uint8_t torn[EB_PAGE_SIZE], page[EB_PAGE_SIZE];
  eb_guard *again = NULL;
  const int table = journalled(&region);
  read_page(region.fd, 7, torn);
  memset(torn + 2000, 1, 2096); /* the crash was in the middle of the page */
  write_page(region.fd, 7, torn);
  CHECK_OK(load(&region, 3, table, &again)); /* and before the generation was switched */
  CHECK(bad_pages(again) == 0);
  read_page(region.fd, 7, page);
  CHECK(memcmp(page, region.pair->plain + 7 * EB_PAGE_SIZE, EB_PAGE_SIZE) == 0);
  eb_guard_free(again);
  /* An acknowledged page is not made again: that would hide a change. */
  write_page(region.fd, 7, torn);
  CHECK_OK(load(&region, 4, table, &again));
  CHECK(bad_pages(again) == 1);
  eb_guard_free(again);
  close(table);
  drop(&region);
}

static void test_journal_when_it_was_changed_is_refused(void) {
  guarded region = guard_on(NULL, region_fd());
  eb_guard *again = NULL;
  const int table = journalled(&region);
  const off_t start = TABLE_HEADER + WINDOW_PAGES * TABLE_ENTRY + TABLE_MAC;
  CHECK(lseek(table, 0, SEEK_END) == start + WRITE_HEAD + 4096);
  for (off_t at = 0; at < WRITE_HEAD; at++) {
    flip(table, start + at);
    CHECK_STATUS(EB_ERR_TABLE, load(&region, 4, table, &again));
    flip(table, start + at);
  }
  flip(table, start + WRITE_HEAD + 300); /* the page: it is not made again from that */
  CHECK_STATUS(EB_ERR_TABLE, load(&region, 3, table, &again));
  flip(table, start + WRITE_HEAD + 300);
  CHECK_STATUS(EB_ERR_TABLE, load(&region, 2, table, &again)); /* two generations ahead */
  /* The last, unfinished write of a crash is as if it had not begun. */
  CHECK_OK(eb_guard_journal(region.guard, table, 5));
  memset(region.pair->plain + 9 * EB_PAGE_SIZE, 0x44, EB_PAGE_SIZE);
  CHECK_OK(send_pages(region.pair, region.guard, 9, 1));
  flip(table, lseek(table, 0, SEEK_END) - 4096 - 40);
  CHECK_OK(load(&region, 4, table, &again));
  CHECK(bad_pages(again) == 1); /* though here the page was written: so it is found */
  eb_guard_free(again);
  close(table);
  drop(&region);
}

static void test_journal_when_it_cannot_be_written_leaves_the_page(void) {
  guarded region = guard_on(NULL, region_fd());
  char path[] = "/tmp/eb-table-XXXXXX";
  const int table = mkstemp(path), read_only = open(path, O_RDONLY | O_CLOEXEC);
  CHECK(table >= 0 && read_only >= 0 && unlink(path) == 0);
  CHECK_OK(eb_guard_save(region.guard, table));
  CHECK_STATUS(EB_ERR_TARGET_IO, eb_guard_save(region.guard, read_only));
  CHECK_OK(eb_guard_journal(region.guard, read_only, 4));
  memset(region.pair->plain, 0x31, EB_PAGE_SIZE);
  CHECK_STATUS(EB_ERR_TARGET_IO, send_pages(region.pair, region.guard, 0, 1));
  CHECK(bad_pages(region.guard) == 0);
  CHECK_STATUS(EB_ERR_TARGET, eb_guard_journal(region.guard, -1, 4));
  CHECK_OK(eb_guard_journal(region.guard, table, 4));
  CHECK_OK(send_pages(region.pair, region.guard, 0, 1));
  CHECK(bad_pages(region.guard) == 0);
  close(table);
  close(read_only);
  drop(&region);
}

static void test_renew_when_loaded_makes_it_writable(void) {
  guarded region = guard_on(NULL, region_fd());
  eb_guard *again = NULL;
  uint64_t bad = 0;
  const int table = journalled(&region);
  CHECK_OK(load(&region, 4, table, &again));
  flip(region.fd, 11 * EB_PAGE_SIZE);
  CHECK_STATUS(EB_ERR_TAMPERED, eb_guard_renew(again, 4, &bad));
  CHECK(bad == 11 && bad_pages(again) == 1);
  flip(region.fd, 11 * EB_PAGE_SIZE);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_guard_renew(again, 4, NULL));
  CHECK_OK(eb_guard_renew(again, 4, &bad));
  CHECK(memcmp(again->salt, region.guard->salt, sizeof again->salt) != 0 && bad_pages(again) == 0);
  CHECK_OK(eb_guard_save(again, table));
  CHECK_OK(eb_guard_journal(again, table, 5));
  CHECK_OK(send_pages(region.pair, again, 9, 1));
  CHECK_OK(eb_guard_renew(again, 5, &bad)); /* one that is journalled */
  CHECK_OK(eb_guard_save(again, table));
  eb_guard_free(again);
  CHECK_OK(load(&region, 5, table, &again));
  CHECK(bad_pages(again) == 0);
  eb_guard_free(again);
  close(table);
  drop(&region);
}

static void test_put_when_counters_are_used_up_is_refused(void) {
  guarded region = guard_on(NULL, region_fd());
  region.guard->counter = UINT64_MAX;
  CHECK_STATUS(EB_ERR_EXHAUSTED, send_pages(region.pair, region.guard, 0, 1));
  drop(&region);
}

static void test_entries_when_pages_are_rewritten_never_share_a_counter(void) {
  guarded region = guard_on(NULL, region_fd());
  bool used[256] = {false};
  CHECK_OK(send_pages(region.pair, region.guard, 0, 40));
  CHECK_OK(send_pages(region.pair, region.guard, 5, 3));
  for (size_t i = 0; i < 40; i++) {
    const uint64_t counter = region.guard->entries[i].counter;
    CHECK(counter > 40 && counter < 256 && !used[counter]);
    used[counter] = true;
  }
  CHECK(region.guard->counter == 83);
  drop(&region);
}

static void test_guard_when_the_process_has_forked_is_of_no_use_to_the_child(void) {
  guarded region = guard_on(NULL, region_fd());
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    eb_verify_result result;
    uint64_t bad = 0;
    const bool refused = eb_guard_verify(region.guard, 0, 1, NULL, 0, &result) == EB_ERR_FORKED &&
                         eb_guard_save(region.guard, region.fd) == EB_ERR_FORKED &&
                         eb_guard_renew(region.guard, 4, &bad) == EB_ERR_FORKED;
    eb_guard_free(region.guard);
    eb_sealing_free(region.sealing);
    _exit(refused ? 0 : 1);
  }
  int outcome = -1;
  CHECK(waitpid(child, &outcome, 0) == child && outcome == 0);
  CHECK(bad_pages(region.guard) == 0);
  drop(&region);
}

int main(void) {
  RUN(test_verify_when_memory_changed_names_the_pages);
  RUN(test_verify_when_the_file_was_cut_counts_what_is_gone);
  RUN(test_verify_when_asked_wrongly_is_refused);
  RUN(test_device_memory_when_changed_is_found);
  RUN(test_seal_when_all_verifies_sends_the_pages);
  RUN(test_seal_when_a_page_was_changed_sends_nothing);
  RUN(test_seal_when_asked_wrongly_is_refused);
  RUN(test_new_when_asked_wrongly_is_refused);
  RUN(test_carry_when_all_verifies_copies_the_pages);
  RUN(test_carry_when_sizes_differ_is_refused);
  RUN(test_load_when_nothing_changed_verifies_what_was_saved);
  RUN(test_load_when_any_byte_of_the_table_changed_is_refused);
  RUN(test_load_when_it_is_another_regions_or_generations_is_refused);
  RUN(test_journal_when_a_page_was_written_in_place_is_loaded);
  RUN(test_journal_when_the_write_was_cut_off_makes_it_again);
  RUN(test_journal_when_it_was_changed_is_refused);
  RUN(test_journal_when_it_cannot_be_written_leaves_the_page);
  RUN(test_renew_when_loaded_makes_it_writable);
  RUN(test_put_when_counters_are_used_up_is_refused);
  RUN(test_entries_when_pages_are_rewritten_never_share_a_counter);
  RUN(test_guard_when_the_process_has_forked_is_of_no_use_to_the_child);
  return 0;
}
