/*
 * The bridge process's side of a lane, on anything. The input is a script: raw messages, and calls that are half
 * right, on handles that are there, so that what lies behind the parser is reached.
 * Whatever happens, each call that is answered is answered once, and no descriptor or handle is lost.
 */
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "caller.h"
#include "check.h"

enum { STEP = 16, MAX_CALLS = 8, BULK = 8 * EB_RECORD_SIZE };

typedef struct {
  const uint8_t *at;
  size_t left;
} script;

static uint8_t byte(script *from) {
  if (from->left == 0) return 0;
  from->left--;
  return *from->at++;
}

static uint64_t number(script *from) {
  static const uint64_t special[] = {0, 1, 2, 4096, UINT32_MAX, UINT64_MAX, UINT64_MAX - 4095, UINT64_C(1) << 63};
  const uint8_t first = byte(from);
  if (first >= 0xf8) return special[first & 7];
  return (uint64_t)(first & 0x0f) << 8 | byte(from);
}

static uint64_t put(caller *to, eb_kind kind, void *object) {
  uint64_t made = 0;
  CHECK_OK(eb_handles_put(&to->server.handles, kind, object, &made));
  return made;
}

enum { HELLO, CLIENT, SERVER, SENT, RECEIVED, SOURCE, GUARD, HANDLES };

/* A handle of each kind: two sessions that have shaken hands among them. */
static void fill(caller *to, uint64_t handles[HANDLES]) {
  const eb_suite suite = EB_SUITE_P256_SHA256_AES128GCM;
  const uint8_t id[EB_SESSION_ID_SIZE] = {0};
  const eb_window window = {7, 0x1000, 16};
  eb_bridge *bridge = to->server.bridge;
  eb_handshake *ends[3];
  eb_session *sessions[2];
  eb_transfer *transfers[2];
  eb_source *source = NULL;
  uint8_t keys[2][EB_MAX_PUBLIC_KEY_SIZE], mac[EB_MAX_MAC_SIZE];
  size_t lens[2], len = 0;
  for (int i = 0; i < 3; i++) {
    CHECK_OK(eb_handshake_new(bridge, i == 1 ? EB_ROLE_SERVER : EB_ROLE_CLIENT, &suite, 1, &ends[i]));
    CHECK_OK(eb_handshake_select(ends[i], suite));
  }
  for (int i = 0; i < 2; i++) CHECK_OK(eb_handshake_public_key(ends[i], suite, keys[i], sizeof keys[i], &lens[i]));
  for (int i = 0; i < 2; i++) CHECK_OK(eb_handshake_derive(ends[i], keys[1 - i], lens[1 - i]));
  for (int i = 0; i < 2; i++) {
    CHECK_OK(eb_handshake_finished(ends[i], mac, sizeof mac, &len));
    CHECK_OK(eb_handshake_check_finished(ends[1 - i], mac, len));
  }
  for (int i = 0; i < 2; i++) {
    CHECK_OK(eb_handshake_session(ends[i], id, &sessions[i]));
    eb_handshake_free(ends[i]);
    CHECK_OK(eb_transfer_new(bridge, id, &window, &transfers[i]));
  }
  const int fd = memfd_create("fuzz", MFD_CLOEXEC);
  CHECK(fd >= 0 && ftruncate(fd, 16 * EB_PAGE_SIZE) == 0);
  CHECK_OK(eb_transfer_set_target_fd(transfers[1], fd, 0));
  CHECK_OK(eb_source_open(bridge, fd, 0, 16 * EB_PAGE_SIZE, &source));
  close(fd);
  eb_guard *guard = NULL;
  const eb_guard_scope scope = {"fuzz", 1, 16};
  const int guarded = memfd_create("fuzz", MFD_CLOEXEC);
  CHECK(guarded >= 0 && ftruncate(guarded, 16 * EB_PAGE_SIZE) == 0);
  CHECK_OK(eb_guard_new(bridge, NULL, &scope, guarded, 0, &guard));
  close(guarded);
  handles[GUARD] = put(to, EB_KIND_GUARD, guard);
  handles[HELLO] = put(to, EB_KIND_HANDSHAKE, ends[2]);
  handles[CLIENT] = put(to, EB_KIND_SESSION, sessions[0]);
  handles[SERVER] = put(to, EB_KIND_SESSION, sessions[1]);
  handles[SENT] = put(to, EB_KIND_TRANSFER, transfers[0]);
  handles[RECEIVED] = put(to, EB_KIND_TRANSFER, transfers[1]);
  handles[SOURCE] = put(to, EB_KIND_SOURCE, source);
}

static uint64_t handle(script *from, const uint64_t handles[HANDLES]) {
  const uint8_t choice = byte(from);
  return choice < 0xe0 ? handles[choice % HANDLES] : number(from);
}

static void put_one(caller *to, script *from, const uint64_t handles[HANDLES], const uint8_t *records, size_t made) {
  static uint8_t bulk[BULK];
  eb_call call = {.op = byte(from) % (EB_OPS + 1)};
  if (byte(from) >= 0xf0) { /* anything */
    uint8_t raw[sizeof call + 64];
    const size_t len = number(from) % sizeof raw;
    for (size_t i = 0; i < len; i++) raw[i] = byte(from);
    caller_put(to, raw, len);
    return;
  }
  for (size_t i = 0; i < EB_CALL_HANDLES; i++) call.handle[i] = handle(from, handles);
  for (size_t i = 0; i < 5; i++) call.number[i] = number(from);
  /* One thread is both ends: what comes back has to fit the ring. */
  if (call.op == EB_OP_random) call.number[0] %= 65536;
  if (call.op == EB_OP_pages_seal_from) call.number[3] %= 9 * EB_PAGE_SIZE;
  if (call.op == EB_OP_guard_seal) call.number[2] %= 9;
  if (call.op == EB_OP_transfer_new) call.number[2] %= 1 << 16;
  const eb_row *row = &eb_rows[call.op % EB_OPS];
  call.small_len = byte(from) < 0xf0 ? row->small_least : byte(from);
  for (size_t i = 0; i < sizeof call.small; i++) call.small[i] = byte(from);

  const size_t unit = row->bulk == EB_BULK_NONE || row->bulk == EB_BULK_BYTES ? 1 : EB_RECORD_SIZE;
  const uint8_t shape = byte(from);
  size_t len = row->bulk == EB_BULK_NONE && shape < 0xf0 ? 0 : (size_t)(number(from) % (BULK / unit + 1)) * unit;
  memcpy(bulk, records, made < len ? made : len); /* an honest sender's records, and then what the input does to them */
  for (size_t i = byte(from); i > 0 && len > 0; i--) bulk[number(from) * 17 % len] ^= byte(from);
  call.bulk_len = shape % 16 == 15 ? number(from) : len;
  const size_t first = shape % 4 == 3 ? len / unit / 2 * unit : len;
  caller_put_call(to, call, bulk, first);
  if (first == len) return;
  if (shape % 8 == 7) /* as much of it as the input says */
    caller_put_growing(to, bulk + first, len - first, number(from) % (len - first + 1));
  else
    caller_put(to, bulk + first, len - first);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static caller shared;
  static uint64_t handles[HANDLES];
  static uint8_t records[BULK], plain[8 * EB_PAGE_SIZE];
  static bool open;
  script from = {data, size};
  size_t made = 0;
  if (!open) {
    caller_open(&shared);
    fill(&shared, handles);
    open = true;
  }
  void *client = NULL;
  if (eb_handles_take(&shared.server.handles, EB_KIND_SESSION, handles[CLIENT], &client) == EB_OK) {
    (void)!eb_pages_seal(client, NULL, 7, 0x1000, plain, sizeof plain, records, sizeof records, &made, NULL);
    eb_handles_give(&shared.server.handles, handles[CLIENT]);
  }
  size_t calls = 0;
  while (calls < MAX_CALLS && from.left > 0 && !shared.calls.growing) { /* nothing comes behind a part that never ends */
    put_one(&shared, &from, handles, records, made);
    calls++;
  }
  const bool kept = caller_serve(&shared);
  eb_reply reply;
  size_t finals = 0, lost = 0;
  while (caller_reply(&shared, &reply, NULL)) finals += reply.final != 0;
  CHECK(finals <= calls && (!kept || finals > 0 || calls == 0));
  caller_renew(&shared);

  const eb_handles *table = &shared.server.handles;
  for (uint32_t i = 0; i < table->count; i++) lost += table->slots[i].users != 0;
  CHECK(lost == 0);
  /* What the input spoiled or used up is made anew. */
  const eb_handle_slot *session = &table->slots[(uint32_t)handles[CLIENT] - 1];
  if (made == 0 || session->generation != handles[CLIENT] >> 32 || table->count - table->free_count > 64) {
    caller_close(&shared);
    open = false;
  }
  return 0;
}
