/*
 * eb_pages_open on whole batches. The input is a script for a sender that holds the keys and is
 * hostile: it seals, skips epochs and sequence numbers, seals records whose headers lie, repeats and
 * reorders, and a network that changes bytes helps it. The first byte chooses the implementation.
 *
 * Whatever happens: each page of the target is what was sealed in the last record that was applied
 * to it; no number of an epoch is applied twice; nothing is applied that a header should have kept
 * out; the counters add up; and the EB_MAX_BAD_TAGS-th bad tag is the last.
 */
#include "fuzz.h"
#include "pair.h"
#include "record.h"

enum { STEP = 8, MOST_RECORDS = 96, MOST_APPLIED = 8192, UNTOUCHED = WINDOW_PAGES };

typedef struct {
  eb_session *sender, *receiver;
  eb_transfer *transfer;
  uint8_t records[MOST_RECORDS * EB_RECORD_SIZE];
  uint8_t source[MOST_RECORDS]; /* which page of `plain` each was sealed from */
  size_t n;
  uint8_t target[WINDOW_PAGES * EB_PAGE_SIZE];
  uint8_t expected[WINDOW_PAGES]; /* which page of `plain` should be there */
  struct {
    uint32_t epoch;
    uint64_t sequence;
  } applied[MOST_APPLIED];
  size_t applied_n;
} scene;

static uint8_t plain[WINDOW_PAGES * EB_PAGE_SIZE]; /* every page different, none zero */

static uint8_t *record_at(scene *s, size_t i) { return s->records + i * EB_RECORD_SIZE; }

static void remember(scene *s, const eb_record_header *header) {
  for (size_t i = 0; i < s->applied_n; i++)
    CHECK(s->applied[i].epoch != header->epoch || s->applied[i].sequence != header->sequence);
  CHECK(s->applied_n < MOST_APPLIED);
  s->applied[s->applied_n].epoch = header->epoch;
  s->applied[s->applied_n++].sequence = header->sequence;
}

static void check_applied(scene *s, size_t i) {
  eb_record_header header;
  CHECK_OK(eb_record_parse(record_at(s, i), EB_RECORD_SIZE, &header));
  CHECK(memcmp(header.session_id, s->receiver->id, EB_SESSION_ID_SIZE) == 0);
  CHECK(header.flags == 0 && header.reserved == 0 && header.region == REGION);
  CHECK(header.gpa >= BASE_GPA && header.gpa % EB_PAGE_SIZE == 0 && header.sequence < EB_REKEY_PAGES);
  const uint64_t page = (header.gpa - BASE_GPA) / EB_PAGE_SIZE;
  CHECK(page < WINDOW_PAGES);
  remember(s, &header);
  s->expected[page] = s->source[i];
}

static void check_target(const scene *s) {
  static const uint8_t zero[EB_PAGE_SIZE];
  for (size_t i = 0; i < WINDOW_PAGES; i++)
    CHECK(memcmp(s->target + i * EB_PAGE_SIZE,
                 s->expected[i] == UNTOUCHED ? zero : plain + s->expected[i] * EB_PAGE_SIZE, EB_PAGE_SIZE) == 0);
}

static void open_all(scene *s, size_t missing) {
  eb_result result;
  eb_session_stats stats;
  const size_t len = s->n * EB_RECORD_SIZE;
  if (s->applied_n + s->n > MOST_APPLIED) return;
  eb_status status = eb_pages_open(s->receiver, s->transfer, s->records, len - (missing < len ? missing : 0), &result);
  CHECK(result.pages <= s->n && (status == EB_OK) == (result.bad_index == UINT64_MAX && result.pages > 0));
  for (size_t i = 0; i < result.pages; i++) check_applied(s, i);
  CHECK_OK(eb_session_get_stats(s->receiver, &stats));
  CHECK(stats.opened_pages == s->applied_n && stats.tampered <= EB_MAX_BAD_TAGS);
  CHECK(stats.closed == (stats.tampered == EB_MAX_BAD_TAGS));
}

static void seal(scene *s, size_t first, size_t n) {
  size_t len = 0;
  if (s->n + n > MOST_RECORDS) s->n = 0;
  eb_status status = eb_pages_seal(s->sender, NULL, REGION, BASE_GPA + first * EB_PAGE_SIZE,
                                   plain + first * EB_PAGE_SIZE, n * EB_PAGE_SIZE, record_at(s, s->n),
                                   (MOST_RECORDS - s->n) * EB_RECORD_SIZE, &len, NULL);
  CHECK_OK(status);
  for (size_t i = 0; i < n; i++) s->source[s->n++] = (uint8_t)(first + i);
}

/* One good tag over a header that no honest sender writes. */
static void seal_a_lie(scene *s, uint8_t field, uint64_t value, uint8_t page) {
  eb_record_header header = {.epoch = s->sender->send_epoch, .region = REGION, .gpa = BASE_GPA + page * EB_PAGE_SIZE};
  static _Alignas(64) uint8_t work[EB_GCM_WORK_SIZE];
  uint8_t nonce[EB_GCM_IV_SIZE];
  if (s->n == MOST_RECORDS) s->n = 0;
  uint8_t *record = record_at(s, s->n);
  memcpy(header.session_id, s->sender->id, sizeof header.session_id);
  header.sequence = s->sender->send_sequence++;
  switch (field % 7) {
    case 0: header.epoch = (uint32_t)value; break;
    case 1: header.flags = (uint32_t)value; break;
    case 2: header.sequence = value; break;
    case 3: header.region = (uint32_t)value; break;
    case 4: header.reserved = (uint32_t)value; break;
    case 5: header.gpa = value << (field / 7 % 4 * 12); break;
    default: header.session_id[value % EB_SESSION_ID_SIZE] ^= field;
  }
  eb_record_write(record, &header);
  eb_record_nonce(nonce, s->sender->secret->send.iv, header.sequence);
  const eb_gcm_item item = {nonce, record, plain + page * EB_PAGE_SIZE, record + EB_RECORD_HEADER_SIZE,
                            record + EB_RECORD_HEADER_SIZE + EB_PAGE_SIZE};
  CHECK_OK(s->sender->send_gcm.ops->seal(&s->sender->send_gcm, work, &item, 1, EB_RECORD_HEADER_SIZE,
                                             EB_PAGE_SIZE));
  s->source[s->n++] = page;
}

static void rekey(scene *s, unsigned times) {
  while (times-- > 0) CHECK_OK(eb_session_rekey(s->sender));
}

static void step(scene *s, const uint8_t *script) {
  const uint8_t page = script[1] % WINDOW_PAGES, which = s->n > 0 ? script[1] % s->n : 0;
  const uint64_t argument = fuzz_number(script + 2, 4);
  uint8_t *record = record_at(s, which);
  switch (script[0] % 10) {
    case 0: seal(s, page, 1 + argument % (WINDOW_PAGES - page) % 40); break;
    case 1: record[argument % EB_RECORD_SIZE] ^= script[6]; break;
    case 2: record[argument % EB_RECORD_HEADER_SIZE] = script[6]; break;
    case 3: rekey(s, 1); break;
    case 4:
      if (s->n == 0) break;
      memmove(record, record_at(s, argument % s->n), EB_RECORD_SIZE);
      s->source[which] = s->source[argument % s->n];
      break;
    case 5: s->sender->send_sequence += argument % (2 * EB_REPLAY_WINDOW); break;
    case 6: s->sender->send_sequence = argument % (EB_REKEY_PAGES + 1); break; /* back too: the key's nonces repeat */
    case 7: rekey(s, script[1] % 5); break;
    case 8: seal_a_lie(s, script[6], argument, page); break;
    default:
      open_all(s, script[6] & 1 ? argument % (EB_RECORD_SIZE + 2) : 0);
      if (script[6] & 2) s->n = 0;
  }
}

/* One bridge; the sessions of each input are made from the same keys, so that an input repeats. */
static eb_bridge *the_bridge(void) {
  static eb_bridge *bridge;
  if (bridge != NULL) return bridge;
  const eb_bridge_options options = {.max_sessions = 2, .max_handshakes = 1};
  CHECK_OK(eb_bridge_open(&options, &bridge));
  for (size_t i = 0; i < sizeof plain; i++) plain[i] = (uint8_t)(1 + i / EB_PAGE_SIZE + i * 13) | 1;
  return bridge;
}

static void choose(eb_bridge *bridge, uint8_t by) {
  const eb_gcm_ops *const all[] = {&eb_gcm_openssl, &batched_ops, &eb_gcm_aesni, &eb_gcm_vaes256, &eb_gcm_avx512};
  const eb_gcm_ops *chosen = all[by % (sizeof all / sizeof all[0])];
  bridge->gcm = chosen->usable() ? chosen : &eb_gcm_openssl;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static scene s;
  static const eb_handshake_secret keys = {.write = {"client", "server"}};
  static const uint8_t id[EB_SESSION_ID_SIZE] = "session-0123456";
  const eb_window window = {REGION, BASE_GPA, WINDOW_PAGES};
  const eb_suite suite = size > 0 && data[0] & 128 ? EB_SUITE_P256_SHA256_AES128GCM : EB_SUITE_P384_SHA384_AES256GCM;
  eb_result result;
  if (size == 0) return 0;
  eb_bridge *bridge = the_bridge();
  choose(bridge, data[0] & 127);
  s.n = s.applied_n = 0;
  memset(s.target, 0, sizeof s.target);
  memset(s.expected, UNTOUCHED, sizeof s.expected);
  CHECK_OK(eb_session_new(bridge, EB_ROLE_CLIENT, suite, &keys, id, &s.sender));
  CHECK_OK(eb_session_new(bridge, EB_ROLE_SERVER, suite, &keys, id, &s.receiver));
  CHECK_OK(eb_transfer_new(bridge, id, &window, &s.transfer));
  CHECK_OK(eb_transfer_set_target_memory(s.transfer, s.target, sizeof s.target));
  CHECK(eb_pages_open(s.receiver, s.transfer, data, size, &result) != EB_OK); /* as it is: never sealed */
  for (data++, size--; size >= STEP && s.receiver->secret != NULL; data += STEP, size -= STEP) step(&s, data);
  check_target(&s);
  eb_transfer_free(s.transfer);
  eb_session_free(s.receiver);
  eb_session_free(s.sender);
  return 0;
}
