/* The page path, sealing. Runs of up to EB_LANE_PAGES pages go through the AES-GCM implementation at once. */
#include <string.h>

#include "guard.h"
#include "page_run.h"
#include "pages.h"
#include "record.h"
#include "session.h"
#include "source.h"
#include "transfer.h"

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* ---- a whole buffer ------------------------------------------------------------------------ */

static uint8_t *room_of_flat(void *context, size_t n) {
  const eb_flat *flat = context;
  (void)n;
  return flat->buffer + flat->filled;
}

static void made_in_flat(void *context, size_t n) {
  eb_flat *flat = context;
  flat->filled += n * EB_RECORD_SIZE;
}

eb_sink eb_flat_sink(eb_flat *flat) { return (eb_sink){.room = room_of_flat, .made = made_in_flat, .context = flat}; }

void eb_flat_end(eb_flat *flat, eb_status status) {
  if (status != EB_OK && flat->filled > 0) memset(flat->buffer, 0, flat->filled);
}

/* ---- seal ------------------------------------------------------------------------------- */

typedef struct {
  eb_session *session;
  eb_transfer *transfer; /* may be NULL */
  const eb_feed *feed;
  const eb_sink *sink;
  size_t pages;          /* to be sealed */
  uint64_t first_index;  /* page of the transfer's window of the first record */
  eb_record_header next; /* header of the record to make */
  size_t done;           /* pages sealed */
  eb_lane_secret *lane;
  size_t step; /* from one page to the next */
  uint64_t started;
  bool locked;
} eb_sealer;

/* Seals a run into records. Where the implementation may not write straight there, the ciphertext
 * is made in `private` memory, which may be where the plaintext is. */
static eb_status seal_run(eb_sealer *sealer, eb_run *run, const uint8_t *plain, size_t n, uint8_t *private,
                          uint8_t *records) {
  eb_session *session = sealer->session;
  eb_status status = EB_OK;
  for (size_t i = 0; i < n; i++) {
    eb_record_write(run->headers[i], &sealer->next);
    eb_record_nonce(run->nonces[i], session->secret->send.iv, sealer->next.sequence);
    run->items[i] = (eb_gcm_item){
        .iv = run->nonces[i],
        .aad = run->headers[i],
        .in = plain + i * sealer->step,
        .out = private != NULL ? private + i * EB_PAGE_SIZE : records + i * EB_RECORD_SIZE + EB_RECORD_HEADER_SIZE,
        .tag = run->tags[i],
    };
    sealer->next.sequence++;
    sealer->next.gpa += EB_PAGE_SIZE;
  }
  EB_TRY(session->send_gcm.ops->seal(&session->send_gcm, sealer->lane->work, run->items, n, EB_RECORD_HEADER_SIZE,
                                     EB_PAGE_SIZE));
  for (size_t i = 0; i < n; i++) {
    uint8_t *record = records + i * EB_RECORD_SIZE;
    memcpy(record, run->headers[i], EB_RECORD_HEADER_SIZE);
    if (private != NULL) memcpy(record + EB_RECORD_HEADER_SIZE, run->items[i].out, EB_PAGE_SIZE);
    memcpy(record + EB_RECORD_HEADER_SIZE + EB_PAGE_SIZE, run->tags[i], EB_TAG_SIZE);
    if (sealer->transfer != NULL) eb_transfer_record(sealer->transfer, sealer->first_index + sealer->done + i, run->tags[i]);
  }
  sealer->done += n;
done:
  return status;
}

/* How many of the pages that are left, `there` of which have come, are sealed at once. Where another works on the records
 * meanwhile, the last runs get smaller: nobody does anything beside what he makes of the last one. */
static size_t next_run(const eb_sealer *sealer, size_t left, size_t there) {
  enum { FEW = 4 };
  const bool shared = sealer->sink->so_far != NULL && left > FEW;
  const size_t most = smaller(sealer->session->send_gcm.ops->batch, shared ? (2 * left + 1) / 3 : left);
  return smaller(most, there);
}

/* Seals a part into the sink's next room: all of it, or nothing is left there. */
static eb_status seal_part(eb_sealer *sealer, const uint8_t *plain, size_t n) {
  const eb_feed *feed = sealer->feed;
  const eb_sink *sink = sealer->sink;
  const bool single_pass = sealer->session->send_gcm.ops->single_pass;
  eb_status status = EB_OK;
  size_t begun = 0, there = feed->arrived != NULL ? 0 : n;
  eb_run run;
  EB_ENSURE(n <= sealer->pages - sealer->done, EB_ERR_LENGTH);
  uint8_t *records = sink->room(sink->context, n);
  EB_ENSURE(records != NULL, EB_ERR_BRIDGE_DIED);
  while (begun < n && status == EB_OK) {
    if (begun == there) status = feed->arrived(feed->context, begun + 1, &there);
    if (status != EB_OK) break;
    const uint8_t *pages = plain + begun * sealer->step;
    const size_t some = next_run(sealer, n - begun, there - begun);
    uint8_t *private = feed->is_private ? (uint8_t *)(uintptr_t)pages : sealer->lane->pages;
    status = seal_run(sealer, &run, pages, some, single_pass ? NULL : private, records + begun * EB_RECORD_SIZE);
    begun += some;
    if (status == EB_OK && sink->so_far != NULL) sink->so_far(sink->context, begun);
  }
  if (status == EB_OK)
    sink->made(sink->context, n);
  else
    memset(records, 0, begun * EB_RECORD_SIZE);
done:
  return status;
}

void eb_lane_leave(eb_bridge *bridge, eb_used_lane lane, eb_used_lane *used) {
  if (used != NULL)
    *used = lane;
  else
    eb_lane_give(bridge, lane.lane, lane.pages);
}

static eb_status seal_all(eb_sealer *sealer, eb_used_lane *used) {
  const eb_feed *feed = sealer->feed;
  const eb_gcm_ops *ops = sealer->session->send_gcm.ops;
  const bool writes_lane = !ops->single_pass && !feed->is_private;
  eb_bridge *bridge = sealer->session->bridge;
  eb_status status = EB_OK;
  sealer->lane = eb_arena_wait(&bridge->arena, EB_POOL_LANES);
  sealer->step = EB_PAGE_SIZE + feed->apart;
  while (sealer->done < sealer->pages) {
    const uint8_t *part = NULL;
    size_t len = 0;
    EB_TRY(feed->next(feed->context, &part, &len));
    EB_ENSURE(len > 0, EB_ERR_LENGTH);
    EB_TRY(seal_part(sealer, part, len / EB_PAGE_SIZE));
  }
done:
  eb_lane_leave(bridge, (eb_used_lane){sealer->lane, writes_lane ? smaller(ops->batch, sealer->pages) : 0}, used);
  return status;
}

/* With send_lock held: n consecutive numbers of one epoch, taken before anything is sealed so
 * that a failure cannot lead to their reuse. */
static eb_status reserve(eb_session *session, size_t n, eb_record_header *first) {
  eb_status status = EB_OK;
  if (session->send_sequence + n > EB_REKEY_PAGES) EB_TRY(eb_session_advance_send(session));
  first->epoch = session->send_epoch;
  first->sequence = session->send_sequence;
  session->send_sequence += n;
done:
  return status;
}

/* What is the same whatever the pages come from; locks nothing. The session is usable. */
static eb_status prepare(eb_sealer *sealer, uint32_t region, uint64_t first_gpa, size_t len) {
  const eb_session *session = sealer->session;
  const eb_transfer *transfer = sealer->transfer;
  eb_status status = EB_OK;
  sealer->started = eb_clock();
  sealer->pages = len / EB_PAGE_SIZE;
  EB_ENSURE(transfer == NULL || transfer->bridge == session->bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(sealer->pages >= 1 && sealer->pages <= EB_REKEY_PAGES && len % EB_PAGE_SIZE == 0, EB_ERR_LENGTH);
  EB_ENSURE(first_gpa % EB_PAGE_SIZE == 0, EB_ERR_UNALIGNED);
  EB_ENSURE(first_gpa <= UINT64_MAX - len, EB_ERR_OUT_OF_RANGE);
  if (transfer != NULL) {
    EB_TRY(eb_transfer_locate(transfer, region, first_gpa, &sealer->first_index));
    EB_ENSURE(sealer->pages <= transfer->window.pages - sealer->first_index, EB_ERR_OUT_OF_RANGE);
  }
  memcpy(sealer->next.session_id, session->id, sizeof session->id);
  sealer->next.region = region;
  sealer->next.gpa = first_gpa;
done:
  return status;
}

static eb_status begin(eb_sealer *sealer) {
  eb_mutex_lock(&sealer->session->send_lock);
  if (sealer->transfer != NULL) eb_mutex_lock(&sealer->transfer->lock);
  sealer->locked = true;
  return atomic_load(&sealer->session->closed) ? EB_ERR_SESSION_CLOSED
                                               : reserve(sealer->session, sealer->pages, &sealer->next);
}

/* A failure takes the account of what was done back, but for the sequence numbers. */
static void finish(eb_sealer *sealer, eb_status status, eb_result *result) {
  eb_session *session = sealer->session;
  eb_transfer *transfer = sealer->transfer;
  if (!sealer->locked) return;
  if (status == EB_OK) {
    session->sent_pages += sealer->done;
    if (result != NULL)
      *result = (eb_result){sealer->done, UINT64_MAX, eb_clock() - sealer->started, sealer->next.epoch,
                            sealer->next.sequence - 1};
  } else {
    for (size_t i = 0; transfer != NULL && i < sealer->done; i++) eb_transfer_drop(transfer, sealer->first_index + i);
  }
  if (transfer != NULL) eb_mutex_unlock(&transfer->lock);
  eb_mutex_unlock(&session->send_lock);
}

eb_status eb_pages_seal_fed(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa, size_t len,
                            const eb_feed *plain, const eb_sink *records, eb_used_lane *used, eb_result *result) {
  eb_status status = EB_OK;
  eb_sealer sealer = {.session = session, .transfer = transfer, .feed = plain, .sink = records};
  EB_TRY(eb_session_usable(session));
  EB_TRY(prepare(&sealer, region, first_gpa, len));
  EB_TRY(begin(&sealer));
  EB_TRY(seal_all(&sealer, used));
done:
  finish(&sealer, status, result);
  return status;
}

static bool overlap(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len) {
  return (uintptr_t)a < (uintptr_t)b + b_len && (uintptr_t)b < (uintptr_t)a + a_len;
}

/* Room for the records of len bytes of pages. */
static eb_status check_room(const uint8_t *records, size_t records_cap, size_t len, const size_t *records_len) {
  if (records == NULL || records_len == NULL) return EB_ERR_ARGUMENT;
  if (len / EB_PAGE_SIZE > EB_REKEY_PAGES || len % EB_PAGE_SIZE != 0) return EB_ERR_LENGTH;
  return records_cap >= len / EB_PAGE_SIZE * EB_RECORD_SIZE ? EB_OK : EB_ERR_BUFFER;
}

eb_status eb_pages_seal(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                        const uint8_t *plain, size_t len, uint8_t *records, size_t records_cap, size_t *records_len,
                        eb_result *result) {
  eb_status status = EB_OK;
  eb_whole whole = {plain, len};
  eb_flat flat = {records, 0};
  const eb_feed feed = {.next = eb_next_of_whole, .context = &whole};
  const eb_sink sink = eb_flat_sink(&flat);
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(plain != NULL, EB_ERR_ARGUMENT);
  EB_TRY(check_room(records, records_cap, len, records_len));
  EB_ENSURE(!overlap(plain, len, records, len / EB_PAGE_SIZE * EB_RECORD_SIZE), EB_ERR_ARGUMENT);
  EB_TRY(eb_pages_seal_fed(session, transfer, region, first_gpa, len, &feed, &sink, NULL, result));
  *records_len = flat.filled;
done:
  eb_flat_end(&flat, status);
  return status;
}

/* ---- seal what the bridge reads ------------------------------------------------------------ */

typedef struct {
  eb_reader *reader;
  size_t left;
} eb_read_feed;

static eb_status next_of_reader(void *context, const uint8_t **part, size_t *len) {
  eb_read_feed *feed = context;
  uint8_t *chunk = NULL;
  eb_status status = eb_reader_next(feed->reader, &chunk);
  *part = chunk;
  *len = smaller(EB_CHUNK_SIZE, feed->left);
  feed->left -= *len;
  return status;
}

eb_status eb_pages_seal_from_to(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                                eb_source *source, uint64_t source_offset, size_t len, const eb_sink *records,
                                eb_result *result) {
  eb_status status = EB_OK;
  eb_staging *staging = NULL;
  eb_reader reader;
  eb_read_feed context = {&reader, len};
  const eb_feed feed = {.next = next_of_reader, .context = &context, .is_private = true};
  eb_sealer sealer = {.session = session, .transfer = transfer, .feed = &feed, .sink = records};
  EB_TRY(eb_session_usable(session));
  EB_TRY(prepare(&sealer, region, first_gpa, len));
  EB_TRY(eb_source_check(source, source_offset, len));
  EB_ENSURE(source->bridge == session->bridge, EB_ERR_ARGUMENT);
  staging = eb_staging_take(session->bridge);
  eb_reader_start(&reader, source, staging, source_offset, len);
  EB_TRY(begin(&sealer));
  EB_TRY(seal_all(&sealer, NULL));
done:
  finish(&sealer, status, result);
  if (staging != NULL) eb_staging_give(session->bridge, staging, smaller(len, EB_STAGING_SIZE));
  return status;
}

eb_status eb_pages_seal_from(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                             eb_source *source, uint64_t source_offset, size_t len, uint8_t *records,
                             size_t records_cap, size_t *records_len, eb_result *result) {
  eb_status status = EB_OK;
  eb_flat flat = {records, 0};
  const eb_sink sink = eb_flat_sink(&flat);
  EB_TRY(eb_session_usable(session));
  EB_TRY(check_room(records, records_cap, len, records_len));
  EB_TRY(eb_pages_seal_from_to(session, transfer, region, first_gpa, source, source_offset, len, &sink, result));
  *records_len = flat.filled;
done:
  eb_flat_end(&flat, status);
  return status;
}

/* A guard's pages in private copies that it has verified: what is checked is what is sealed. */
typedef struct {
  eb_guard_walk *walk;
  uint64_t next; /* page of the window */
  uint64_t bad;  /* the page that is not as it was written; UINT64_MAX: none */
} eb_guard_feed;

static eb_status next_of_guard(void *context, const uint8_t **part, size_t *len) {
  eb_guard_feed *feed = context;
  eb_status status = EB_OK;
  bool good[EB_LANE_PAGES];
  uint8_t *copies = NULL;
  size_t n = 0;
  EB_TRY(eb_guard_walk_next(feed->walk, &copies, &n, good));
  for (size_t i = 0; i < n; i++, feed->next++) {
    if (good[i]) continue;
    feed->bad = feed->next;
    return EB_ERR_TAMPERED;
  }
  *part = copies;
  *len = n * EB_PAGE_SIZE;
done:
  return status;
}

eb_status eb_guard_seal_to(eb_guard *guard, eb_session *session, eb_transfer *transfer, uint64_t first_gpa,
                           uint64_t pages, const eb_sink *records, eb_result *result) {
  eb_status status = EB_OK;
  eb_guard_walk walk = {.staging = NULL};
  eb_guard_feed context = {.walk = &walk, .bad = UINT64_MAX};
  const eb_feed feed = {.next = next_of_guard, .context = &context, .is_private = true};
  eb_sealer sealer = {.session = session, .transfer = transfer, .feed = &feed, .sink = records};
  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_TRY(eb_session_usable(session));
  EB_TRY(eb_guard_usable(guard));
  EB_ENSURE(transfer != NULL && guard->bridge == session->bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(pages <= EB_REKEY_PAGES && transfer->window.pages == guard->pages, EB_ERR_LENGTH);
  EB_TRY(prepare(&sealer, transfer->window.region, first_gpa, pages * EB_PAGE_SIZE));
  context.next = sealer.first_index;
  eb_guard_walk_start(&walk, guard, sealer.first_index, pages);
  EB_TRY(begin(&sealer));
  EB_TRY(seal_all(&sealer, NULL));
done:
  if (status == EB_ERR_TAMPERED) result->bad_index = context.bad;
  finish(&sealer, status, result);
  eb_guard_walk_end(&walk);
  return status;
}

eb_status eb_guard_seal(eb_guard *guard, eb_session *session, eb_transfer *transfer, uint64_t first_gpa,
                        uint64_t pages, uint8_t *records, size_t records_cap, size_t *records_len,
                        eb_result *result) {
  eb_status status = EB_OK;
  eb_flat flat = {records, 0};
  const eb_sink sink = eb_flat_sink(&flat);
  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(pages <= EB_REKEY_PAGES, EB_ERR_LENGTH);
  EB_TRY(check_room(records, records_cap, pages * EB_PAGE_SIZE, records_len));
  EB_TRY(eb_guard_seal_to(guard, session, transfer, first_gpa, pages, &sink, result));
  *records_len = flat.filled;
done:
  eb_flat_end(&flat, status);
  return status;
}
