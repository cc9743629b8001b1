/*
 * The page path. Runs of up to EB_LANE_PAGES records go through the AES-GCM implementation at
 * once; a "lane" of secret memory holds their pages while they are not verified.
 */
#include <openssl/crypto.h>
#include <string.h>
#include <time.h>

#include "guard.h"
#include "record.h"
#include "session.h"
#include "transfer.h"

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

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
  uint8_t *lane;         /* NULL when the implementation may write straight to records */
  eb_record_header next; /* header of the record to make */
  uint64_t next_index;
} eb_sealer;

static eb_status seal_run(eb_sealer *sealer, eb_run *run, const uint8_t *plain, uint8_t *records, size_t n) {
  eb_session *session = sealer->session;
  eb_status status = EB_OK;
  for (size_t i = 0; i < n; i++) {
    eb_record_write(run->headers[i], &sealer->next);
    eb_record_nonce(run->nonces[i], session->secret->send.iv, sealer->next.sequence);
    run->items[i] = (eb_gcm_item){
        .iv = run->nonces[i],
        .aad = run->headers[i],
        .in = plain + i * EB_PAGE_SIZE,
        .out = sealer->lane != NULL ? sealer->lane + i * EB_PAGE_SIZE
                                    : records + i * EB_RECORD_SIZE + EB_RECORD_HEADER_SIZE,
        .tag = run->tags[i],
    };
    sealer->next.sequence++;
    sealer->next.gpa += EB_PAGE_SIZE;
  }
  EB_TRY(session->send_gcm.ops->seal(&session->send_gcm, run->items, n, EB_RECORD_HEADER_SIZE, EB_PAGE_SIZE));
  for (size_t i = 0; i < n; i++) {
    uint8_t *record = records + i * EB_RECORD_SIZE;
    memcpy(record, run->headers[i], EB_RECORD_HEADER_SIZE);
    if (sealer->lane != NULL) memcpy(record + EB_RECORD_HEADER_SIZE, run->items[i].out, EB_PAGE_SIZE);
    memcpy(record + EB_RECORD_HEADER_SIZE + EB_PAGE_SIZE, run->tags[i], EB_TAG_SIZE);
    if (sealer->transfer != NULL) eb_transfer_record(sealer->transfer, sealer->next_index + i, run->tags[i]);
  }
  sealer->next_index += n;
done:
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

/* What is sealed: memory of the caller, or pages that a guard vouches for. */
typedef struct {
  const uint8_t *plain; /* NULL: of the guard */
  eb_guard *guard;
  size_t len;
} eb_plain;

/* n pages from the one at `sealed` of this call, in memory that does not change while they are sealed. */
static eb_status gather_plain(const eb_plain *from, const eb_sealer *sealer, size_t sealed, size_t n, uint8_t *lane,
                              const uint8_t **plain, eb_result *result) {
  *plain = from->plain + sealed * EB_PAGE_SIZE;
  if (from->guard == NULL) return EB_OK;
  *plain = lane;
  pthread_mutex_lock(&from->guard->lock);
  const eb_status status = eb_guard_fetch_checked(from->guard, sealer->next_index, n, lane, &result->bad_index);
  pthread_mutex_unlock(&from->guard->lock);
  return status;
}

static eb_status seal_all(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                          const eb_plain *from, uint8_t *records, size_t records_cap, size_t *records_len,
                          eb_result *result) {
  const uint64_t started = now();
  const size_t n = from->len / EB_PAGE_SIZE;
  eb_status status = EB_OK;
  eb_sealer sealer = {.session = session, .transfer = transfer};
  eb_bridge *bridge = session->bridge;
  eb_run run;
  uint8_t *lane = NULL;
  bool locked = false;
  size_t sealed = 0;

  EB_ENSURE(records != NULL && records_len != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(transfer == NULL || transfer->bridge == bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(n >= 1 && n <= EB_REKEY_PAGES && from->len % EB_PAGE_SIZE == 0, EB_ERR_LENGTH);
  EB_ENSURE(records_cap >= n * EB_RECORD_SIZE, EB_ERR_BUFFER);
  EB_ENSURE(from->guard != NULL || !overlap(from->plain, from->len, records, n * EB_RECORD_SIZE), EB_ERR_ARGUMENT);
  EB_ENSURE(first_gpa % EB_PAGE_SIZE == 0, EB_ERR_UNALIGNED);
  EB_ENSURE(first_gpa <= UINT64_MAX - from->len, EB_ERR_OUT_OF_RANGE);
  if (transfer != NULL) {
    EB_TRY(eb_transfer_locate(transfer, region, first_gpa, &sealer.next_index));
    EB_ENSURE(n <= transfer->window.pages - sealer.next_index, EB_ERR_OUT_OF_RANGE);
  }
  memcpy(sealer.next.session_id, session->id, sizeof session->id);
  sealer.next.region = region;
  sealer.next.gpa = first_gpa;

  pthread_mutex_lock(&session->send_lock);
  if (transfer != NULL) pthread_mutex_lock(&transfer->lock);
  locked = true;
  EB_ENSURE(!atomic_load(&session->closed), EB_ERR_SESSION_CLOSED);
  EB_TRY(reserve(session, n, &sealer.next));
  const eb_gcm_ops *ops = session->send_gcm.ops;
  const uint64_t first_index = sealer.next_index;
  if (!ops->single_pass || from->guard != NULL) lane = eb_arena_wait(&bridge->arena, EB_POOL_LANES);
  if (!ops->single_pass) sealer.lane = lane; /* sealed in place when the pages are there already */
  while (sealed < n && status == EB_OK) {
    const size_t some = smaller(from->guard != NULL ? EB_LANE_PAGES : ops->batch, n - sealed);
    const uint8_t *plain = NULL;
    status = gather_plain(from, &sealer, sealed, some, lane, &plain, result);
    if (status == EB_OK) status = seal_run(&sealer, &run, plain, records + sealed * EB_RECORD_SIZE, some);
    sealed += some;
  }
  if (lane != NULL) eb_arena_give_used(&bridge->arena, EB_POOL_LANES, lane, smaller(EB_LANE_PAGES, n) * EB_PAGE_SIZE);
  if (status != EB_OK) { /* all or nothing */
    memset(records, 0, sealed * EB_RECORD_SIZE);
    for (size_t i = 0; transfer != NULL && i < sealed; i++) eb_transfer_drop(transfer, first_index + i);
    goto done;
  }
  session->sent_pages += n;
  *records_len = n * EB_RECORD_SIZE;
  *result = (eb_result){n, UINT64_MAX, now() - started, sealer.next.epoch, sealer.next.sequence - 1};
done:
  if (locked && transfer != NULL) pthread_mutex_unlock(&transfer->lock);
  if (locked) pthread_mutex_unlock(&session->send_lock);
  return status;
}

eb_status eb_pages_seal(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                        const uint8_t *plain, size_t len, uint8_t *records, size_t records_cap, size_t *records_len,
                        eb_result *result) {
  const eb_plain from = {.plain = plain, .len = len};
  eb_result ignored;
  eb_status status = EB_OK;
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(plain != NULL, EB_ERR_ARGUMENT);
  status = seal_all(session, transfer, region, first_gpa, &from, records, records_cap, records_len,
                    result != NULL ? result : &ignored);
done:
  return status;
}

eb_status eb_guard_seal(eb_guard *guard, eb_session *session, eb_transfer *transfer, uint64_t first_gpa,
                        uint64_t pages, uint8_t *records, size_t records_cap, size_t *records_len,
                        eb_result *result) {
  eb_status status = EB_OK;
  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_TRY(eb_session_usable(session));
  EB_TRY(eb_guard_usable(guard));
  EB_ENSURE(transfer != NULL && guard->bridge == session->bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(pages <= EB_REKEY_PAGES && transfer->window.pages == guard->pages, EB_ERR_LENGTH);
  const eb_plain from = {.guard = guard, .len = pages * EB_PAGE_SIZE};
  status = seal_all(session, transfer, transfer->window.region, first_gpa, &from, records, records_cap, records_len,
                    result);
done:
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

/* One verified record takes effect. */
static eb_status apply(eb_session *session, eb_transfer *transfer, const eb_run *run, size_t i) {
  const eb_record_header *header = &run->parsed[i];
  eb_recv_epoch *epoch = eb_session_recv_epoch(session, header->epoch);
  eb_status status = EB_OK;
  /* The same number twice in one run: both were fresh when they were gathered. */
  EB_ENSURE(eb_replay_fresh(&epoch->replay, header->sequence), EB_ERR_REPLAYED);
  EB_TRY(eb_session_confirm_recv(session, header->epoch));
  EB_TRY(eb_transfer_write(transfer, run->index[i], run->items[i].out));
  eb_replay_mark(&epoch->replay, header->sequence);
  eb_transfer_record(transfer, run->index[i], run->tags[i]);
  session->opened_pages++;
done:
  return status;
}

/* Opens one run; *applied records took effect, and a status other than EB_OK is the next one's. */
static eb_status open_run(eb_session *session, eb_transfer *transfer, const uint8_t *records, size_t n, uint8_t *lane,
                          eb_run *run, size_t *applied) {
  eb_status status = EB_OK;
  size_t verified = 0;
  *applied = 0;
  EB_TRY(gather(session, transfer, records, n, lane, run));
  eb_gcm *gcm = &eb_session_recv_epoch(session, run->parsed[0].epoch)->gcm;
  EB_TRY(gcm->ops->open(gcm, run->items, run->n, EB_RECORD_HEADER_SIZE, EB_PAGE_SIZE, &verified));
  for (; *applied < verified; ++*applied) EB_TRY(apply(session, transfer, run, *applied));
  EB_ENSURE(verified == run->n, EB_ERR_TAMPERED);
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
  if (status != EB_OK) {
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
  const uint64_t started = now();
  eb_status status = EB_OK;
  bool hostile = false;

  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(transfer != NULL && records != NULL && transfer->bridge == session->bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(records_len > 0 && records_len % EB_RECORD_SIZE == 0, EB_ERR_LENGTH);

  pthread_mutex_lock(&session->recv_lock);
  pthread_mutex_lock(&transfer->lock);
  status = open_all(session, transfer, records, records_len / EB_RECORD_SIZE, result);
  /* Keys that are half moved to another epoch, or a peer that keeps guessing: no more of it. */
  hostile = session->tampered >= EB_MAX_BAD_TAGS || status == EB_ERR_CRYPTO;
  if (hostile) atomic_store(&session->closed, true);
  pthread_mutex_unlock(&transfer->lock);
  pthread_mutex_unlock(&session->recv_lock);
  if (hostile) eb_session_wipe(session);
done:
  if (result != NULL) result->nanoseconds = now() - started;
  return status;
}
