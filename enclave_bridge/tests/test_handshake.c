#include "pair.h"

static const eb_suite both[] = {EB_SUITE_P384_SHA384_AES256GCM, EB_SUITE_P256_SHA256_AES128GCM};
static const uint8_t id[EB_SESSION_ID_SIZE] = {1};

static eb_pair *derived(eb_suite suite) {
  eb_pair *pair = calloc(1, sizeof *pair);
  CHECK(pair != NULL);
  CHECK_OK(eb_bridge_open(NULL, &pair->bridge));
  pair_derive(pair, suite);
  return pair;
}

static void test_handshake_when_suites_are_wrong_refuses(void) {
  const eb_suite unknown = (eb_suite)3, twice[] = {both[0], both[0]};
  eb_bridge *bridge = NULL;
  eb_handshake *handshake = NULL;
  CHECK_OK(eb_bridge_open(NULL, &bridge));
  CHECK_STATUS(EB_ERR_SUITE, eb_handshake_new(bridge, EB_ROLE_CLIENT, &unknown, 1, &handshake));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_new(bridge, EB_ROLE_CLIENT, twice, 2, &handshake));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_new(bridge, EB_ROLE_CLIENT, both, 0, &handshake));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_new(bridge, EB_ROLE_CLIENT, both, 3, &handshake));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_new(bridge, (eb_role)3, both, 2, &handshake));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_new(bridge, EB_ROLE_CLIENT, NULL, 1, &handshake));
  CHECK_OK(eb_handshake_new(bridge, EB_ROLE_CLIENT, both, 1, &handshake));
  CHECK_STATUS(EB_ERR_SUITE, eb_handshake_select(handshake, both[1]));
  CHECK_STATUS(EB_ERR_SUITE, eb_handshake_select(handshake, unknown));
  CHECK_OK(eb_handshake_select(handshake, both[0]));
  CHECK_STATUS(EB_ERR_SUITE, eb_handshake_select(handshake, both[0]));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_select(NULL, both[0]));
  eb_handshake_free(handshake);
  eb_handshake_free(NULL);
  eb_bridge_free(bridge);
}

static void test_handshake_when_all_slots_are_used_says_limit(void) {
  const eb_bridge_options one = {.max_sessions = 1, .max_handshakes = 1};
  eb_bridge *bridge = NULL;
  eb_handshake *first = NULL, *second = NULL;
  CHECK_OK(eb_bridge_open(&one, &bridge));
  CHECK_OK(eb_handshake_new(bridge, EB_ROLE_CLIENT, both, 2, &first));
  CHECK_STATUS(EB_ERR_LIMIT, eb_handshake_new(bridge, EB_ROLE_CLIENT, both, 2, &second));
  eb_handshake_free(first);
  CHECK_OK(eb_handshake_new(bridge, EB_ROLE_CLIENT, both, 2, &second));
  eb_handshake_free(second);
  eb_bridge_free(bridge);
}

static void test_public_key_when_suite_is_selected_destroys_the_other(void) {
  eb_bridge *bridge = NULL;
  eb_handshake *handshake = NULL;
  uint8_t point[EB_MAX_PUBLIC_KEY_SIZE];
  size_t len = 0;
  CHECK_OK(eb_bridge_open(NULL, &bridge));
  CHECK_OK(eb_handshake_new(bridge, EB_ROLE_CLIENT, both, 2, &handshake));
  CHECK_OK(eb_handshake_public_key(handshake, both[1], point, sizeof point, &len));
  CHECK(len == 65 && point[0] == 4);
  CHECK_STATUS(EB_ERR_BUFFER, eb_handshake_public_key(handshake, both[0], point, 96, &len));
  CHECK_STATUS(EB_ERR_SUITE, eb_handshake_public_key(handshake, (eb_suite)9, point, sizeof point, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_public_key(handshake, both[0], NULL, 97, &len));
  CHECK_OK(eb_handshake_select(handshake, both[0]));
  CHECK_OK(eb_handshake_public_key(handshake, both[0], point, sizeof point, &len));
  CHECK(len == 97);
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_public_key(handshake, both[1], point, sizeof point, &len));
  eb_handshake_free(handshake);
  eb_bridge_free(bridge);
}

static void test_absorb_when_message_is_too_long_refuses(void) {
  eb_bridge *bridge = NULL;
  eb_handshake *handshake = NULL;
  uint8_t *message = calloc(1, EB_MAX_MESSAGE_SIZE + 1);
  CHECK(message != NULL);
  CHECK_OK(eb_bridge_open(NULL, &bridge));
  CHECK_OK(eb_handshake_new(bridge, EB_ROLE_CLIENT, both, 2, &handshake));
  CHECK_OK(eb_handshake_absorb(handshake, message, EB_MAX_MESSAGE_SIZE));
  CHECK_STATUS(EB_ERR_LENGTH, eb_handshake_absorb(handshake, message, EB_MAX_MESSAGE_SIZE + 1));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_absorb(handshake, NULL, 1));
  eb_handshake_free(handshake);
  eb_bridge_free(bridge);
  free(message);
}

static void test_binding_when_role_or_transcript_differs_differs(void) {
  eb_pair *pair = derived(both[0]);
  uint8_t a[EB_BINDING_SIZE], b[EB_BINDING_SIZE];
  CHECK_OK(eb_handshake_binding(pair->client_handshake, EB_ROLE_SERVER, a));
  CHECK_OK(eb_handshake_binding(pair->server_handshake, EB_ROLE_SERVER, b));
  CHECK(memcmp(a, b, sizeof a) == 0);
  CHECK_OK(eb_handshake_binding(pair->client_handshake, EB_ROLE_CLIENT, b));
  CHECK(memcmp(a, b, sizeof a) != 0);
  CHECK_OK(eb_handshake_absorb(pair->client_handshake, a, 1));
  CHECK_OK(eb_handshake_binding(pair->client_handshake, EB_ROLE_SERVER, b));
  CHECK(memcmp(a, b, sizeof a) != 0);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_binding(pair->client_handshake, (eb_role)0, a));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_binding(pair->client_handshake, EB_ROLE_CLIENT, NULL));
  pair_free(pair);
}

/* The peer's key as `change` leaves it. */
static void check_point(eb_suite suite, eb_status expected, void (*change)(uint8_t *point, size_t *len, uint8_t *own)) {
  eb_bridge *bridge = NULL;
  eb_handshake *one = NULL, *two = NULL;
  uint8_t own[EB_MAX_PUBLIC_KEY_SIZE], peer[EB_MAX_PUBLIC_KEY_SIZE + 1];
  size_t own_len = 0, len = 0;
  CHECK_OK(eb_bridge_open(NULL, &bridge));
  CHECK_OK(eb_handshake_new(bridge, EB_ROLE_CLIENT, &suite, 1, &one));
  CHECK_OK(eb_handshake_new(bridge, EB_ROLE_SERVER, &suite, 1, &two));
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_derive(one, peer, 65)); /* no suite yet */
  CHECK_OK(eb_handshake_select(one, suite));
  CHECK_OK(eb_handshake_public_key(one, suite, own, sizeof own, &own_len));
  CHECK_OK(eb_handshake_public_key(two, suite, peer, sizeof peer, &len));
  change(peer, &len, own);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_derive(one, NULL, len));
  CHECK_STATUS(expected, eb_handshake_derive(one, peer, len));
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_derive(one, peer, len)); /* once only */
  CHECK(one->keys[suite - 1] == NULL);
  if (expected != EB_OK) {
    CHECK(pool_is_zero(bridge, EB_POOL_HANDSHAKES));
    CHECK_STATUS(EB_ERR_STATE, eb_handshake_absorb(one, peer, 1));
  }
  eb_handshake_free(one);
  eb_handshake_free(two);
  eb_bridge_free(bridge);
}

static void nothing(uint8_t *point, size_t *len, uint8_t *own) { (void)point, (void)len, (void)own; }
static void off_curve(uint8_t *point, size_t *len, uint8_t *own) { (void)own, point[*len - 1] ^= 1; }
static void shorter(uint8_t *point, size_t *len, uint8_t *own) { (void)point, (void)own, --*len; }
static void longer(uint8_t *point, size_t *len, uint8_t *own) { (void)own, point[(*len)++] = 0; }
static void infinity(uint8_t *point, size_t *len, uint8_t *own) { (void)own, point[0] = 0, *len = 1; }
static void zeros(uint8_t *point, size_t *len, uint8_t *own) { (void)own, memset(point + 1, 0, *len - 1); }
static void large(uint8_t *point, size_t *len, uint8_t *own) { (void)own, memset(point + 1, 0xff, *len - 1); }
static void hybrid(uint8_t *point, size_t *len, uint8_t *own) { (void)own, point[0] = 6 | (point[*len - 1] & 1); }
static void reflected(uint8_t *point, size_t *len, uint8_t *own) { memcpy(point, own, *len); }
static void mirrored(uint8_t *point, size_t *len, uint8_t *own) {
  memcpy(point, own, *len);
  point[*len - 1] ^= 1; /* equal x; refused before the curve is asked */
}

static void test_derive_when_the_point_is_bad_refuses_and_ends(void) {
  for (int i = 0; i < 2; i++) {
    check_point(both[i], EB_OK, nothing);
    check_point(both[i], EB_ERR_POINT, off_curve);
    check_point(both[i], EB_ERR_POINT, shorter);
    check_point(both[i], EB_ERR_POINT, longer);
    check_point(both[i], EB_ERR_POINT, infinity);
    check_point(both[i], EB_ERR_POINT, zeros);
    check_point(both[i], EB_ERR_POINT, large);
    check_point(both[i], EB_ERR_POINT, hybrid);
    check_point(both[i], EB_ERR_POINT, reflected);
    check_point(both[i], EB_ERR_POINT, mirrored);
  }
}

static void test_finished_when_steps_are_missing_refuses(void) {
  eb_bridge *bridge = NULL;
  eb_handshake *handshake = NULL;
  eb_session *session = NULL;
  uint8_t mac[EB_MAX_MAC_SIZE] = {0}, out[EB_BINDING_SIZE];
  size_t len = 0;
  CHECK_OK(eb_bridge_open(NULL, &bridge));
  CHECK_OK(eb_handshake_new(bridge, EB_ROLE_CLIENT, both, 2, &handshake));
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_binding(handshake, EB_ROLE_SERVER, out));
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_finished(handshake, mac, sizeof mac, &len));
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_check_finished(handshake, mac, sizeof mac));
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_session(handshake, id, &session));
  eb_handshake_free(handshake);

  eb_pair *pair = derived(both[0]);
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_session(pair->client_handshake, id, &session));
  CHECK_STATUS(EB_ERR_BUFFER, eb_handshake_finished(pair->client_handshake, mac, 47, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_finished(pair->client_handshake, NULL, 48, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_check_finished(pair->client_handshake, NULL, 48));
  CHECK_OK(eb_handshake_finished(pair->client_handshake, mac, sizeof mac, &len));
  CHECK(len == 48);
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_session(pair->client_handshake, id, &session)); /* the peer's is missing */
  CHECK_OK(eb_handshake_check_finished(pair->server_handshake, mac, len));
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_session(pair->server_handshake, id, &session)); /* the own is missing */
  pair_free(pair);
  eb_bridge_free(bridge);
}

static void test_check_finished_when_the_mac_is_wrong_ends_the_handshake(void) {
  uint8_t mac[EB_MAX_MAC_SIZE];
  size_t len = 0;
  for (int mode = 0; mode < 4; mode++) {
    eb_pair *pair = derived(both[1]);
    eb_handshake *from = mode == 1 ? pair->server_handshake : pair->client_handshake; /* 1: its own, reflected */
    CHECK_OK(eb_handshake_finished(from, mac, sizeof mac, &len));
    CHECK(len == 32);
    if (mode == 0) mac[31] ^= 0x80;
    if (mode == 2) len--;
    if (mode == 3) CHECK_OK(eb_handshake_absorb(pair->server_handshake, mac, 1)); /* other transcripts */
    CHECK_STATUS(EB_ERR_FINISHED, eb_handshake_check_finished(pair->server_handshake, mac, len));
    CHECK_STATUS(EB_ERR_STATE, eb_handshake_finished(pair->server_handshake, mac, sizeof mac, &len));
    pair_free(pair);
  }
}

static void test_session_when_slots_are_used_says_limit_and_can_be_tried_again(void) {
  const eb_bridge_options one = {.max_sessions = 1, .max_handshakes = 2};
  eb_pair *pair = calloc(1, sizeof *pair);
  uint8_t mac[EB_MAX_MAC_SIZE];
  size_t len = 0;
  CHECK(pair != NULL);
  CHECK_OK(eb_bridge_open(&one, &pair->bridge));
  pair_derive(pair, both[1]);
  CHECK_OK(eb_handshake_finished(pair->client_handshake, mac, sizeof mac, &len));
  CHECK_OK(eb_handshake_check_finished(pair->server_handshake, mac, len));
  CHECK_OK(eb_handshake_finished(pair->server_handshake, mac, sizeof mac, &len));
  CHECK_OK(eb_handshake_check_finished(pair->client_handshake, mac, len));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handshake_session(pair->client_handshake, NULL, &pair->client));
  CHECK_OK(eb_handshake_session(pair->client_handshake, id, &pair->client));
  CHECK_STATUS(EB_ERR_STATE, eb_handshake_session(pair->client_handshake, id, &pair->server)); /* spent */
  CHECK_STATUS(EB_ERR_LIMIT, eb_handshake_session(pair->server_handshake, id, &pair->server));
  CHECK_OK(eb_session_close(pair->client)); /* gives its slot back */
  CHECK_OK(eb_handshake_session(pair->server_handshake, id, &pair->server));
  pair_free(pair);
}

int main(void) {
  RUN(test_handshake_when_suites_are_wrong_refuses);
  RUN(test_handshake_when_all_slots_are_used_says_limit);
  RUN(test_public_key_when_suite_is_selected_destroys_the_other);
  RUN(test_absorb_when_message_is_too_long_refuses);
  RUN(test_binding_when_role_or_transcript_differs_differs);
  RUN(test_derive_when_the_point_is_bad_refuses_and_ends);
  RUN(test_finished_when_steps_are_missing_refuses);
  RUN(test_check_finished_when_the_mac_is_wrong_ends_the_handshake);
  RUN(test_session_when_slots_are_used_says_limit_and_can_be_tried_again);
  return 0;
}
