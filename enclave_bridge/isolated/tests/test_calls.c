/* What the bridge process makes of calls that no honest caller sends. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "caller.h"
#include "check.h"

static caller shared;

static eb_call op(eb_op which) { return (eb_call){.op = which}; }

static eb_status status_of(eb_call call, const void *bulk, size_t len) {
  return (eb_status)caller_call(&shared, call, bulk, len).status;
}

/* True when the bridge gives such a caller up. */
static bool given_up(void) {
  const bool kept = caller_serve(&shared);
  caller_renew(&shared);
  return !kept;
}

static uint64_t handshake_of(eb_role role) {
  const eb_reply reply = caller_call(&shared, (eb_call){.op = EB_OP_handshake_new, .number = {role, 1, 2}}, NULL, 0);
  CHECK_STATUS(EB_OK, reply.status);
  return reply.handle;
}

static uint64_t handshake(void) { return handshake_of(EB_ROLE_CLIENT); }

static void release(uint64_t handle) {
  CHECK_STATUS(EB_OK, status_of((eb_call){.op = EB_OP_release, .handle = {handle}}, NULL, 0));
}

/* Both ends of one session. */
static void make_sessions(uint64_t sessions[2]) {
  const uint64_t ends[] = {handshake(), handshake_of(EB_ROLE_SERVER)};
  uint8_t keys[2][EB_SMALL_SIZE];
  uint32_t lens[2];
  for (int i = 0; i < 2; i++) {
    CHECK_STATUS(EB_OK, status_of((eb_call){.op = EB_OP_handshake_select, .handle = {ends[i]}, .number = {2}}, NULL, 0));
    const eb_call call = {.op = EB_OP_handshake_public_key, .handle = {ends[i]}, .number = {2, EB_SMALL_SIZE}};
    const eb_reply reply = caller_call(&shared, call, NULL, 0);
    lens[i] = reply.small_len;
    memcpy(keys[i], reply.small, lens[i]);
  }
  for (int i = 0; i < 2; i++) {
    eb_call call = {.op = EB_OP_handshake_derive, .handle = {ends[i]}, .small_len = lens[1 - i]};
    memcpy(call.small, keys[1 - i], lens[1 - i]);
    CHECK_STATUS(EB_OK, status_of(call, NULL, 0));
  }
  for (int i = 0; i < 2; i++) {
    const eb_reply mac = caller_call(
        &shared, (eb_call){.op = EB_OP_handshake_finished, .handle = {ends[i]}, .number = {EB_SMALL_SIZE}}, NULL, 0);
    eb_call call = {.op = EB_OP_handshake_check_finished, .handle = {ends[1 - i]}, .small_len = mac.small_len};
    memcpy(call.small, mac.small, mac.small_len);
    CHECK_STATUS(EB_OK, status_of(call, NULL, 0));
  }
  for (int i = 0; i < 2; i++) {
    const eb_call call = {.op = EB_OP_handshake_session, .handle = {ends[i]}, .small_len = EB_SESSION_ID_SIZE};
    sessions[i] = caller_call(&shared, call, NULL, 0).handle;
    release(ends[i]);
  }
}

static uint64_t transfer(uint64_t pages) {
  const eb_call call = {
      .op = EB_OP_transfer_new, .number = {7, 0x1000, pages}, .small_len = EB_TRANSFER_ID_SIZE};
  const eb_reply reply = caller_call(&shared, call, NULL, 0);
  CHECK_STATUS(EB_OK, reply.status);
  return reply.handle;
}

static void test_call_when_shorter_than_a_call_is_given_up(void) {
  static const uint8_t zeros[sizeof(eb_call)];
  for (size_t len = 0; len < sizeof zeros; len += 37) {
    caller_put(&shared, zeros, len);
    CHECK(given_up());
  }
}

static void test_call_when_its_number_is_unknown_is_given_up(void) {
  const uint32_t numbers[] = {EB_OPS, EB_OPS + 1, INT32_MAX, UINT32_MAX};
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
    caller_put_call(&shared, op((eb_op)numbers[i]), NULL, 0);
    CHECK(given_up());
  }
}

static void test_small_data_when_of_another_length_is_given_up(void) {
  for (uint32_t which = 0; which < EB_OPS; which++) {
    eb_call call = op(which);
    call.small_len = eb_rows[which].small_most + 1;
    caller_put_call(&shared, call, NULL, 0);
    CHECK(given_up());
    if (eb_rows[which].small_least == 0) continue;
    call.small_len = eb_rows[which].small_least - 1;
    caller_put_call(&shared, call, NULL, 0);
    CHECK(given_up());
  }
}

static void test_bulk_data_when_other_than_announced_is_given_up(void) {
  static const uint8_t bytes[(EB_PART_PAGES + 1) * EB_RECORD_SIZE];
  CHECK(sizeof bytes > EB_PART_BYTES);
  const struct {
    eb_op op;
    uint64_t announced;
    size_t sent;
  } cases[] = {
      {EB_OP_random, 1, 0},                            /* none is taken */
      {EB_OP_random, 0, 1},
      {EB_OP_handshake_absorb, 4, 5},                  /* more than announced */
      {EB_OP_handshake_absorb, EB_MAX_MESSAGE_SIZE + 1, 5},
      {EB_OP_handshake_absorb, UINT64_MAX, 5},
      {EB_OP_handshake_absorb, EB_PART_BYTES + 1, EB_PART_BYTES + 1}, /* a part too large */
      {EB_OP_handshake_absorb, 9, 4},                  /* less, and then nothing */
      {EB_OP_pages_open, EB_RECORD_SIZE, EB_RECORD_SIZE - 1}, /* not whole */
      {EB_OP_pages_open, (EB_PART_PAGES + 1) * EB_RECORD_SIZE, (EB_PART_PAGES + 1) * EB_RECORD_SIZE},
      {EB_OP_pages_open, 2 * EB_RECORD_SIZE, EB_RECORD_SIZE},
      {EB_OP_pages_seal, EB_PAGE_SIZE, EB_PAGE_SIZE},
      {EB_OP_pages_seal, (EB_PART_PAGES + 1) * EB_RECORD_SIZE, (EB_PART_PAGES + 1) * EB_RECORD_SIZE},
      {EB_OP_pages_seal, UINT64_MAX, EB_PAGE_SIZE},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    eb_call call = op(cases[i].op);
    call.bulk_len = cases[i].announced;
    caller_put_call(&shared, call, bytes, cases[i].sent);
    CHECK(given_up());
  }
}

static void test_later_part_when_empty_or_too_long_is_given_up(void) {
  static const uint8_t bytes[EB_PART_BYTES];
  for (size_t len = 0; len <= 6; len += 6) {
    eb_call call = op(EB_OP_handshake_absorb);
    call.bulk_len = 9;
    caller_put_call(&shared, call, bytes, 4);
    caller_put(&shared, bytes, len);
    CHECK(given_up());
  }
}

static void test_part_of_pages_when_it_has_no_page_is_given_up(void) {
  static const uint8_t bytes[EB_RECORD_SIZE];
  uint64_t sessions[2];
  eb_call call = op(EB_OP_pages_seal);
  make_sessions(sessions);
  call.handle[0] = sessions[0];
  call.handle[1] = transfer(2);
  call.bulk_len = 2 * EB_RECORD_SIZE;
  for (size_t len = 0; len <= EB_PAGE_SIZE; len += EB_RECORD_HEADER_SIZE) { /* nothing, no more than a header, less than a page */
    caller_put_call(&shared, call, bytes, EB_RECORD_SIZE);
    caller_put(&shared, bytes, len);
    CHECK(given_up());
  }
  release(call.handle[1]);
  release(sessions[0]);
  release(sessions[1]);
}

/* Puts a call that seals three pages, in parts of one and two, and serves it. */
static eb_reply seal_in_two_parts(eb_call call) {
  static uint8_t bytes[3 * EB_RECORD_SIZE];
  eb_reply reply;
  size_t len = 0;
  memset(bytes, 0x5a, sizeof bytes);
  call.number[0] = 7;
  call.number[1] = 0x1000;
  call.bulk_len = sizeof bytes;
  caller_put_call(&shared, call, bytes, EB_RECORD_SIZE);
  caller_put_growing(&shared, bytes + EB_RECORD_SIZE, 2 * EB_RECORD_SIZE, 2 * EB_RECORD_SIZE);
  CHECK(caller_serve(&shared));
  CHECK(caller_reply(&shared, &reply, &len) && reply.final && len == 0);
  CHECK_OK(eb_ring_consumed(&shared.calls, 2 * EB_RECORD_SIZE, 0, &len));
  return reply;
}

/* The page of the call, and the first of the part behind it. */
static const uint8_t *record_at(size_t which) {
  const size_t first = EB_RING_HEADER + sizeof(eb_call);
  const size_t second = (first + EB_RECORD_SIZE + EB_RING_SLOT - 1) / EB_RING_SLOT * EB_RING_SLOT + EB_RING_HEADER;
  return shared.calls.data + (which == 0 ? first : second);
}

static void test_pages_when_sealed_in_place_are_records_there(void) {
  uint64_t sessions[2];
  eb_call call = op(EB_OP_pages_seal);
  eb_record_header header;
  make_sessions(sessions);
  call.handle[0] = sessions[0];
  call.handle[1] = transfer(3);
  CHECK_STATUS(EB_OK, seal_in_two_parts(call).status);
  for (size_t i = 0; i < 2; i++) {
    CHECK_OK(eb_record_parse(record_at(i), EB_RECORD_SIZE, &header));
    CHECK(header.gpa == 0x1000 + i * EB_PAGE_SIZE && header.region == 7 && header.sequence == i);
    CHECK(record_at(i)[EB_RECORD_HEADER_SIZE] != 0x5a);
  }
  caller_renew(&shared);
  release(call.handle[1]);
  release(sessions[0]);
  release(sessions[1]);
}

/* Each part is consumed, or a caller who waits for what becomes of it would wait for ever. */
static void test_pages_when_refused_are_consumed_and_left_alone(void) {
  CHECK_STATUS(EB_ERR_ARGUMENT, seal_in_two_parts(op(EB_OP_pages_seal)).status);
  for (size_t i = 0; i < EB_PAGE_SIZE; i++) CHECK(record_at(0)[EB_RECORD_HEADER_SIZE + i] == 0x5a);
  caller_renew(&shared);
}

/* A caller that goes away in the middle of a part: of a call that seals, opens, or has failed before it. */
static void test_part_when_it_never_comes_is_given_up(void) {
  static const uint8_t bytes[3 * EB_RECORD_SIZE];
  const eb_op ops[] = {EB_OP_pages_seal, EB_OP_pages_open};
  eb_session_stats stats;
  uint64_t sessions[2];
  void *session = NULL;
  make_sessions(sessions);
  const uint64_t account = transfer(3);
  for (size_t i = 0; i < 4; i++) {
    for (size_t told = 0; told < 3; told++) {
      eb_call call = op(ops[i % 2]);
      call.handle[0] = i < 2 ? sessions[0] : 0;
      call.handle[1] = account;
      call.number[0] = 7;
      call.number[1] = 0x1000;
      call.bulk_len = sizeof bytes;
      caller_put_call(&shared, call, NULL, 0);
      caller_put_growing(&shared, bytes, sizeof bytes, told * EB_RECORD_SIZE);
      CHECK(given_up());
    }
  }
  CHECK_OK(eb_handles_take(&shared.server.handles, EB_KIND_SESSION, sessions[0], &session));
  CHECK_OK(eb_session_get_stats(session, &stats));
  CHECK(stats.sent_pages == 0 && stats.opened_pages == 0);
  eb_handles_give(&shared.server.handles, sessions[0]);
  release(account);
  release(sessions[0]);
  release(sessions[1]);
}

static void test_message_when_in_parts_is_one_message(void) {
  static const uint8_t bytes[3 * EB_PART_BYTES];
  const uint64_t both[] = {handshake(), handshake()};
  uint8_t bindings[2][EB_BINDING_SIZE];
  for (int i = 0; i < 2; i++) {
    eb_call call = {.op = EB_OP_handshake_absorb, .handle = {both[i]}, .bulk_len = 1000};
    caller_put_call(&shared, call, bytes, i == 0 ? 1000 : 1);
    if (i == 1) caller_put(&shared, bytes + 1, 999);
    CHECK(caller_serve(&shared));
    caller_renew(&shared);
    CHECK_STATUS(EB_OK, status_of((eb_call){.op = EB_OP_handshake_select, .handle = {both[i]}, .number = {2}}, NULL, 0));
    const eb_reply reply =
        caller_call(&shared, (eb_call){.op = EB_OP_handshake_binding, .handle = {both[i]}, .number = {1}}, NULL, 0);
    CHECK(reply.small_len == EB_BINDING_SIZE);
    memcpy(bindings[i], reply.small, EB_BINDING_SIZE);
    release(both[i]);
  }
  CHECK(memcmp(bindings[0], bindings[1], EB_BINDING_SIZE) == 0);
}

static void test_handle_when_not_one_is_refused_in_every_call(void) {
  const uint64_t numbers[] = {0, 1, UINT32_MAX, UINT64_MAX, UINT64_C(1) << 32, (UINT64_C(1) << 32) + 1};
  for (uint32_t which = 0; which < EB_OPS; which++) {
    const eb_row *row = &eb_rows[which];
    if (row->kind[0] == EB_KIND_NONE || row->kind[0] == EB_KIND_MAYBE_SEALING) continue;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
      eb_call call = {.op = which, .small_len = row->small_least, .handle = {numbers[i], numbers[i], numbers[i]}};
      CHECK_STATUS(EB_ERR_ARGUMENT, status_of(call, NULL, 0));
    }
  }
}

static void test_handle_when_of_another_kind_is_refused(void) {
  const uint64_t hello = handshake(), account = transfer(1);
  CHECK_STATUS(EB_ERR_ARGUMENT, status_of((eb_call){.op = EB_OP_session_rekey, .handle = {hello}}, NULL, 0));
  CHECK_STATUS(EB_ERR_ARGUMENT, status_of((eb_call){.op = EB_OP_handshake_select, .handle = {account}}, NULL, 0));
  CHECK_STATUS(EB_ERR_ARGUMENT, status_of((eb_call){.op = EB_OP_pages_open, .handle = {hello, account}}, NULL, 0));
  release(hello);
  release(account);
}

static void test_handle_when_released_stays_wrong_though_its_place_is_used(void) {
  const uint64_t former = transfer(1);
  release(former);
  const uint64_t later = transfer(1);
  CHECK(former != later && (uint32_t)former == (uint32_t)later);
  CHECK_STATUS(EB_ERR_ARGUMENT, status_of((eb_call){.op = EB_OP_transfer_pages, .handle = {former}}, NULL, 0));
  CHECK_STATUS(EB_ERR_ARGUMENT, status_of((eb_call){.op = EB_OP_release, .handle = {former}}, NULL, 0));
  CHECK_STATUS(EB_OK, status_of((eb_call){.op = EB_OP_transfer_pages, .handle = {later}}, NULL, 0));
  release(later);
}

static void test_object_when_released_in_use_lives_until_given_back(void) {
  eb_handles *handles = &shared.server.handles;
  const uint64_t number = transfer(1);
  void *object = NULL, *again = NULL;
  CHECK_OK(eb_handles_take(handles, EB_KIND_TRANSFER, number, &object));
  release(number);
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_handles_take(handles, EB_KIND_TRANSFER, number, &again));
  uint64_t pages = 1;
  CHECK_OK(eb_transfer_pages(object, &pages)); /* the sanitizer would say if it were gone */
  CHECK(pages == 0);
  eb_handles_give(handles, number);
}

static void test_handshake_when_another_call_uses_it_is_refused(void) {
  eb_handles *handles = &shared.server.handles;
  const uint64_t number = handshake();
  void *object = NULL;
  CHECK_OK(eb_handles_take(handles, EB_KIND_HANDSHAKE, number, &object));
  CHECK_STATUS(EB_ERR_STATE, status_of((eb_call){.op = EB_OP_handshake_select, .handle = {number}, .number = {2}},
                                       NULL, 0));
  eb_handles_give(handles, number);
  release(number);
}

static void test_handles_when_full_are_a_limit_and_leak_nothing(void) {
  eb_handles few;
  eb_transfer *made = NULL;
  const eb_window window = {1, 0, 1};
  const uint8_t id[EB_TRANSFER_ID_SIZE] = {0};
  uint64_t number = 0;
  CHECK_OK(eb_handles_open(&few, 1));
  CHECK_OK(eb_transfer_new(shared.server.bridge, id, &window, &made));
  CHECK_OK(eb_handles_put(&few, EB_KIND_TRANSFER, made, &number));
  CHECK_STATUS(EB_ERR_LIMIT, eb_handles_put(&few, EB_KIND_TRANSFER, made, &number));
  eb_handles_close(&few); /* frees it */
}

static void test_call_that_makes_when_the_table_is_full_is_a_limit(void) {
  enum { ALL = 4 + 4 + EB_MAX_OTHERS };
  static uint64_t made[ALL];
  for (size_t i = 0; i < ALL; i++) made[i] = transfer(1);
  const eb_call more = {.op = EB_OP_transfer_new, .number = {1, 0, 1}, .small_len = EB_TRANSFER_ID_SIZE};
  CHECK_STATUS(EB_ERR_LIMIT, status_of(more, NULL, 0));
  const eb_call hello = {.op = EB_OP_handshake_new, .number = {EB_ROLE_CLIENT, 1, 2}};
  CHECK_STATUS(EB_ERR_LIMIT, status_of(hello, NULL, 0));
  for (size_t i = 0; i < ALL; i++) release(made[i]);
  release(handshake());
}

static void test_numbers_when_absurd_are_errors_of_the_call(void) {
  const uint64_t account = transfer(2);
  const eb_call cases[] = {
      {.op = EB_OP_random, .number = {UINT64_MAX}},
      {.op = EB_OP_handshake_new, .number = {1, 3, 1, 2}},
      {.op = EB_OP_handshake_new, .number = {1, UINT64_MAX}},
      {.op = EB_OP_handshake_new, .number = {9, 1, 1}},
      {.op = EB_OP_transfer_new, .number = {1, 0, UINT64_MAX}, .small_len = EB_TRANSFER_ID_SIZE},
      {.op = EB_OP_transfer_new, .number = {1, 1, 1}, .small_len = EB_TRANSFER_ID_SIZE},
      {.op = EB_OP_transfer_forget, .handle = {account}, .number = {0x1000, UINT64_MAX}},
      {.op = EB_OP_transfer_set_target_fd, .handle = {account}}, /* no descriptor came */
      {.op = EB_OP_source_open, .number = {0, 1}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) CHECK(status_of(cases[i], NULL, 0) != EB_OK);
  release(account);
}

static void send_descriptors(int count, int fd) {
  union {
    struct cmsghdr header;
    uint8_t bytes[CMSG_SPACE(4 * sizeof(int))];
  } control = {.bytes = {0}};
  uint8_t byte = 0;
  struct iovec data = {&byte, 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
  const int fds[4] = {fd, fd, fd, fd};
  if (count > 0) {
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    memcpy(CMSG_DATA(&control.header), fds, (size_t)count * sizeof(int));
  }
  CHECK(sendmsg(shared.socket, &message, 0) == 1);
}

static int open_descriptors(void) {
  int count = 0;
  for (int fd = 0; fd < 1024; fd++) count += fcntl(fd, F_GETFD) >= 0;
  return count;
}

static void test_descriptors_when_none_or_many_come_leave_none_open(void) {
  const uint64_t account = transfer(1);
  const int before = open_descriptors();
  for (int count = 0; count <= 4; count++) {
    send_descriptors(count, 0);
    CHECK(status_of((eb_call){.op = EB_OP_transfer_set_target_fd, .handle = {account}}, NULL, 0) != EB_OK);
    CHECK(open_descriptors() == before);
  }
  release(account);
}

static int memory(size_t len, int seals) {
  const int fd = memfd_create("lent", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  CHECK(fd >= 0 && ftruncate(fd, (off_t)len) == 0 && fcntl(fd, F_ADD_SEALS, seals) == 0);
  return fd;
}

static void test_lent_memory_when_it_could_be_cut_is_refused(void) {
  const size_t len = 4 * EB_PAGE_SIZE;
  const struct {
    int fd;
    uint64_t number;
    eb_status status;
  } cases[] = {
      {memory(len, 0), len, EB_ERR_RING_MEMORY},
      {memory(len, F_SEAL_GROW), len, EB_ERR_RING_MEMORY},
      {open("/dev/zero", O_RDWR | O_CLOEXEC), len, EB_ERR_RING_MEMORY},
      {memory(len, F_SEAL_SHRINK), len + 1, EB_ERR_RING_MEMORY},
      {memory(len, F_SEAL_SHRINK), UINT64_MAX, EB_ERR_RING_MEMORY},
      {memory(len, F_SEAL_SHRINK), 0, EB_ERR_RING_MEMORY},
      {memory(len, F_SEAL_SHRINK), len, EB_OK},
  };
  CHECK_STATUS(EB_ERR_RING_MEMORY, status_of((eb_call){.op = EB_OP_lent_new, .number = {len}}, NULL, 0));
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    send_descriptors(1, cases[i].fd);
    const eb_reply reply = caller_call(&shared, (eb_call){.op = EB_OP_lent_new, .number = {cases[i].number}}, NULL, 0);
    CHECK_STATUS(cases[i].status, reply.status);
    if (reply.status == EB_OK) release(reply.handle);
    close(cases[i].fd);
  }
}

static void test_lent_memory_when_records_are_not_all_in_it_is_not_touched(void) {
  enum { PAGES = 2, LEN = PAGES * EB_RECORD_SIZE + 64 };
  static const uint8_t plain[PAGES * EB_RECORD_SIZE]; /* with room for headers and tags */
  static uint64_t sessions[2];
  const uint64_t account = transfer(PAGES), offsets[] = {65, LEN, LEN + 1, UINT64_MAX, UINT64_MAX - LEN};
  const int fd = memory(LEN, F_SEAL_SHRINK);
  make_sessions(sessions);
  send_descriptors(1, fd);
  const uint64_t lent = caller_call(&shared, (eb_call){.op = EB_OP_lent_new, .number = {LEN}}, NULL, 0).handle;
  const eb_call seal = {.op = EB_OP_lent_seal, .handle = {sessions[0], account, lent}, .number = {7, 0x1000, 0}};
  const eb_call open = {.op = EB_OP_lent_open, .handle = {sessions[1], account, lent}, .number = {0, EB_RECORD_SIZE}};
  for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
    eb_call call = seal;
    call.number[2] = offsets[i];
    CHECK_STATUS(EB_ERR_BUFFER, status_of(call, plain, sizeof plain));
    call = open;
    call.number[0] = offsets[i];
    call.number[1] = PAGES * EB_RECORD_SIZE;
    CHECK_STATUS(EB_ERR_BUFFER, status_of(call, NULL, 0));
    call.number[0] = 64;
    call.number[1] = offsets[i] + PAGES * EB_RECORD_SIZE;
    CHECK(status_of(call, NULL, 0) != EB_OK);
  }
  CHECK_STATUS(EB_ERR_LENGTH, status_of(seal, NULL, 0));
  CHECK_STATUS(EB_OK, status_of(seal, plain, sizeof plain));
  CHECK_STATUS(EB_ERR_STATE, status_of(open, NULL, 0)); /* it has no target */
  release(lent);
  release(account);
  for (int i = 0; i < 2; i++) release(sessions[i]);
  close(fd);
}

static void test_set_up_when_absurd_is_refused(void) {
  const eb_setup good = {.version = EB_WIRE_VERSION, .lanes = 1, .max_sessions = 1, .max_handshakes = 1};
  eb_setup cases[] = {good, good, good, good, good, good};
  cases[0].version = 0;
  cases[1].lanes = 0;
  cases[2].lanes = EB_MAX_LANES + 1;
  cases[3].max_sessions = UINT32_MAX;
  cases[4].max_handshakes = 0;
  memset(cases[5].gcm_kernel, 'x', sizeof cases[5].gcm_kernel); /* without an end */
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    eb_server server;
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_server_open(&server, &cases[i], -1));
  }
}

int main(void) {
  caller_open(&shared);
  RUN(test_call_when_shorter_than_a_call_is_given_up);
  RUN(test_call_when_its_number_is_unknown_is_given_up);
  RUN(test_small_data_when_of_another_length_is_given_up);
  RUN(test_bulk_data_when_other_than_announced_is_given_up);
  RUN(test_later_part_when_empty_or_too_long_is_given_up);
  RUN(test_part_of_pages_when_it_has_no_page_is_given_up);
  RUN(test_pages_when_sealed_in_place_are_records_there);
  RUN(test_pages_when_refused_are_consumed_and_left_alone);
  RUN(test_part_when_it_never_comes_is_given_up);
  RUN(test_message_when_in_parts_is_one_message);
  RUN(test_handle_when_not_one_is_refused_in_every_call);
  RUN(test_handle_when_of_another_kind_is_refused);
  RUN(test_handle_when_released_stays_wrong_though_its_place_is_used);
  RUN(test_object_when_released_in_use_lives_until_given_back);
  RUN(test_handshake_when_another_call_uses_it_is_refused);
  RUN(test_handles_when_full_are_a_limit_and_leak_nothing);
  RUN(test_call_that_makes_when_the_table_is_full_is_a_limit);
  RUN(test_numbers_when_absurd_are_errors_of_the_call);
  RUN(test_descriptors_when_none_or_many_come_leave_none_open);
  RUN(test_lent_memory_when_it_could_be_cut_is_refused);
  RUN(test_lent_memory_when_records_are_not_all_in_it_is_not_touched);
  RUN(test_set_up_when_absurd_is_refused);
  caller_close(&shared);
  return 0;
}
