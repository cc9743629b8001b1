/* Each function of the border as the bridge process makes it, call_<name of its row in EB_CALLS>. */
#include <string.h>

#include "gcm.h"
#include "guard.h"
#include "lent_memory.h"
#include "pages.h"
#include "serve.h"

static eb_bridge *bridge(const eb_job *job) { return job->lane->server->bridge; }

static size_t smaller(uint64_t a, size_t b) { return a < b ? (size_t)a : b; }

/* A handle for what was made, or what was made is freed again. */
static eb_status hand_out(eb_job *job, eb_kind kind, void *object, void (*destroy)(void *)) {
  const eb_status status = eb_handles_put(&job->lane->server->handles, kind, object, &job->reply.handle);
  if (status != EB_OK) destroy(object);
  return status;
}

static eb_status small(eb_job *job, const void *data, size_t len) {
  memcpy(job->reply.small, data, len);
  job->reply.small_len = (uint32_t)len;
  return EB_OK;
}

/* A MAC or a key of at most number[n] bytes goes into the reply. */
static size_t small_room(const eb_job *job, size_t n) { return smaller(job->call.number[n], sizeof job->reply.small); }

static eb_status sized(eb_job *job, eb_status status, size_t len) {
  if (status == EB_OK) job->reply.small_len = (uint32_t)len;
  return status;
}

/* ---- bridge -------------------------------------------------------------------------------- */

static eb_status call_bridge_get_info(eb_job *job) {
  eb_bridge_info info;
  eb_status status = eb_bridge_get_info(bridge(job), &info);
  if (status != EB_OK) return status;
  info.hardening = job->lane->server->hardening;
  return small(job, &info, sizeof info);
}

static eb_status call_release(eb_job *job) { return eb_handles_release(&job->lane->server->handles, job->call.handle[0]); }

static eb_status call_random(eb_job *job) {
  uint8_t *made = job->lane->gathered;
  const size_t len = smaller(job->call.number[0], EB_MAX_MESSAGE_SIZE + 1);
  eb_status status = eb_random(bridge(job), made, len);
  for (size_t done = 0, some; status == EB_OK && done < len; done += some) {
    some = smaller(len - done, EB_PART_BYTES);
    uint8_t *room = eb_job_room(job, some);
    if (room == NULL) break;
    memcpy(room, made + done, some);
    eb_job_send(job, some, false);
  }
  return status;
}

/* ---- handshake ------------------------------------------------------------------------------- */

static void free_handshake(void *object) { eb_handshake_free(object); }
static void free_session(void *object) { eb_session_free(object); }
static void free_transfer(void *object) { eb_transfer_free(object); }
static void free_source(void *object) { eb_source_free(object); }
static void free_guard(void *object) { eb_guard_free(object); }
static void free_sealing(void *object) { eb_sealing_free(object); }
static void free_lent(void *object) { eb_lent_memory_free(object); }

/* number: role, how many suites, the suites. */
static eb_status call_handshake_new(eb_job *job) {
  const uint64_t *number = job->call.number;
  const eb_suite suites[] = {(eb_suite)number[2], (eb_suite)number[3]};
  eb_handshake *made = NULL;
  if (number[1] > sizeof suites / sizeof suites[0]) return EB_ERR_ARGUMENT;
  eb_status status = eb_handshake_new(bridge(job), (eb_role)number[0], suites, (size_t)number[1], &made);
  return status == EB_OK ? hand_out(job, EB_KIND_HANDSHAKE, made, free_handshake) : status;
}

static eb_status call_handshake_public_key(eb_job *job) {
  size_t len = 0;
  eb_status status = eb_handshake_public_key(job->object[0], (eb_suite)job->call.number[0], job->reply.small,
                                            small_room(job, 1), &len);
  return sized(job, status, len);
}

static eb_status call_handshake_absorb(eb_job *job) {
  return eb_handshake_absorb(job->object[0], job->bulk, (size_t)job->call.bulk_len);
}

static eb_status call_handshake_select(eb_job *job) {
  return eb_handshake_select(job->object[0], (eb_suite)job->call.number[0]);
}

static eb_status call_handshake_binding(eb_job *job) {
  uint8_t out[EB_BINDING_SIZE];
  eb_status status = eb_handshake_binding(job->object[0], (eb_role)job->call.number[0], out);
  return status == EB_OK ? small(job, out, sizeof out) : status;
}

static eb_status call_handshake_derive(eb_job *job) {
  return eb_handshake_derive(job->object[0], job->call.small, job->call.small_len);
}

static eb_status call_handshake_finished(eb_job *job) {
  size_t len = 0;
  eb_status status = eb_handshake_finished(job->object[0], job->reply.small, small_room(job, 0), &len);
  return sized(job, status, len);
}

static eb_status call_handshake_check_finished(eb_job *job) {
  return eb_handshake_check_finished(job->object[0], job->call.small, job->call.small_len);
}

static eb_status call_handshake_session(eb_job *job) {
  eb_session *made = NULL;
  eb_status status = eb_handshake_session(job->object[0], job->call.small, &made);
  return status == EB_OK ? hand_out(job, EB_KIND_SESSION, made, free_session) : status;
}

/* ---- session ----------------------------------------------------------------------------------- */

static eb_status call_session_close(eb_job *job) { return eb_session_close(job->object[0]); }

static eb_status call_session_get_stats(eb_job *job) {
  eb_session_stats stats;
  eb_status status = eb_session_get_stats(job->object[0], &stats);
  return status == EB_OK ? small(job, &stats, sizeof stats) : status;
}

static eb_status call_session_rekey(eb_job *job) { return eb_session_rekey(job->object[0]); }

static eb_status call_session_mac(eb_job *job) {
  size_t len = 0;
  eb_status status = eb_session_mac(job->object[0], (eb_mac_purpose)job->call.number[0], job->bulk,
                                   (size_t)job->call.bulk_len, job->reply.small, small_room(job, 1), &len);
  return sized(job, status, len);
}

static eb_status call_session_check_mac(eb_job *job) {
  return eb_session_check_mac(job->object[0], (eb_mac_purpose)job->call.number[0], job->bulk,
                              (size_t)job->call.bulk_len, job->call.small, job->call.small_len);
}

/* ---- transfer ---------------------------------------------------------------------------------- */

static eb_status call_transfer_new(eb_job *job) {
  const uint64_t *number = job->call.number;
  const eb_window window = {(uint32_t)number[0], number[1], number[2]};
  eb_transfer *made = NULL;
  eb_status status = eb_transfer_new(bridge(job), job->call.small, &window, &made);
  return status == EB_OK ? hand_out(job, EB_KIND_TRANSFER, made, free_transfer) : status;
}

static eb_status call_transfer_set_target_fd(eb_job *job) {
  return eb_transfer_set_target_fd(job->object[0], job->fds[0], job->call.number[0]);
}

static eb_status call_transfer_pages(eb_job *job) { return eb_transfer_pages(job->object[0], &job->reply.number); }

static eb_status call_transfer_forget(eb_job *job) {
  return eb_transfer_forget(job->object[0], job->call.number[0], job->call.number[1]);
}

static eb_status call_transfer_commit_mac(eb_job *job) {
  size_t len = 0;
  eb_status status = eb_transfer_commit_mac(job->object[0], job->object[1], job->reply.small, small_room(job, 0), &len);
  return sized(job, status, len);
}

static eb_status call_transfer_check_commit_mac(eb_job *job) {
  return eb_transfer_check_commit_mac(job->object[0], job->object[1], job->call.small, job->call.small_len);
}

/* ---- pages -------------------------------------------------------------------------------------- */

static eb_status call_source_open(eb_job *job) {
  eb_source *made = NULL;
  eb_status status = eb_source_open(bridge(job), job->fds[0], job->call.number[0], job->call.number[1], &made);
  return status == EB_OK ? hand_out(job, EB_KIND_SOURCE, made, free_source) : status;
}

/* The bulk data of a call, as the page path wants it. */
typedef struct {
  eb_job *job;
  size_t given; /* bytes of the part */
} part_feed;

/* Sees to it that not all of the part is given, or *more is false. */
static eb_status next_part(part_feed *feed, bool *more) {
  eb_job *job = feed->job;
  *more = feed->given < job->part_len;
  if (!*more && eb_job_next(job)) {
    feed->given = 0;
    *more = true;
  }
  return job->broken ? EB_ERR_BRIDGE_DIED : EB_OK;
}

static eb_status next_pages(void *context, const uint8_t **part, size_t *len) {
  part_feed *feed = context;
  bool more = false;
  const eb_status status = next_part(feed, &more);
  *part = feed->job->part + EB_RECORD_HEADER_SIZE;
  *len = more ? feed->job->part_len / EB_RECORD_SIZE * EB_PAGE_SIZE : 0;
  feed->given = feed->job->part_len;
  return status;
}

static eb_status arrived_pages(void *context, size_t at_least, size_t *n) {
  part_feed *feed = context;
  size_t arrived = 0;
  const eb_status status = eb_job_arrived(feed->job, at_least * EB_RECORD_SIZE, &arrived);
  *n = arrived / EB_RECORD_SIZE;
  return status;
}

/* As many as are there. */
static eb_status next_records(void *context, const uint8_t **part, size_t *len) {
  part_feed *feed = context;
  bool more = false;
  size_t arrived = 0;
  eb_status status = EB_OK;
  *len = 0;
  EB_TRY(next_part(feed, &more));
  if (!more) goto done;
  EB_TRY(eb_job_arrived(feed->job, feed->given + EB_RECORD_SIZE, &arrived));
  *part = feed->job->part + feed->given;
  *len = (arrived - feed->given) / EB_RECORD_SIZE * EB_RECORD_SIZE;
  feed->given += *len;
done:
  return status;
}

/* Records go out as soon as they are made: those of what the bridge reads at once. */
_Static_assert(EB_LANE_CAPACITY / 2 - EB_RING_HEADER >= sizeof(eb_call) + EB_PART_PAGES * EB_RECORD_SIZE, "a part fits");
_Static_assert(EB_LANE_CAPACITY / 2 - EB_RING_HEADER >= sizeof(eb_reply) + EB_LANE_PAGES * EB_RECORD_SIZE,
               "so do they with a reply");
static uint8_t *room_for_records(void *context, size_t n) { return eb_job_room(context, n * EB_RECORD_SIZE); }

static void send_records(void *context, size_t n) { eb_job_send(context, n * EB_RECORD_SIZE, false); }

static eb_sink sink_of(eb_job *job) {
  return (eb_sink){.room = room_for_records, .made = send_records, .context = job};
}

/* A part of pages is the caller's to be read and to be written. */
static uint8_t *room_in_place(void *context, size_t n) {
  const eb_job *job = context;
  return n * EB_RECORD_SIZE == job->part_len ? (uint8_t *)(uintptr_t)job->part : NULL;
}

static void so_far_in_place(void *context, size_t n) { eb_job_made(context, n * EB_RECORD_SIZE); }

static void made_in_place(void *context, size_t n) { (void)context, (void)n; }

/* Seals the bulk data. number: region, first gpa. */
static eb_status seal_parts(eb_job *job, const eb_sink *sink) {
  part_feed context = {.job = job};
  const eb_feed feed = {
      .next = next_pages, .arrived = arrived_pages, .context = &context, .apart = EB_RECORD_SIZE - EB_PAGE_SIZE};
  const uint64_t pages = job->call.bulk_len / EB_RECORD_SIZE;
  eb_result result = {.bad_index = UINT64_MAX};
  if (pages > EB_REKEY_PAGES) return EB_ERR_LENGTH;
  eb_status status = eb_pages_seal_fed(job->object[0], job->object[1], (uint32_t)job->call.number[0],
                                       job->call.number[1], (size_t)pages * EB_PAGE_SIZE, &feed, sink, &job->used, &result);
  (void)small(job, &result, sizeof result);
  return status;
}

static eb_status call_pages_seal(eb_job *job) {
  const eb_sink sink = {room_in_place, so_far_in_place, made_in_place, job};
  return seal_parts(job, &sink);
}

/* number: region, first gpa, offset in the source, length. */
static eb_status call_pages_seal_from(eb_job *job) {
  const uint64_t *number = job->call.number;
  const eb_sink sink = sink_of(job);
  eb_result result = {.bad_index = UINT64_MAX};
  if (number[3] > (uint64_t)EB_REKEY_PAGES * EB_PAGE_SIZE) return EB_ERR_LENGTH;
  eb_status status = eb_pages_seal_from_to(job->object[0], job->object[1], (uint32_t)number[0], number[1],
                                           job->object[2], number[2], (size_t)number[3], &sink, &result);
  (void)small(job, &result, sizeof result);
  return status;
}

/* number: nothing, first gpa, pages. */
static eb_status call_guard_seal(eb_job *job) {
  const eb_sink sink = sink_of(job);
  eb_result result;
  eb_status status = eb_guard_seal_to(job->object[2], job->object[0], job->object[1], job->call.number[1],
                                      job->call.number[2], &sink, &result);
  (void)small(job, &result, sizeof result);
  return status;
}

/* The result of as many records as took effect goes back whatever the status. */
static eb_status call_pages_open(eb_job *job) {
  part_feed context = {.job = job};
  const eb_feed feed = {.next = next_records, .context = &context};
  eb_result result = {.bad_index = UINT64_MAX};
  eb_status status = EB_ERR_LENGTH;
  if (job->call.bulk_len > 0) status = eb_pages_open_fed(job->object[0], job->object[1], &feed, &job->used, &result);
  (void)small(job, &result, sizeof result);
  return status;
}

/* ---- lent memory ------------------------------------------------------------------------------- */

/* number: bytes from the start. */
static eb_status call_lent_new(eb_job *job) {
  eb_lent_memory *made = NULL;
  eb_status status = eb_lent_memory_map(job->fds[0], job->call.number[0], &made);
  return status == EB_OK ? hand_out(job, EB_KIND_LENT, made, free_lent) : status;
}

/* number: also offset of the records. */
static eb_status call_lent_seal(eb_job *job) {
  eb_flat place = {.buffer = NULL};
  const eb_sink sink = eb_flat_sink(&place);
  const uint64_t pages = job->call.bulk_len / EB_RECORD_SIZE;
  if (pages > EB_REKEY_PAGES) return EB_ERR_LENGTH;
  place.buffer = eb_lent_memory_at(job->object[2], job->call.number[2], pages * EB_RECORD_SIZE);
  if (place.buffer == NULL) return EB_ERR_BUFFER;
  eb_status status = seal_parts(job, &sink);
  eb_flat_end(&place, status);
  return status;
}

/* number: offset and length of the records. */
static eb_status call_lent_open(eb_job *job) {
  const uint64_t *number = job->call.number;
  eb_result result = {.bad_index = UINT64_MAX};
  const uint8_t *records = eb_lent_memory_at(job->object[2], number[0], number[1]);
  eb_status status = EB_ERR_BUFFER;
  if (records != NULL) status = eb_pages_open(job->object[0], job->object[1], records, (size_t)number[1], &result);
  (void)small(job, &result, sizeof result);
  return status;
}

/* ---- sealing keys and guards ----------------------------------------------------------------------- */

static eb_status call_sealing_open_file(eb_job *job) {
  eb_sealing *made = NULL;
  eb_status status = eb_sealing_open_file(bridge(job), job->fds[0], &made);
  return status == EB_OK ? hand_out(job, EB_KIND_SEALING, made, free_sealing) : status;
}

static eb_status call_sealing_open_snp(eb_job *job) {
  eb_snp_key_options options;
  eb_snp_failure failure = {0};
  eb_sealing *made = NULL;
  memcpy(&options, job->call.small, sizeof options);
  eb_status status = eb_sealing_open_snp(bridge(job), job->fds[0], &options, &failure, &made);
  (void)small(job, &failure, sizeof failure);
  return status == EB_OK ? hand_out(job, EB_KIND_SEALING, made, free_sealing) : status;
}

/* number: generation, pages, offset of the pages. The region's name is in the small data. */
typedef struct {
  char region[EB_MAX_REGION_NAME + 1];
  eb_guard_scope scope;
} scope_copy;

static const eb_guard_scope *scope_of(const eb_job *job, scope_copy *copy) {
  memset(copy->region, 0, sizeof copy->region);
  memcpy(copy->region, job->call.small, job->call.small_len);
  copy->scope = (eb_guard_scope){copy->region, job->call.number[0], job->call.number[1]};
  return &copy->scope;
}

static eb_status call_guard_new(eb_job *job) {
  eb_guard *made = NULL;
  scope_copy copy;
  eb_status status = eb_guard_new(bridge(job), job->object[0], scope_of(job, &copy), job->fds[0], job->call.number[2],
                                  &made);
  return status == EB_OK ? hand_out(job, EB_KIND_GUARD, made, free_guard) : status;
}

static eb_status call_guard_load(eb_job *job) {
  eb_guard *made = NULL;
  scope_copy copy;
  eb_status status = eb_guard_load(bridge(job), job->object[0], scope_of(job, &copy), job->fds[0], job->call.number[2],
                                   job->fds[1], &made);
  return status == EB_OK ? hand_out(job, EB_KIND_GUARD, made, free_guard) : status;
}

static eb_status call_transfer_set_guard(eb_job *job) { return eb_transfer_set_guard(job->object[0], job->object[1]); }

/* number: first page, pages, most ranges. The ranges are the reply's bulk data. */
static eb_status call_guard_verify(eb_job *job) {
  enum { MOST = EB_PART_BYTES / sizeof(eb_page_range) };
  eb_page_range *bad = (eb_page_range *)(void *)job->lane->gathered;
  const size_t cap = smaller(job->call.number[2], MOST);
  eb_verify_result result;
  eb_status status = eb_guard_verify(job->object[0], job->call.number[0], job->call.number[1], bad, cap, &result);
  if (status != EB_OK) return status;
  uint8_t *room = eb_job_room(job, result.ranges * sizeof *bad);
  if (room == NULL) return EB_ERR_BRIDGE_DIED;
  memcpy(room, bad, result.ranges * sizeof *bad);
  (void)small(job, &result, sizeof result);
  eb_job_send(job, result.ranges * sizeof *bad, true);
  return EB_OK;
}

static eb_status call_guard_carry(eb_job *job) {
  return eb_guard_carry(job->object[0], job->object[1], &job->reply.number);
}

static eb_status call_guard_save(eb_job *job) { return eb_guard_save(job->object[0], job->fds[0]); }

static eb_status call_guard_journal(eb_job *job) {
  return eb_guard_journal(job->object[0], job->fds[0], job->call.number[0]);
}

static eb_status call_guard_renew(eb_job *job) {
  return eb_guard_renew(job->object[0], job->call.number[0], &job->reply.number);
}

const eb_row eb_rows[EB_OPS] = {
#define X(name, first, second, third, least, most, bulk, descriptors)                                              \
  [EB_OP_##name] = {call_##name, {EB_KIND_##first, EB_KIND_##second, EB_KIND_##third}, least, most, EB_BULK_##bulk, \
                    descriptors},
    EB_CALLS(X)
#undef X
};
