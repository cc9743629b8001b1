/* Control MACs, transfers, their targets and the commit MAC. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pair.h"

static const uint8_t id[EB_TRANSFER_ID_SIZE] = {1};

static void test_control_mac_when_purpose_message_or_direction_differs_is_refused(void) {
  for (eb_suite suite = 1; suite <= EB_SUITES; suite++) {
    eb_pair *pair = pair_new(suite, NULL);
    const uint8_t message[] = "ack 17";
    uint8_t mac[EB_MAX_MAC_SIZE];
    size_t len = 0;
    for (eb_mac_purpose purpose = EB_MAC_TRANSFER; purpose <= EB_MAC_CONTROL; purpose++) {
      CHECK_OK(eb_session_mac(pair->client, purpose, message, sizeof message, mac, sizeof mac, &len));
      CHECK(len == eb_suite_find(suite)->hash_size);
      CHECK_OK(eb_session_check_mac(pair->server, purpose, message, sizeof message, mac, len));
      eb_mac_purpose wrong = purpose == EB_MAC_CONTROL ? EB_MAC_TRANSFER : purpose + 1;
      CHECK_STATUS(EB_ERR_MAC, eb_session_check_mac(pair->server, wrong, message, sizeof message, mac, len));
      CHECK_STATUS(EB_ERR_MAC, eb_session_check_mac(pair->server, purpose, message, 3, mac, len));
      CHECK_STATUS(EB_ERR_MAC, eb_session_check_mac(pair->client, purpose, message, sizeof message, mac, len));
      CHECK_STATUS(EB_ERR_MAC, eb_session_check_mac(pair->server, purpose, message, sizeof message, mac, len - 1));
      mac[0] ^= 1;
      CHECK_STATUS(EB_ERR_MAC, eb_session_check_mac(pair->server, purpose, message, sizeof message, mac, len));
    }
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_session_mac(pair->client, (eb_mac_purpose)4, message, 1, mac, sizeof mac, &len));
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_session_mac(pair->client, EB_MAC_CONTROL, NULL, 1, mac, sizeof mac, &len));
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_session_mac(pair->client, EB_MAC_CONTROL, message, 1, NULL, 48, &len));
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_session_check_mac(pair->client, EB_MAC_CONTROL, message, 1, NULL, 48));
    CHECK_STATUS(EB_ERR_BUFFER, eb_session_mac(pair->client, EB_MAC_CONTROL, message, 1, mac, 31, &len));
    CHECK_OK(eb_session_mac(pair->client, EB_MAC_CONTROL, NULL, 0, mac, sizeof mac, &len));
    CHECK_OK(eb_session_check_mac(pair->server, EB_MAC_CONTROL, NULL, 0, mac, len));
    pair_free(pair);
  }
}

static void test_transfer_when_the_window_is_bad_refuses(void) {
  eb_bridge *bridge = NULL;
  eb_transfer *transfer = NULL;
  CHECK_OK(eb_bridge_open(NULL, &bridge));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_new(bridge, id, &(eb_window){1, 0, 0}, &transfer));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_new(bridge, id, &(eb_window){1, 0, (1 << 28) + 1}, &transfer));
  CHECK_STATUS(EB_ERR_UNALIGNED, eb_transfer_new(bridge, id, &(eb_window){1, 4095, 1}, &transfer));
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE,
               eb_transfer_new(bridge, id, &(eb_window){1, UINT64_MAX - 4095, 1}, &transfer));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_new(bridge, id, NULL, &transfer));
  CHECK_OK(eb_transfer_new(bridge, id, &(eb_window){1, UINT64_MAX - 8191, 1}, &transfer));
  eb_transfer_free(transfer);
  eb_transfer_free(NULL);
  eb_bridge_free(bridge);
}

static void test_target_when_it_is_a_memfd_receives_the_pages(void) {
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  const eb_window window = {REGION, BASE_GPA, WINDOW_PAGES};
  eb_transfer *transfer = NULL;
  eb_result result;
  uint8_t page[EB_PAGE_SIZE];
  int fd = memfd_create("region", MFD_CLOEXEC);
  CHECK(fd >= 0 && ftruncate(fd, (WINDOW_PAGES + 1) * EB_PAGE_SIZE - 1) == 0);
  CHECK_OK(eb_transfer_new(pair->bridge, id, &window, &transfer));
  CHECK_STATUS(EB_ERR_TARGET, eb_transfer_set_target_fd(transfer, fd, EB_PAGE_SIZE)); /* one byte short */
  CHECK_STATUS(EB_ERR_TARGET, eb_transfer_set_target_fd(transfer, fd, UINT64_MAX - 4095));
  CHECK_STATUS(EB_ERR_TARGET, eb_transfer_set_target_fd(transfer, -1, 0));
  CHECK_STATUS(EB_ERR_UNALIGNED, eb_transfer_set_target_fd(transfer, fd, 100));
  CHECK(ftruncate(fd, (WINDOW_PAGES + 1) * EB_PAGE_SIZE) == 0);
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  int read_only = open(path, O_RDONLY | O_CLOEXEC);
  CHECK(read_only >= 0);
  CHECK_STATUS(EB_ERR_TARGET, eb_transfer_set_target_fd(transfer, read_only, EB_PAGE_SIZE));
  close(read_only);
  CHECK_OK(eb_transfer_set_target_fd(transfer, fd, EB_PAGE_SIZE));
  CHECK_STATUS(EB_ERR_STATE, eb_transfer_set_target_fd(transfer, fd, EB_PAGE_SIZE));
  CHECK_STATUS(EB_ERR_STATE, eb_transfer_set_target_memory(transfer, pair->target, sizeof pair->target));
  pair_seal(pair, 0, 3);
  CHECK_OK(eb_pages_open(pair->server, transfer, pair->records, pair->records_len, &result));
  CHECK(pread(fd, page, sizeof page, 3 * EB_PAGE_SIZE) == sizeof page);
  CHECK(memcmp(page, pair->plain + 2 * EB_PAGE_SIZE, sizeof page) == 0);
  close(fd);
  eb_transfer_free(transfer);
  pair_free(pair);
}

static void test_target_memory_when_its_size_is_wrong_is_refused(void) {
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  eb_result result;
  CHECK_STATUS(EB_ERR_LENGTH, eb_transfer_set_target_memory(pair->sent, pair->target, sizeof pair->target - 1));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_set_target_memory(pair->sent, NULL, sizeof pair->target));
  pair_seal(pair, 0, 1);
  CHECK_STATUS(EB_ERR_STATE, eb_pages_open(pair->server, pair->sent, pair->records, pair->records_len, &result));
  pair_free(pair);
}

static void test_forget_when_pages_were_recorded_drops_them(void) {
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  uint64_t pages = 0;
  pair_seal(pair, 0, 8);
  pair_seal(pair, 4, 8);
  CHECK_OK(eb_transfer_pages(pair->sent, &pages));
  CHECK(pages == 12);
  CHECK_OK(eb_transfer_forget(pair->sent, BASE_GPA + 2 * EB_PAGE_SIZE, 4));
  CHECK_OK(eb_transfer_forget(pair->sent, BASE_GPA + 2 * EB_PAGE_SIZE, 1));
  CHECK_OK(eb_transfer_pages(pair->sent, &pages));
  CHECK(pages == 8);
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, eb_transfer_forget(pair->sent, BASE_GPA, WINDOW_PAGES + 1));
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, eb_transfer_forget(pair->sent, BASE_GPA, 0));
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, eb_transfer_forget(pair->sent, 0, 1));
  CHECK_STATUS(EB_ERR_UNALIGNED, eb_transfer_forget(pair->sent, BASE_GPA + 1, 1));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_forget(NULL, BASE_GPA, 1));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_pages(pair->sent, NULL));
  pair_free(pair);
}

static void test_commit_mac_when_accounts_agree_verifies_and_otherwise_not(void) {
  for (eb_suite suite = 1; suite <= EB_SUITES; suite++) {
    eb_pair *pair = pair_new(suite, NULL);
    uint8_t mac[EB_MAX_MAC_SIZE];
    size_t len = 0;
    eb_result result;
    pair_seal(pair, 0, 5);
    CHECK_OK(pair_open(pair, &result));
    pair_seal(pair, 40, 2);
    CHECK_OK(eb_transfer_commit_mac(pair->client, pair->sent, mac, sizeof mac, &len));
    CHECK(len == eb_suite_find(suite)->hash_size);
    CHECK_STATUS(EB_ERR_MAC, eb_transfer_check_commit_mac(pair->server, pair->received, mac, len)); /* two missing */
    CHECK_OK(pair_open(pair, &result));
    CHECK_OK(eb_transfer_check_commit_mac(pair->server, pair->received, mac, len));
    CHECK_STATUS(EB_ERR_MAC, eb_transfer_check_commit_mac(pair->server, pair->received, mac, len - 1));
    CHECK_STATUS(EB_ERR_MAC, eb_transfer_check_commit_mac(pair->client, pair->sent, mac, len)); /* reflected */
    mac[len - 1] ^= 1;
    CHECK_STATUS(EB_ERR_MAC, eb_transfer_check_commit_mac(pair->server, pair->received, mac, len));
    pair_seal(pair, 3, 1); /* a newer version of page 3 that does not arrive */
    CHECK_OK(eb_transfer_commit_mac(pair->client, pair->sent, mac, sizeof mac, &len));
    CHECK_STATUS(EB_ERR_MAC, eb_transfer_check_commit_mac(pair->server, pair->received, mac, len));
    CHECK_OK(pair_open(pair, &result));
    CHECK_OK(eb_transfer_check_commit_mac(pair->server, pair->received, mac, len));
    CHECK_STATUS(EB_ERR_BUFFER, eb_transfer_commit_mac(pair->client, pair->sent, mac, 31, &len));
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_commit_mac(pair->client, pair->sent, NULL, 48, &len));
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_check_commit_mac(pair->client, pair->sent, NULL, 48));
    pair_free(pair);
  }
}

/* Against one HMAC over the whole message, longer than one chunk. */
static void test_commit_mac_when_streamed_equals_one_message(void) {
  enum { PAGES = 300 };
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  static uint8_t message[7 + 16 + 8 + PAGES * 24];
  uint8_t expected[EB_MAX_MAC_SIZE], mac[EB_MAX_MAC_SIZE];
  size_t used = 0, len = 0;
  eb_transfer *transfer = NULL;
  CHECK_OK(eb_transfer_new(pair->bridge, id, &(eb_window){REGION, BASE_GPA, 2 * PAGES + 1000}, &transfer));
  memcpy(message, "commit", 7);
  memcpy(message + 7, id, 16);
  message[7 + 16] = PAGES & 0xff;
  message[7 + 16 + 1] = PAGES >> 8;
  used = 7 + 16 + 8;
  for (uint64_t i = 0; i < PAGES; i++) {
    uint8_t tag[EB_TAG_SIZE] = {(uint8_t)i, (uint8_t)(i >> 8), 9};
    uint64_t index = i < PAGES / 2 ? 2 * i : 2 * i + 1000; /* gaps, small and large */
    uint64_t gpa = BASE_GPA + index * EB_PAGE_SIZE;
    eb_transfer_record(transfer, index, tag);
    for (int b = 0; b < 8; b++) message[used++] = (uint8_t)(gpa >> (8 * b));
    memcpy(message + used, tag, sizeof tag);
    used += sizeof tag;
  }
  CHECK_OK(eb_transfer_commit_mac(pair->client, transfer, mac, sizeof mac, &len));
  CHECK_OK(eb_session_mac(pair->client, EB_MAC_TRANSFER, message, used, expected, sizeof expected, &len));
  CHECK(memcmp(mac, expected, len) == 0);
  eb_transfer_free(transfer);
  pair_free(pair);
}

static void test_transfer_when_it_is_of_another_bridge_is_refused(void) {
  eb_pair *one = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL), *two = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  uint8_t mac[EB_MAX_MAC_SIZE];
  size_t len = 0;
  eb_result result;
  pair_seal(one, 0, 1);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_open(one->server, two->received, one->records, one->records_len, &result));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_transfer_commit_mac(one->client, two->sent, mac, sizeof mac, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_pages_seal(one->client, two->sent, REGION, BASE_GPA, one->plain, EB_PAGE_SIZE,
                                              one->records, sizeof one->records, &len, NULL));
  pair_free(one);
  pair_free(two);
}

int main(void) {
  RUN(test_control_mac_when_purpose_message_or_direction_differs_is_refused);
  RUN(test_transfer_when_the_window_is_bad_refuses);
  RUN(test_target_when_it_is_a_memfd_receives_the_pages);
  RUN(test_target_memory_when_its_size_is_wrong_is_refused);
  RUN(test_forget_when_pages_were_recorded_drops_them);
  RUN(test_commit_mac_when_accounts_agree_verifies_and_otherwise_not);
  RUN(test_commit_mac_when_streamed_equals_one_message);
  RUN(test_transfer_when_it_is_of_another_bridge_is_refused);
  return 0;
}
