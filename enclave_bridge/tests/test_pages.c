/* The page path, with each kernel that the CPU can run. */
#include "pair.h"
#include "record.h"

static const eb_gcm_ops *const kernels[] = {&eb_gcm_openssl, &batched_ops, &eb_gcm_aesni, &eb_gcm_vaes256, &eb_gcm_avx512};

/* Runs the test with both suites and every kernel. */
static void each(void (*test)(eb_pair *pair)) {
  for (eb_suite suite = 1; suite <= EB_SUITES; suite++)
    for (size_t k = 0; k < sizeof kernels / sizeof kernels[0]; k++) {
      if (!kernels[k]->usable()) continue;
      eb_pair *pair = pair_new(suite, kernels[k]);
      test(pair);
      CHECK(pool_is_zero(pair->bridge, EB_POOL_LANES));
      pair_free(pair);
    }
}

static eb_session_stats stats_of(eb_session *session) {
  eb_session_stats stats;
  CHECK_OK(eb_session_get_stats(session, &stats));
  return stats;
}

static void arrives(eb_pair *pair) {
  eb_result sealed, opened;
  CHECK_OK(eb_pages_seal(pair->client, pair->sent, REGION, BASE_GPA, pair->plain, sizeof pair->plain, pair->records,
                         sizeof pair->records, &pair->records_len, &sealed));
  CHECK(sealed.pages == WINDOW_PAGES && sealed.sequence == WINDOW_PAGES - 1 && sealed.epoch == 0);
  CHECK(sealed.bad_index == UINT64_MAX && pair->records_len == WINDOW_PAGES * EB_RECORD_SIZE);
  for (size_t i = 0; i < WINDOW_PAGES; i++) /* nothing is sent in the clear */
    CHECK(memcmp(pair->records + i * EB_RECORD_SIZE + 48, pair->plain + i * EB_PAGE_SIZE, 16) != 0);
  CHECK_OK(pair_open(pair, &opened));
  CHECK(opened.pages == WINDOW_PAGES && opened.sequence == WINDOW_PAGES - 1 && opened.bad_index == UINT64_MAX);
  CHECK(memcmp(pair->target, pair->plain, sizeof pair->plain) == 0);
  CHECK(stats_of(pair->client).sent_pages == WINDOW_PAGES && stats_of(pair->server).opened_pages == WINDOW_PAGES);
}
static void test_pages_when_sealed_and_opened_arrive(void) { each(arrives); }

static void replays(eb_pair *pair) {
  eb_result result;
  pair_seal(pair, 0, 20);
  CHECK_OK(pair_open(pair, &result));
  CHECK_STATUS(EB_ERR_REPLAYED, pair_open(pair, &result));
  CHECK(result.pages == 0 && result.bad_index == 0 && stats_of(pair->server).replayed == 1);
  /* The same record twice in one batch: both are fresh when the batch is looked at. */
  pair_seal(pair, 20, 2);
  memcpy(pair->records + EB_RECORD_SIZE, pair->records, EB_RECORD_SIZE);
  CHECK_STATUS(EB_ERR_REPLAYED, pair_open(pair, &result));
  CHECK(result.pages == 1 && result.bad_index == 1 && pair_arrived(pair, 20) && pair_untouched(pair, 21));
}
static void test_records_when_repeated_are_replayed(void) { each(replays); }

static void reorders(eb_pair *pair) {
  eb_result result;
  pair_seal(pair, 0, 32);
  for (size_t i = 32; i-- > 0;) {
    CHECK_OK(eb_pages_open(pair->server, pair->received, pair->records + i * EB_RECORD_SIZE, EB_RECORD_SIZE, &result));
    CHECK(result.sequence == i && pair_arrived(pair, i));
  }
}
static void test_records_when_reordered_in_the_window_are_opened(void) { each(reorders); }

static void ages(eb_pair *pair) {
  static uint8_t old[EB_RECORD_SIZE];
  eb_result result;
  pair_seal(pair, 0, 1);
  memcpy(old, pair->records, sizeof old);
  pair->client->send_sequence = EB_REPLAY_WINDOW;
  pair_seal(pair, 1, 1);
  CHECK_OK(pair_open(pair, &result));
  CHECK_STATUS(EB_ERR_REPLAYED, eb_pages_open(pair->server, pair->received, old, sizeof old, &result));
  CHECK(pair_untouched(pair, 0));
}
static void test_records_when_older_than_the_window_are_replayed(void) { each(ages); }

/* What a change of one header byte is refused as; everything else breaks the tag. */
static eb_status expected_refusal(size_t byte) {
  if (byte < 16) return EB_ERR_WRONG_SESSION;
  if (byte < 20) return EB_ERR_EPOCH; /* 0 becomes 0x80 or more */
  if (byte < 24) return EB_ERR_HEADER;
  if (byte == 24 || byte == 25) return EB_ERR_TAMPERED; /* another number */
  if (byte == 26) return EB_ERR_TAMPERED;
  if (byte < 32) return EB_ERR_EPOCH; /* a number beyond the end of an epoch */
  if (byte < 36) return EB_ERR_WRONG_REGION;
  if (byte < 40) return EB_ERR_HEADER;
  if (byte == 40) return EB_ERR_UNALIGNED;
  if (byte == 41) return EB_ERR_TAMPERED; /* another page of the window */
  if (byte < 48) return EB_ERR_OUT_OF_RANGE;
  return EB_ERR_TAMPERED;
}

static void tampers(eb_pair *pair) {
  eb_result result;
  pair_seal(pair, 9, 1);
  for (size_t byte = 0; byte < EB_RECORD_SIZE; byte++) {
    if (byte > 70 && byte < EB_RECORD_SIZE - 20 && byte % 5 != 0 && pair->bridge->gcm != &eb_gcm_openssl) continue;
    pair->records[byte] ^= 0x80;
    CHECK_STATUS(expected_refusal(byte), pair_open(pair, &result));
    CHECK(result.pages == 0 && result.bad_index == 0 && pair_untouched(pair, 9));
    CHECK(eb_session_recv_epoch(pair->server, 0)->replay.next == 0 && pair->server->recv_epoch == 0);
    CHECK(pair->received->pages == 0);
    pair->server->tampered = 0; /* or the session would close */
    pair->records[byte] ^= 0x80;
  }
  CHECK_OK(pair_open(pair, &result));
  CHECK(pair_arrived(pair, 9));
}
static void test_record_when_any_byte_is_changed_is_refused_and_changes_nothing(void) { each(tampers); }

static void stops(eb_pair *pair) {
  eb_result result;
  pair_seal(pair, 0, 40);
  pair->records[25 * EB_RECORD_SIZE + 100] ^= 1;
  CHECK_STATUS(EB_ERR_TAMPERED, pair_open(pair, &result));
  CHECK(result.pages == 25 && result.bad_index == 25 && result.sequence == 24);
  for (size_t i = 0; i < 25; i++) CHECK(pair_arrived(pair, i));
  for (size_t i = 25; i < 40; i++) CHECK(pair_untouched(pair, i));
  CHECK(pair->received->pages == 25);
  pair_seal(pair, 40, 20); /* a bad header in the middle of a run */
  pair->records[7 * EB_RECORD_SIZE + 20] = 1;
  CHECK_STATUS(EB_ERR_HEADER, pair_open(pair, &result));
  CHECK(result.pages == 7 && result.bad_index == 7 && pair_arrived(pair, 46) && pair_untouched(pair, 47));
  CHECK(stats_of(pair->server).refused == 1 && stats_of(pair->server).tampered == 1);
}
static void test_batch_when_one_record_is_bad_stops_there(void) { each(stops); }

static void closes(eb_pair *pair) {
  eb_result result;
  uint8_t mac[EB_MAX_MAC_SIZE];
  size_t len = 0;
  pair_seal(pair, 0, 1);
  pair->records[4159] ^= 1;
  for (unsigned i = 1; i <= EB_MAX_BAD_TAGS; i++) {
    CHECK(stats_of(pair->server).closed == 0);
    CHECK_STATUS(EB_ERR_TAMPERED, pair_open(pair, &result));
  }
  pair->records[4159] ^= 1;
  CHECK(stats_of(pair->server).closed == 1 && pair->server->secret == NULL);
  CHECK_STATUS(EB_ERR_SESSION_CLOSED, pair_open(pair, &result));
  CHECK(result.pages == 0);
  CHECK_STATUS(EB_ERR_SESSION_CLOSED, eb_session_close(pair->server));
  CHECK_STATUS(EB_ERR_SESSION_CLOSED, eb_session_rekey(pair->server));
  CHECK_STATUS(EB_ERR_SESSION_CLOSED, eb_session_mac(pair->server, EB_MAC_CONTROL, NULL, 0, mac, sizeof mac, &len));
  CHECK_STATUS(EB_ERR_SESSION_CLOSED, eb_pages_seal(pair->server, NULL, REGION, 0, pair->plain, EB_PAGE_SIZE,
                                                    pair->records, sizeof pair->records, &len, NULL));
  CHECK_STATUS(EB_ERR_SESSION_CLOSED, eb_transfer_commit_mac(pair->server, pair->received, mac, sizeof mac, &len));
}
static void test_session_when_sixteen_tags_are_bad_closes(void) { each(closes); }

static void reflects(eb_pair *pair) {
  eb_result result;
  CHECK_OK(eb_transfer_set_target_memory(pair->sent, pair->target, sizeof pair->target));
  pair_seal(pair, 0, 1);
  CHECK_STATUS(EB_ERR_TAMPERED,
               eb_pages_open(pair->client, pair->sent, pair->records, pair->records_len, &result));
}
static void test_record_when_played_back_to_its_sender_does_not_verify(void) { each(reflects); }

static void ratchets(eb_pair *pair) {
  static uint8_t first[EB_RECORD_SIZE], second[EB_RECORD_SIZE], second_late[EB_RECORD_SIZE], third[EB_RECORD_SIZE];
  eb_result result;
  pair_seal(pair, 0, 1);
  memcpy(first, pair->records, sizeof first);
  CHECK_OK(eb_session_rekey(pair->client));
  pair_seal(pair, 1, 2);
  memcpy(second, pair->records, sizeof second);
  memcpy(second_late, pair->records + EB_RECORD_SIZE, sizeof second_late);
  CHECK_OK(eb_session_rekey(pair->client));
  pair_seal(pair, 3, 1);
  memcpy(third, pair->records, sizeof third);
#define OPEN(record) eb_pages_open(pair->server, pair->received, (record), EB_RECORD_SIZE, &result)
  CHECK_STATUS(EB_ERR_EPOCH, OPEN(third)); /* two ahead */
  second[100] ^= 1;
  CHECK_STATUS(EB_ERR_TAMPERED, OPEN(second)); /* a header alone moves nothing */
  CHECK(stats_of(pair->server).recv_epoch == 0);
  second[100] ^= 1;
  CHECK_OK(OPEN(second));
  CHECK(result.epoch == 1 && result.sequence == 0 && stats_of(pair->server).recv_epoch == 1);
  CHECK_OK(OPEN(first)); /* the previous epoch drains */
  CHECK_STATUS(EB_ERR_REPLAYED, OPEN(first));
  CHECK_STATUS(EB_ERR_REPLAYED, OPEN(second));
  CHECK_OK(OPEN(third));
  CHECK(stats_of(pair->server).recv_epoch == 2 && stats_of(pair->client).send_epoch == 2);
  CHECK_STATUS(EB_ERR_EPOCH, OPEN(first)); /* its key is gone */
  CHECK_OK(OPEN(second_late));
  for (size_t i = 0; i < 4; i++) CHECK(pair_arrived(pair, i));
  for (int i = 0; i < 10; i++) { /* slots are used again and again */
    CHECK_OK(eb_session_rekey(pair->client));
    pair_seal(pair, 4, 20);
    CHECK_OK(pair_open(pair, &result));
  }
}
static void test_epochs_when_the_sender_rekeys_follow_it(void) { each(ratchets); }

static void rekeys_itself(eb_pair *pair) {
  eb_result result;
  pair->client->send_sequence = EB_REKEY_PAGES - 4;
  pair_seal(pair, 0, 4);
  CHECK_OK(pair_open(pair, &result));
  CHECK(result.epoch == 0 && result.sequence == EB_REKEY_PAGES - 1);
  pair_seal(pair, 4, 4);
  CHECK_OK(pair_open(pair, &result));
  CHECK(result.epoch == 1 && result.sequence == 3);
  pair->client->send_sequence = EB_REKEY_PAGES - 1; /* a batch does not straddle two epochs */
  pair_seal(pair, 8, 2);
  CHECK_OK(pair_open(pair, &result));
  CHECK(result.epoch == 2 && result.sequence == 1);
}
static void test_sender_when_an_epoch_is_used_up_rekeys_by_itself(void) { each(rekeys_itself); }

/* One batch with records of two epochs: the second half moves the receiver on. */
static void mixes(eb_pair *pair) {
  static uint8_t mixed[8 * EB_RECORD_SIZE];
  eb_result result;
  pair_seal(pair, 0, 4);
  memcpy(mixed, pair->records, 4 * EB_RECORD_SIZE);
  CHECK_OK(eb_session_rekey(pair->client));
  pair_seal(pair, 4, 4);
  memcpy(mixed + 4 * EB_RECORD_SIZE, pair->records, 4 * EB_RECORD_SIZE);
  CHECK_OK(eb_pages_open(pair->server, pair->received, mixed, sizeof mixed, &result));
  CHECK(result.pages == 8 && result.epoch == 1);
  for (size_t i = 0; i < 8; i++) CHECK(pair_arrived(pair, i));
}
static void test_batch_when_it_holds_two_epochs_is_opened(void) { each(mixes); }

static void exhausts(eb_pair *pair) {
  eb_result result;
  size_t len = 0;
  pair->client->send_epoch = UINT32_MAX;
  CHECK_STATUS(EB_ERR_EXHAUSTED, eb_session_rekey(pair->client));
  pair->client->send_sequence = EB_REKEY_PAGES;
  CHECK_STATUS(EB_ERR_EXHAUSTED, eb_pages_seal(pair->client, NULL, REGION, 0, pair->plain, EB_PAGE_SIZE, pair->records,
                                               sizeof pair->records, &len, NULL));
  /* The receiver's last epoch has no next one. */
  pair->client->send_epoch = UINT32_MAX;
  pair->client->send_sequence = 0;
  pair_seal(pair, 0, 1);
  eb_recv_epoch *last = eb_session_recv_epoch(pair->server, 0);
  last->epoch = UINT32_MAX; /* UINT32_MAX % 3 == 0 */
  pair->server->recv_epoch = UINT32_MAX - 1;
  CHECK_OK(pair_open(pair, &result));
  CHECK(stats_of(pair->server).recv_epoch == UINT32_MAX);
}
static void test_epochs_when_used_up_are_exhausted(void) { each(exhausts); }

static void checks_seal(eb_pair *pair) {
  size_t len = 0;
#define SEAL(transfer, region, gpa, plain, size, cap) \
  eb_pages_seal(pair->client, transfer, region, gpa, plain, size, pair->records, cap, &len, NULL)
  const size_t room = sizeof pair->records;
  CHECK_STATUS(EB_ERR_LENGTH, SEAL(NULL, REGION, 0, pair->plain, 0, room));
  CHECK_STATUS(EB_ERR_LENGTH, SEAL(NULL, REGION, 0, pair->plain, 4097, room));
  CHECK_STATUS(EB_ERR_LENGTH, SEAL(NULL, REGION, 0, pair->plain, (EB_REKEY_PAGES + 1) * EB_PAGE_SIZE, room));
  CHECK_STATUS(EB_ERR_BUFFER, SEAL(NULL, REGION, 0, pair->plain, 8192, 8319));
  CHECK_STATUS(EB_ERR_UNALIGNED, SEAL(NULL, REGION, 1, pair->plain, 4096, room));
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, SEAL(NULL, REGION, UINT64_MAX - 4095, pair->plain, 4096, room));
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, SEAL(pair->sent, REGION, BASE_GPA - 4096, pair->plain, 4096, room));
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, SEAL(pair->sent, REGION, BASE_GPA + 4096, pair->plain, sizeof pair->plain, room));
  CHECK_STATUS(EB_ERR_WRONG_REGION, SEAL(pair->sent, REGION + 1, BASE_GPA, pair->plain, 4096, room));
  CHECK_STATUS(EB_ERR_ARGUMENT, SEAL(NULL, REGION, 0, NULL, 4096, room));
  CHECK_STATUS(EB_ERR_ARGUMENT, SEAL(NULL, REGION, 0, pair->records + 4000, 4096, room)); /* overlap */
  CHECK(pair->client->send_sequence == 0 && pair->sent->pages == 0);
  CHECK_OK(SEAL(NULL, REGION, 0, pair->plain, 4096, EB_RECORD_SIZE)); /* without a transfer */
}
static void test_seal_when_arguments_are_bad_uses_no_number(void) { each(checks_seal); }

static void checks_open(eb_pair *pair) {
  eb_result result;
  pair_seal(pair, 0, 2);
  CHECK_STATUS(EB_ERR_LENGTH, eb_pages_open(pair->server, pair->received, pair->records, 0, &result));
  CHECK_STATUS(EB_ERR_LENGTH, eb_pages_open(pair->server, pair->received, pair->records, 4161, &result));
  CHECK(result.bad_index == UINT64_MAX && result.pages == 0);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_open(pair->server, NULL, pair->records, 4160, &result));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_open(pair->server, pair->received, NULL, 4160, &result));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_open(pair->server, pair->received, pair->records, 4160, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_open(NULL, pair->received, pair->records, 4160, &result));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_session_get_stats(pair->server, NULL));
}
static void test_open_when_arguments_are_bad_refuses(void) { each(checks_open); }

static void unaligned(eb_pair *pair) {
  static uint8_t plain[3 * EB_PAGE_SIZE + 7], records[3 * EB_RECORD_SIZE + 5];
  eb_result result;
  memcpy(plain + 7, pair->plain, 3 * EB_PAGE_SIZE);
  CHECK_OK(eb_pages_seal(pair->client, pair->sent, REGION, BASE_GPA, plain + 7, 3 * EB_PAGE_SIZE, records + 5,
                         3 * EB_RECORD_SIZE, &pair->records_len, NULL));
  CHECK_OK(eb_pages_open(pair->server, pair->received, records + 5, pair->records_len, &result));
  for (size_t i = 0; i < 3; i++) CHECK(pair_arrived(pair, i));
}
static void test_buffers_when_unaligned_work(void) { each(unaligned); }

/* ---- kernels that fail, and peers that write while we read ------------------------------ */

static int calls_left;
static eb_pair *victim;

static eb_status fails_later_seal(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len,
                                  size_t len) {
  return calls_left-- > 0 ? eb_gcm_openssl.seal(gcm, work, items, n, aad_len, len) : EB_ERR_CRYPTO;
}
static eb_status fails_open(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len, size_t len,
                            size_t *good) {
  (void)gcm, (void)work, (void)items, (void)n, (void)aad_len, (void)len;
  *good = 0;
  return EB_ERR_CRYPTO;
}
static eb_status fails_set_key(eb_gcm *gcm, const uint8_t *key, size_t size) {
  (void)gcm, (void)key, (void)size;
  return EB_ERR_CRYPTO;
}

static void test_seal_when_the_kernel_fails_leaves_nothing_and_uses_the_numbers(void) {
  eb_gcm_ops ops = eb_gcm_openssl;
  ops.seal = fails_later_seal;
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, &ops);
  size_t len = 0;
  calls_left = 2;
  memset(pair->records, 0xee, sizeof pair->records);
  CHECK_STATUS(EB_ERR_CRYPTO, eb_pages_seal(pair->client, pair->sent, REGION, BASE_GPA, pair->plain, 4 * EB_PAGE_SIZE,
                                            pair->records, sizeof pair->records, &len, NULL));
  for (size_t i = 0; i < 3 * EB_RECORD_SIZE; i++) CHECK(pair->records[i] == 0);
  CHECK(pair->client->send_sequence == 4 && pair->sent->pages == 0 && pair->client->sent_pages == 0);
  pair_free(pair);
}

static void test_open_when_the_kernel_fails_closes_the_session(void) {
  eb_gcm_ops ops = eb_gcm_openssl;
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, &ops);
  eb_result result;
  pair_seal(pair, 0, 1);
  ops.open = fails_open;
  CHECK_STATUS(EB_ERR_CRYPTO, pair_open(pair, &result));
  CHECK(stats_of(pair->server).closed == 1);
  pair_free(pair);
}

static void test_epoch_when_its_successor_cannot_be_derived_closes_the_session(void) {
  eb_gcm_ops ops = eb_gcm_openssl;
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, &ops);
  eb_result result;
  CHECK_OK(eb_session_rekey(pair->client));
  pair_seal(pair, 0, 1);
  ops.set_key = fails_set_key;
  CHECK_STATUS(EB_ERR_CRYPTO, eb_session_rekey(pair->client));
  CHECK_STATUS(EB_ERR_CRYPTO, pair_open(pair, &result));
  CHECK(stats_of(pair->server).closed == 1 && pair_untouched(pair, 0));
  pair_free(pair);
}

/* The peer changes the record in shared memory once the bridge has begun to decrypt it. */
static eb_status hostile_open(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len,
                              size_t len, size_t *good) {
  memset(victim->records, 0x66, sizeof victim->records);
  return eb_gcm_openssl.open(gcm, work, items, n, aad_len, len, good);
}

static void test_open_when_the_peer_writes_meanwhile_uses_what_it_read_first(void) {
  eb_gcm_ops ops = eb_gcm_openssl;
  ops.open = hostile_open;
  ops.batch = 4;
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, &ops);
  eb_result result;
  victim = pair;
  pair_seal(pair, 0, 4);
  CHECK_OK(pair_open(pair, &result));
  for (size_t i = 0; i < 4; i++) CHECK(pair_arrived(pair, i));
  pair_free(pair);
}

int main(void) {
  RUN(test_pages_when_sealed_and_opened_arrive);
  RUN(test_records_when_repeated_are_replayed);
  RUN(test_records_when_reordered_in_the_window_are_opened);
  RUN(test_records_when_older_than_the_window_are_replayed);
  RUN(test_record_when_any_byte_is_changed_is_refused_and_changes_nothing);
  RUN(test_batch_when_one_record_is_bad_stops_there);
  RUN(test_session_when_sixteen_tags_are_bad_closes);
  RUN(test_record_when_played_back_to_its_sender_does_not_verify);
  RUN(test_epochs_when_the_sender_rekeys_follow_it);
  RUN(test_sender_when_an_epoch_is_used_up_rekeys_by_itself);
  RUN(test_batch_when_it_holds_two_epochs_is_opened);
  RUN(test_epochs_when_used_up_are_exhausted);
  RUN(test_seal_when_arguments_are_bad_uses_no_number);
  RUN(test_open_when_arguments_are_bad_refuses);
  RUN(test_buffers_when_unaligned_work);
  RUN(test_seal_when_the_kernel_fails_leaves_nothing_and_uses_the_numbers);
  RUN(test_open_when_the_kernel_fails_closes_the_session);
  RUN(test_epoch_when_its_successor_cannot_be_derived_closes_the_session);
  RUN(test_open_when_the_peer_writes_meanwhile_uses_what_it_read_first);
  return 0;
}
