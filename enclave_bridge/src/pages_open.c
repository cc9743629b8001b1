/*
 * The page path, opening. Runs of up to EB_LANE_PAGES records go through the AES-GCM implementation at
 * once; a "lane" of secret memory holds their pages while they are not verified.
 */
#include <openssl/crypto.h>
#include <string.h>

#include "guard.h"
#include "page_run.h"
#include "pages.h"
#include "record.h"
#include "session.h"
#include "transfer.h"

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

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
                        uint8_t *pages, eb_run *run) {
  const eb_gcm_ops *ops = session->bridge->gcm;
  n = smaller(n, ops->batch);
  for (run->n = 0; run->n < n; run->n++) {
    const size_t i = run->n;
    const uint8_t *record = records + i * EB_RECORD_SIZE;
    const uint8_t *cipher = record + EB_RECORD_HEADER_SIZE;
    eb_record_header *header = &run->parsed[i];
    uint8_t *page = pages + i * EB_PAGE_SIZE;

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
static eb_status open_run(eb_session *session, eb_transfer *transfer, const uint8_t *records, size_t n,
                          eb_lane_secret *lane, eb_run *run, size_t *applied) {
  eb_status status = EB_OK, stored = EB_OK;
  size_t verified = 0, accepted = 0;
  *applied = 0;
  EB_TRY(gather(session, transfer, records, n, lane->pages, run));
  eb_gcm *gcm = &eb_session_recv_epoch(session, run->parsed[0].epoch)->gcm;
  EB_TRY(gcm->ops->open(gcm, lane->work, run->items, run->n, EB_RECORD_HEADER_SIZE, EB_PAGE_SIZE, &verified));
  while (accepted < verified && (status = accept(session, &run->parsed[accepted])) == EB_OK) accepted++;
  if (status == EB_OK && verified < run->n) status = EB_ERR_TAMPERED;
  stored = eb_transfer_store(transfer, run->index, run->tags, lane->pages, accepted, applied);
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
static eb_status open_part(eb_session *session, eb_transfer *transfer, const uint8_t *records, size_t n,
                           eb_lane_secret *lane, eb_result *result) {
  eb_status status = EB_OK;
  eb_run run;
  for (size_t done = 0, applied = 0; done < n && status == EB_OK; done += applied) {
    status = open_run(session, transfer, records + done * EB_RECORD_SIZE, n - done, lane, &run, &applied);
    result->pages += applied;
    if (applied > 0) {
      result->epoch = run.parsed[applied - 1].epoch;
      result->sequence = run.parsed[applied - 1].sequence;
    }
  }
  return status;
}

static bool is_peers_fault(eb_status status) {
  return status != EB_OK && status != EB_ERR_TARGET_FULL && status != EB_ERR_TARGET_IO && status != EB_ERR_BRIDGE_DIED;
}

/* With both locks held. */
static eb_status open_all(eb_session *session, eb_transfer *transfer, const eb_feed *feed, eb_used_lane *used,
                          eb_result *result) {
  eb_status status = EB_OK;
  eb_lane_secret *lane = NULL;
  EB_ENSURE(!atomic_load(&session->closed), EB_ERR_SESSION_CLOSED);
  EB_ENSURE(eb_transfer_has_target(transfer), EB_ERR_STATE);
  lane = eb_arena_wait(&session->bridge->arena, EB_POOL_LANES);
  size_t len = 1, most = 0;
  while (status == EB_OK && len > 0) {
    const uint8_t *part = NULL;
    status = feed->next(feed->context, &part, &len);
    if (status != EB_OK || len == 0) continue;
    most = most > len ? most : len;
    status = open_part(session, transfer, part, len / EB_RECORD_SIZE, lane, result);
  }
  if (is_peers_fault(status)) {
    result->bad_index = result->pages;
    count_refusal(session, status);
  }
  eb_lane_leave(session->bridge, (eb_used_lane){lane, smaller(session->bridge->gcm->batch, most / EB_RECORD_SIZE)}, used);
done:
  return status;
}

eb_status eb_pages_open_fed(eb_session *session, eb_transfer *transfer, const eb_feed *records, eb_used_lane *used,
                            eb_result *result) {
  const uint64_t started = eb_clock();
  eb_status status = EB_OK;
  bool hostile = false;

  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(transfer != NULL && transfer->bridge == session->bridge, EB_ERR_ARGUMENT);

  eb_mutex_lock(&session->recv_lock);
  eb_mutex_lock(&transfer->lock);
  status = open_all(session, transfer, records, used, result);
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

eb_status eb_pages_open(eb_session *session, eb_transfer *transfer, const uint8_t *records, size_t records_len,
                        eb_result *result) {
  eb_status status = EB_OK;
  eb_whole whole = {records, records_len};
  const eb_feed feed = {.next = eb_next_of_whole, .context = &whole};
  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_TRY(eb_session_usable(session));
  EB_ENSURE(transfer != NULL && records != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(records_len > 0 && records_len % EB_RECORD_SIZE == 0, EB_ERR_LENGTH);
  EB_TRY(eb_pages_open_fed(session, transfer, &feed, NULL, result));
done:
  return status;
}
