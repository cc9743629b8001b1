/*
 * The page path. Runs of up to EB_LANE_PAGES records go through the AES-GCM implementation at
 * once; a "lane" of secret memory holds their pages while they are not verified.
 */
#include <openssl/crypto.h>
#include <string.h>

#include "guard.h"
#include "record.h"
#include "session.h"
#include "source.h"
#include "transfer.h"

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* One run: what is copied out of, or on its way into, records. */
typedef struct {
  uint8_t headers[EB_LANE_PAGES][EB_RECORD_HEADER_SIZE];
  uint8_t nonces[EB_LANE_PAGES][EB_GCM_IV_SIZE];
  uint8_t tags[EB_LANE_PAGES][EB_TAG_SIZE];
  eb_record_header parsed[EB_LANE_PAGES];
  uint64_t index[EB_LANE_PAGES]; /* page of the transfer's window */
  eb_gcm_item items[EB_LANE_PAGES];
  size_t n;
} eb_run;

/* ---- seal ------------------------------------------------------------------------------- */

typedef struct {
  eb_session *session;
  eb_transfer *transfer; /* may be NULL */
  uint8_t *records;
  uint64_t first_index;  /* page of the transfer's window of the first record */
  eb_record_header next; /* header of the record to make */
  size_t begun, done;    /* pages that may have left something in records; pages sealed */
  bool locked;
} eb_sealer;

/* Seals a run into records. Where the implementation may not write straight there, the ciphertext
 * is made in `private` memory, which may be where the plaintext is. */
static eb_status seal_run(eb_sealer *sealer, eb_run *run, const uint8_t *plain, size_t n, uint8_t *private) {
  eb_session *session = sealer->session;
  uint8_t *records = sealer->records + sealer->done * EB_RECORD_SIZE;
  eb_status status = EB_OK;
  sealer->begun += n;
  for (size_t i = 0; i < n; i++) {
    eb_record_write(run->headers[i], &sealer->next);
    eb_record_nonce(run->nonces[i], session->secret->send.iv, sealer->next.sequence);
    run->items[i] = (eb_gcm_item){
        .iv = run->nonces[i],
        .aad = run->headers[i],
        .in = plain + i * EB_PAGE_SIZE,
        .out = private != NULL ? private + i * EB_PAGE_SIZE : records + i * EB_RECORD_SIZE + EB_RECORD_HEADER_SIZE,
        .tag = run->tags[i],
    };
    sealer->next.sequence++;
    sealer->next.gpa += EB_PAGE_SIZE;
  }
  EB_TRY(session->send_gcm.ops->seal(&session->send_gcm, run->items, n, EB_RECORD_HEADER_SIZE, EB_PAGE_SIZE));
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

static eb_status seal_memory(eb_sealer *sealer, const uint8_t *plain, size_t n) {
  const eb_gcm_ops *ops = sealer->session->send_gcm.ops;
  eb_arena *arena = &sealer->session->bridge->arena;
  uint8_t *lane = ops->single_pass ? NULL : eb_arena_wait(arena, EB_POOL_LANES);
  eb_status status = EB_OK;
  eb_run run;
  for (size_t done = 0; done < n && status == EB_OK; done += ops->batch)
    status = seal_run(sealer, &run, plain + done * EB_PAGE_SIZE, smaller(ops->batch, n - done), lane);
  eb_arena_give_used(arena, EB_POOL_LANES, lane, smaller(ops->batch, n) * EB_PAGE_SIZE);
  return status;
}

static eb_status seal_read(eb_sealer *sealer, eb_reader *reader, size_t n) {
  const eb_gcm_ops *ops = sealer->session->send_gcm.ops;
  eb_status status = EB_OK;
  eb_run run;
  for (size_t done = 0; done < n;) {
    const size_t some = smaller(EB_LANE_PAGES, n - done);
    uint8_t *chunk = NULL;
    EB_TRY(eb_reader_next(reader, &chunk));
    for (size_t i = 0; i < some; i += ops->batch) {
      uint8_t *page = chunk + i * EB_PAGE_SIZE;
      EB_TRY(seal_run(sealer, &run, page, smaller(ops->batch, some - i), ops->single_pass ? NULL : page));
    }
    done += some;
  }
done:
  return status;
}

/* From private copies that the guard has verified: what is checked is what is sealed. */
static eb_status seal_guarded(eb_sealer *sealer, eb_guard_walk *walk, size_t n, uint64_t *bad) {
  const eb_gcm_ops *ops = sealer->session->send_gcm.ops;
  eb_status status = EB_OK;
  bool good[EB_LANE_PAGES];
  eb_run run;
  while (sealer->done < n) {
    uint8_t *copies = NULL;
    size_t some = 0;
    EB_TRY(eb_guard_walk_next(walk, &copies, &some, good));
    for (size_t i = 0; i < some; i++) {
      *bad = sealer->first_index + sealer->done + i;
      EB_ENSURE(good[i], EB_ERR_TAMPERED);
    }
    for (size_t i = 0; i < some; i += ops->batch) {
      uint8_t *page = copies + i * EB_PAGE_SIZE;
      EB_TRY(seal_run(sealer, &run, page, smaller(ops->batch, some - i), ops->single_pass ? NULL : page));
    }
  }
done:
  if (status != EB_ERR_TAMPERED) *bad = UINT64_MAX;
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

static bool overlap(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len) {
  return (uintptr_t)a < (uintptr_t)b + b_len && (uintptr_t)b < (uintptr_t)a + a_len;
}

/* What is the same whatever the pages come from; locks nothing. */
static eb_status prepare(eb_sealer *sealer, uint32_t region, uint64_t first_gpa, size_t len, size_t records_cap) {
  const eb_session *session = sealer->session;
  const eb_transfer *transfer = sealer->transfer;
  const size_t n = len / EB_PAGE_SIZE;
  eb_status status = EB_OK;
  EB_ENSURE(sealer->records != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(transfer == NULL || transfer->bridge == session->bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(n >= 1 && n <= EB_REKEY_PAGES && len % EB_PAGE_SIZE == 0, EB_ERR_LENGTH);
  EB_ENSURE(records_cap >= n * EB_RECORD_SIZE, EB_ERR_BUFFER);
  EB_ENSURE(first_gpa % EB_PAGE_SIZE == 0, EB_ERR_UNALIGNED);
  EB_ENSURE(first_gpa <= UINT64_MAX - len, EB_ERR_OUT_OF_RANGE);
  if (transfer != NULL) {
    EB_TRY(eb_transfer_locate(transfer, region, first_gpa, &sealer->first_index));
    EB_ENSURE(n <= transfer->window.pages - sealer->first_index, EB_ERR_OUT_OF_RANGE);
  }
  memcpy(sealer->next.session_id, session->id, sizeof session->id);
  sealer->next.region = region;
  sealer->next.gpa = first_gpa;
done:
  return status;
}

static eb_status begin(eb_sealer *sealer, size_t n) {
  eb_mutex_lock(&sealer->session->send_lock);
  if (sealer->transfer != NULL) eb_mutex_lock(&sealer->transfer->lock);
  sealer->locked = true;
  return atomic_load(&sealer->session->closed) ? EB_ERR_SESSION_CLOSED : reserve(sealer->session, n, &sealer->next);
}

/* All or nothing: a failure takes back what was done, but for the sequence numbers. */
static void finish(eb_sealer *sealer, eb_status status, uint64_t started, size_t *records_len, eb_result *result) {
  eb_session *session = sealer->session;
  eb_transfer *transfer = sealer->transfer;
  if (!sealer->locked) return;
  if (status == EB_OK) {
    session->sent_pages += sealer->done;
    *records_len = sealer->done * EB_RECORD_SIZE;
    if (result != NULL)
      *result = (eb_result){sealer->done, UINT64_MAX, eb_clock() - started, sealer->next.epoch, sealer->next.sequence - 1};
  } else {
    memset(sealer->records, 0, sealer->begun * EB_RECORD_SIZE);
    for (size_t i = 0; transfer != NULL && i < sealer->done; i++) eb_transfer_drop(transfer, sealer->first_index + i);
  }
  if (transfer != NULL) eb_mutex_unlock(&transfer->lock);
  eb_mutex_unlock(&session->send_lock);
}

eb_status eb_pages_seal(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                        const uint8_t *plain, size_t len, uint8_t *records, size_t records_cap, size_t *records_len,
                        eb_result *result) {
  const uint64_t started = eb_clock();
  const size_t n = len / EB_PAGE_SIZE;
  eb_status status = EB_OK;
  eb_sealer sealer = {.session = session, .transfer = transfer, .records = records};
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(plain != NULL && records_len != NULL, EB_ERR_ARGUMENT);
  EB_TRY(prepare(&sealer, region, first_gpa, len, records_cap));
  EB_ENSURE(!overlap(plain, len, records, n * EB_RECORD_SIZE), EB_ERR_ARGUMENT);
  EB_TRY(begin(&sealer, n));
  EB_TRY(seal_memory(&sealer, plain, n));
done:
  finish(&sealer, status, started, records_len, result);
  return status;
}

eb_status eb_pages_seal_from(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                             eb_source *source, uint64_t source_offset, size_t len, uint8_t *records,
                             size_t records_cap, size_t *records_len, eb_result *result) {
  const uint64_t started = eb_clock();
  const size_t n = len / EB_PAGE_SIZE;
  eb_status status = EB_OK;
  eb_sealer sealer = {.session = session, .transfer = transfer, .records = records};
  eb_staging *staging = NULL;
  eb_reader reader;
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(records_len != NULL, EB_ERR_ARGUMENT);
  EB_TRY(prepare(&sealer, region, first_gpa, len, records_cap));
  EB_TRY(eb_source_check(source, source_offset, len));
  EB_ENSURE(source->bridge == session->bridge, EB_ERR_ARGUMENT);
  staging = eb_staging_take(session->bridge);
  eb_reader_start(&reader, source, staging, source_offset, len);
  EB_TRY(begin(&sealer, n));
  EB_TRY(seal_read(&sealer, &reader, n));
done:
  finish(&sealer, status, started, records_len, result);
  if (staging != NULL) eb_staging_give(session->bridge, staging, smaller(len, EB_STAGING_SIZE));
  return status;
}

eb_status eb_guard_seal(eb_guard *guard, eb_session *session, eb_transfer *transfer, uint64_t first_gpa,
                        uint64_t pages, uint8_t *records, size_t records_cap, size_t *records_len,
                        eb_result *result) {
  const uint64_t started = eb_clock();
  eb_status status = EB_OK;
  eb_sealer sealer = {.session = session, .transfer = transfer, .records = records};
  eb_guard_walk walk = {.staging = NULL};
  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_TRY(eb_session_usable(session));
  EB_TRY(eb_guard_usable(guard));
  EB_ENSURE(records_len != NULL && transfer != NULL && guard->bridge == session->bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(pages <= EB_REKEY_PAGES && transfer->window.pages == guard->pages, EB_ERR_LENGTH);
  EB_TRY(prepare(&sealer, transfer->window.region, first_gpa, pages * EB_PAGE_SIZE, records_cap));
  eb_guard_walk_start(&walk, guard, sealer.first_index, pages);
  EB_TRY(begin(&sealer, pages));
  EB_TRY(seal_guarded(&sealer, &walk, pages, &result->bad_index));
done:
  finish(&sealer, status, started, records_len, result);
  eb_guard_walk_end(&walk);
  return status;
}

/* ---- open ------------------------------------------------------------------------------- */

/* Everything that can be said of a header before decryption. Changes nothing. */
static eb_status admit(eb_session *session, const eb_transfer *transfer, const eb_record_header *header,
                       uint64_t *index) {
  if (CRYPTO_memcmp(header->session_id, session->id, sizeof session->id) != 0) return EB_ERR_WRONG_SESSION;
  if (header->flags != 0 || header->reserved != 0) return EB_ERR_HEADER;
  eb_status status = eb_transfer_locate(transfer, header->region, header->gpa, index);
  if (status != EB_OK) return status;
  /* An honest sender moves to the next epoch before it uses that many numbers. */
  if (header->sequence >= EB_REKEY_PAGES) return EB_ERR_EPOCH;
  eb_recv_epoch *epoch = eb_session_recv_epoch(session, header->epoch);
  if (epoch == NULL) return EB_ERR_EPOCH;
  return eb_replay_fresh(&epoch->replay, header->sequence) ? EB_OK : EB_ERR_REPLAYED;
}

/* Takes records of one epoch into the run, as many as can be opened at once. Header and tag are
 * copied once, then only the copies count; so is the ciphertext, unless the implementation reads
 * it once by itself. EB_OK when the run has a record; otherwise why the first one is refused. */
static eb_status gather(eb_session *session, const eb_transfer *transfer, const uint8_t *records, size_t n,
                        uint8_t *lane, eb_run *run) {
  const eb_gcm_ops *ops = session->bridge->gcm;
  n = smaller(n, ops->batch);
  for (run->n = 0; run->n < n; run->n++) {
    const size_t i = run->n;
    const uint8_t *record = records + i * EB_RECORD_SIZE;
    const uint8_t *cipher = record + EB_RECORD_HEADER_SIZE;
    eb_record_header *header = &run->parsed[i];
    uint8_t *page = lane + i * EB_PAGE_SIZE;

    memcpy(run->headers[i], record, EB_RECORD_HEADER_SIZE);
    eb_record_read(run->headers[i], header);
    eb_status status = admit(session, transfer, header, &run->index[i]);
    if (status != EB_OK && i == 0) return status;
    if (status != EB_OK || header->epoch != run->parsed[0].epoch) break; /* looked at again as the first of a run */

    memcpy(run->tags[i], cipher + EB_PAGE_SIZE, EB_TAG_SIZE);
    if (!ops->single_pass) cipher = memcpy(page, cipher, EB_PAGE_SIZE);
    eb_record_nonce(run->nonces[i], session->secret->recv[header->epoch % EB_RECV_EPOCHS].iv, header->sequence);
    run->items[i] = (eb_gcm_item){
        .iv = run->nonces[i], .aad = run->headers[i], .in = cipher, .out = page, .tag = run->tags[i]};
  }
  return EB_OK;
}

/* One verified record is received: its number is used up. */
static eb_status accept(eb_session *session, const eb_record_header *header) {
  eb_recv_epoch *epoch = eb_session_recv_epoch(session, header->epoch);
  eb_status status = EB_OK;
  /* The same number twice in one run: both were fresh when they were gathered. */
  EB_ENSURE(eb_replay_fresh(&epoch->replay, header->sequence), EB_ERR_REPLAYED);
  EB_TRY(eb_session_confirm_recv(session, header->epoch));
  eb_replay_mark(&epoch->replay, header->sequence);
done:
  return status;
}

/* Opens one run; *applied records took effect, and a status other than EB_OK is the next one's, or
 * says that the target could not be written. */
static eb_status open_run(eb_session *session, eb_transfer *transfer, const uint8_t *records, size_t n, uint8_t *lane,
                          eb_run *run, size_t *applied) {
  eb_status status = EB_OK, stored = EB_OK;
  size_t verified = 0, accepted = 0;
  *applied = 0;
  EB_TRY(gather(session, transfer, records, n, lane, run));
  eb_gcm *gcm = &eb_session_recv_epoch(session, run->parsed[0].epoch)->gcm;
  EB_TRY(gcm->ops->open(gcm, run->items, run->n, EB_RECORD_HEADER_SIZE, EB_PAGE_SIZE, &verified));
  while (accepted < verified && (status = accept(session, &run->parsed[accepted])) == EB_OK) accepted++;
  if (status == EB_OK && verified < run->n) status = EB_ERR_TAMPERED;
  stored = eb_transfer_store(transfer, run->index, run->tags, lane, accepted, applied);
  session->opened_pages += *applied;
  if (status == EB_OK) status = stored;
done:
  return status;
}

static void count_refusal(eb_session *session, eb_status status) {
  if (status == EB_ERR_REPLAYED)
    session->replayed++;
  else if (status == EB_ERR_TAMPERED)
    session->tampered++;
  else
    session->refused++;
}

/* With both locks held. */
static eb_status open_all(eb_session *session, eb_transfer *transfer, const uint8_t *records, size_t n,
                          eb_result *result) {
  eb_status status = EB_OK;
  eb_run run;
  uint8_t *lane = NULL;
  EB_ENSURE(!atomic_load(&session->closed), EB_ERR_SESSION_CLOSED);
  EB_ENSURE(eb_transfer_has_target(transfer), EB_ERR_STATE);
  lane = eb_arena_wait(&session->bridge->arena, EB_POOL_LANES);
  while (result->pages < n && status == EB_OK) {
    size_t applied = 0;
    status = open_run(session, transfer, records + result->pages * EB_RECORD_SIZE, n - result->pages, lane, &run,
                      &applied);
    result->pages += applied;
    if (applied > 0) {
      result->epoch = run.parsed[applied - 1].epoch;
      result->sequence = run.parsed[applied - 1].sequence;
    }
  }
  if (status != EB_OK && status != EB_ERR_TARGET_FULL && status != EB_ERR_TARGET_IO) {
    result->bad_index = result->pages;
    count_refusal(session, status);
  }
  eb_arena_give_used(&session->bridge->arena, EB_POOL_LANES, lane,
                     smaller(session->bridge->gcm->batch, n) * EB_PAGE_SIZE);
done:
  return status;
}

eb_status eb_pages_open(eb_session *session, eb_transfer *transfer, const uint8_t *records, size_t records_len,
                        eb_result *result) {
  const uint64_t started = eb_clock();
  eb_status status = EB_OK;
  bool hostile = false;

  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(transfer != NULL && records != NULL && transfer->bridge == session->bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(records_len > 0 && records_len % EB_RECORD_SIZE == 0, EB_ERR_LENGTH);

  eb_mutex_lock(&session->recv_lock);
  eb_mutex_lock(&transfer->lock);
  status = open_all(session, transfer, records, records_len / EB_RECORD_SIZE, result);
  /* Keys that are half moved to another epoch, or a peer that keeps guessing: no more of it. */
  hostile = session->tampered >= EB_MAX_BAD_TAGS || status == EB_ERR_CRYPTO;
  if (hostile) atomic_store(&session->closed, true);
  eb_mutex_unlock(&transfer->lock);
  eb_mutex_unlock(&session->recv_lock);
  if (hostile) eb_session_wipe(session);
done:
  if (result != NULL) result->nanoseconds = eb_clock() - started;
  return status;
}
