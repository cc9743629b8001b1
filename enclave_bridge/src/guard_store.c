/*
 * A guard's table outside the bridge, and the writes made in place since:
 *
 *   magic 16 | salt 32 | generation u64 | pages u64 | counter u64 | entries: counter u64, tag 16 | HMAC-SHA-256 32
 *   then for each write: number u64 | generation u64 | index u64 | counter u64 | tag 16 | HMAC-SHA-256 32 | page
 *
 * Numbers are little-endian. The key of the MACs is of the sealing key, salt, generation, size and region name.
 * A write's MAC covers its place in the journal, and its page by the tag.
 */
#include <openssl/crypto.h>
#include <string.h>

#include "equal.h"
#include "guard.h"
#include "hmac.h"
#include "page_guard.h"
#include "record.h"

enum {
  AT_SALT = 16,
  AT_GENERATION = AT_SALT + EB_GUARD_SALT_SIZE,
  AT_PAGES = AT_GENERATION + 8,
  AT_COUNTER = AT_PAGES + 8,
  HEADER = AT_COUNTER + 8,
  ENTRY = 8 + EB_TAG_SIZE,
  MAC = 32,
  CHUNK = 512, /* entries at once */
  WRITE_AT_TAG = 32,
  WRITE_AT_MAC = WRITE_AT_TAG + EB_TAG_SIZE,
  WRITE_HEAD = WRITE_AT_MAC + MAC,
  WRITE = WRITE_HEAD + EB_PAGE_SIZE,
};

static const uint8_t magic[16] = "pagegate MACs 1";
static const uint8_t table_label[] = "table", write_label[] = "write"; /* each with its zero */

static uint64_t table_size(const eb_guard *guard) { return HEADER + guard->pages * ENTRY + MAC; }

static size_t chunk_at(const eb_guard *guard, uint64_t first) {
  const uint64_t left = guard->pages - first;
  return left < CHUNK ? (size_t)left : CHUNK;
}

static void begin_mac(const eb_guard *guard, const uint8_t *label, size_t label_len, eb_hmac *mac) {
  eb_hmac_begin(mac, EB_GUARD_SUITE, guard->secret->keys + EB_GUARD_KEY_SIZE, EB_GUARD_KEY_SIZE);
  eb_hmac_update(mac, label, label_len);
}

/* ---- the table --------------------------------------------------------------------------- */

static void write_header(const eb_guard *guard, uint8_t header[HEADER]) {
  memcpy(header, magic, sizeof magic);
  memcpy(header + AT_SALT, guard->salt, sizeof guard->salt);
  eb_store_u64le(header + AT_GENERATION, guard->first_generation);
  eb_store_u64le(header + AT_PAGES, guard->pages);
  eb_store_u64le(header + AT_COUNTER, guard->counter);
}

static eb_status save_all(const eb_guard *guard, int fd, eb_hmac *mac) {
  eb_status status = EB_OK;
  uint8_t header[HEADER], chunk[CHUNK * ENTRY], tag[MAC];
  write_header(guard, header);
  eb_hmac_update(mac, header, sizeof header);
  EB_TRY(eb_file_put(fd, 0, header, sizeof header));
  uint64_t at = HEADER;
  for (uint64_t first = 0; first < guard->pages; first += CHUNK) {
    const size_t n = chunk_at(guard, first);
    for (size_t i = 0; i < n; i++) {
      eb_store_u64le(chunk + i * ENTRY, guard->entries[first + i].counter);
      memcpy(chunk + i * ENTRY + 8, guard->entries[first + i].tag, EB_TAG_SIZE);
    }
    eb_hmac_update(mac, chunk, n * ENTRY);
    EB_TRY(eb_file_put(fd, at, chunk, n * ENTRY));
    at += n * ENTRY;
  }
  eb_hmac_end(mac, tag);
  EB_TRY(eb_file_put(fd, at, tag, sizeof tag));
  EB_TRY(eb_file_cut(fd, table_size(guard)));
done:
  return status;
}

eb_status eb_guard_save(eb_guard *guard, int table_fd) {
  eb_status status = EB_OK;
  eb_hmac mac;
  bool locked = false;
  EB_TRY(eb_guard_usable(guard));
  eb_mutex_lock(&guard->lock);
  locked = true;
  /* A frozen guard would be saved with counters that were perhaps used. */
  EB_ENSURE(guard->sealing != NULL && !guard->frozen, EB_ERR_STATE);
  begin_mac(guard, table_label, sizeof table_label, &mac);
  EB_TRY(save_all(guard, table_fd, &mac));
done:
  OPENSSL_cleanse(&mac, sizeof mac);
  if (locked) eb_mutex_unlock(&guard->lock);
  return status;
}

static bool same_scope(const uint8_t header[HEADER], const eb_guard_scope *scope) {
  return memcmp(header, magic, sizeof magic) == 0 && eb_load_u64le(header + AT_PAGES) == scope->pages;
}

/* Into private memory first: what is checked is what is used. */
static eb_status load_table(eb_guard *guard, int fd, const uint8_t header[HEADER], eb_hmac *mac) {
  eb_status status = EB_OK;
  uint8_t chunk[CHUNK * ENTRY], tag[MAC], expected[MAC];
  uint64_t at = HEADER;
  eb_hmac_update(mac, header, HEADER);
  for (uint64_t first = 0; first < guard->pages; first += CHUNK) {
    const size_t n = chunk_at(guard, first);
    EB_ENSURE(eb_file_get(fd, at, chunk, n * ENTRY), EB_ERR_TABLE);
    eb_hmac_update(mac, chunk, n * ENTRY);
    for (size_t i = 0; i < n; i++) {
      guard->entries[first + i].counter = eb_load_u64le(chunk + i * ENTRY);
      memcpy(guard->entries[first + i].tag, chunk + i * ENTRY + 8, EB_TAG_SIZE);
    }
    at += n * ENTRY;
  }
  eb_hmac_end(mac, expected);
  EB_ENSURE(eb_file_get(fd, at, tag, sizeof tag), EB_ERR_TABLE);
  EB_ENSURE(eb_equal(tag, expected, sizeof tag), EB_ERR_TABLE);
done:
  OPENSSL_cleanse(expected, sizeof expected);
  return status;
}

/* ---- the journal ------------------------------------------------------------------------- */

static void write_mac(const eb_guard *guard, const uint8_t head[WRITE_AT_MAC], uint8_t out[MAC]) {
  eb_hmac mac;
  begin_mac(guard, write_label, sizeof write_label, &mac);
  eb_hmac_update(&mac, head, WRITE_AT_MAC);
  eb_hmac_end(&mac, out);
}

eb_status eb_guard_journal_write(eb_guard *guard, uint64_t index, const eb_guard_entry *entry, const uint8_t *page) {
  eb_status status = EB_OK;
  uint8_t record[WRITE];
  const uint64_t at = table_size(guard) + guard->journalled * WRITE;
  eb_store_u64le(record, guard->journalled);
  eb_store_u64le(record + 8, guard->generation);
  eb_store_u64le(record + 16, index);
  eb_store_u64le(record + 24, entry->counter);
  memcpy(record + WRITE_AT_TAG, entry->tag, EB_TAG_SIZE);
  write_mac(guard, record, record + WRITE_AT_MAC);
  memcpy(record + WRITE_HEAD, page, EB_PAGE_SIZE);
  EB_TRY(eb_file_put(guard->journal, at, record, sizeof record));
  EB_TRY(eb_file_sync(guard->journal));
  guard->journalled++;
done:
  OPENSSL_cleanse(record, sizeof record);
  return status;
}

eb_status eb_guard_journal(eb_guard *guard, int table_fd, uint64_t generation) {
  eb_status status = EB_OK;
  int own = -1;
  EB_TRY(eb_guard_usable(guard));
  EB_ENSURE(guard->sealing != NULL, EB_ERR_STATE);
  own = eb_file_hold(table_fd);
  EB_ENSURE(own >= 0, EB_ERR_TARGET);
  eb_mutex_lock(&guard->lock);
  if (guard->frozen) {
    status = EB_ERR_STATE;
  } else {
    eb_file_close(guard->journal);
    guard->journal = own;
    guard->generation = generation;
    own = -1;
  }
  eb_mutex_unlock(&guard->lock);
done:
  eb_file_close(own);
  return status;
}

/* A write that may have been under way when the server ended: the page is written again. */
static eb_status redo(eb_guard *guard, uint64_t index, const uint8_t *page) {
  eb_status status = EB_OK;
  bool good = false;
  EB_TRY(eb_guard_check(guard, index, 1, page, &good));
  EB_ENSURE(good, EB_ERR_TABLE);
  EB_TRY(eb_shared_write(&guard->memory, index * EB_PAGE_SIZE, page, EB_PAGE_SIZE));
done:
  return status;
}

/* Takes over what was written in place since the table was saved. `generation` is the region's; a write of the
 * next one was not acknowledged. A record that does not verify ends the journal: it was never finished, and then
 * its page was not written either. If it was, and the record was changed since, the generation or the page tells. */
static eb_status load_journal(eb_guard *guard, int fd, uint64_t generation) {
  eb_status status = EB_OK;
  uint8_t record[WRITE], expected[MAC];
  uint64_t at = table_size(guard);
  for (uint64_t n = 0; eb_file_get(fd, at, record, sizeof record); at += WRITE, n++) {
    const uint64_t made = eb_load_u64le(record + 8), index = eb_load_u64le(record + 16);
    write_mac(guard, record, expected);
    if (!eb_equal(expected, record + WRITE_AT_MAC, MAC) || eb_load_u64le(record) != n) break;
    EB_ENSURE(made >= guard->generation && made <= generation + 1 && index < guard->pages, EB_ERR_TABLE);
    guard->generation = made;
    guard->entries[index].counter = eb_load_u64le(record + 24);
    memcpy(guard->entries[index].tag, record + WRITE_AT_TAG, EB_TAG_SIZE);
    if (made == generation + 1) EB_TRY(redo(guard, index, record + WRITE_HEAD));
  }
  EB_ENSURE(guard->generation >= generation, EB_ERR_TABLE);
done:
  OPENSSL_cleanse(record, sizeof record);
  OPENSSL_cleanse(expected, sizeof expected);
  return status;
}

eb_status eb_guard_load(eb_bridge *bridge, eb_sealing *sealing, const eb_guard_scope *scope, int fd,
                        uint64_t fd_offset, int table_fd, eb_guard **guard) {
  eb_status status = EB_OK;
  eb_guard *made = NULL;
  eb_hmac mac;
  uint8_t header[HEADER];
  EB_ENSURE(sealing != NULL && scope != NULL && guard != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(eb_file_get(table_fd, 0, header, sizeof header) && same_scope(header, scope), EB_ERR_TABLE);
  const eb_guard_scope saved = {scope->region, eb_load_u64le(header + AT_GENERATION), scope->pages};
  EB_TRY(eb_guard_make(bridge, sealing, &saved, fd, fd_offset, header + AT_SALT, &made));
  begin_mac(made, table_label, sizeof table_label, &mac);
  EB_TRY(load_table(made, table_fd, header, &mac));
  EB_ENSURE(saved.generation <= scope->generation, EB_ERR_TABLE);
  EB_TRY(load_journal(made, table_fd, scope->generation));
  made->frozen = true;
  *guard = made;
  made = NULL;
done:
  OPENSSL_cleanse(&mac, sizeof mac);
  eb_guard_free(made);
  return status;
}
