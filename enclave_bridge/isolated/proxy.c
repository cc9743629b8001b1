/* enclave_bridge.h's functions, made by the bridge process. Arguments are checked here as far as a pointer is
 * concerned; everything else is the bridge's to judge. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client.h"
#include "guard.h"
#include "lent.h"

/* What every handle is: whose, and its number there. */
typedef struct {
  eb_bridge *bridge;
  uint64_t number;
} remote;

struct eb_handshake {
  remote at;
};

struct eb_session {
  remote at;
};

struct eb_transfer {
  remote at;
  eb_window window;
  uint8_t *memory;        /* the caller's, or NULL */
  const uint8_t *arrived; /* where the bridge puts pages that go to `memory` */
};

struct eb_source {
  remote at;
};

struct eb_sealing {
  remote at;
};

struct eb_guard {
  remote at;
};

struct eb_lent {
  remote at;
  const uint8_t *here; /* where it is mapped in this process */
};

#define OP(function) .call.op = EB_OP_##function

/* ---- handles --------------------------------------------------------------------------------- */

static eb_status usable(const remote *at) { return at == NULL ? EB_ERR_ARGUMENT : eb_client_usable(at->bridge); }

static void hold(eb_bridge *bridge, remote *at, uint64_t number) {
  atomic_fetch_add(&bridge->references, 1);
  *at = (remote){bridge, number};
}

static void let_go(remote *at) {
  eb_crossing crossing = {OP(release), .call.handle = {at->number}};
  (void)!eb_cross(at->bridge, &crossing); /* dead or forked: there is nothing to release */
  eb_bridge_free(at->bridge);
}

/* A call on one handle that sends numbers only. */
static eb_status call(const remote *at, eb_crossing *crossing) {
  eb_status status = usable(at);
  if (status != EB_OK) return status;
  crossing->call.handle[0] = at->number;
  return eb_cross(at->bridge, crossing);
}

static eb_status put_small(eb_crossing *crossing, const void *data, size_t len) {
  if (len > sizeof crossing->call.small) return EB_ERR_LENGTH;
  if (len > 0) memcpy(crossing->call.small, data, len);
  crossing->call.small_len = (uint32_t)len;
  return EB_OK;
}

/* The small data of a reply into the caller's buffer. The bridge was told its size. */
static eb_status get_small(const eb_crossing *crossing, void *out, size_t cap, size_t *len) {
  if (crossing->reply.small_len > cap) return EB_ERR_BUFFER;
  memcpy(out, crossing->reply.small, crossing->reply.small_len);
  if (len != NULL) *len = crossing->reply.small_len;
  return EB_OK;
}

/* Small data of exactly this size: anything else is not our program's. */
static eb_status get_exactly(const eb_crossing *crossing, void *out, size_t size) {
  if (crossing->reply.small_len != size) return EB_ERR_BRIDGE_DIED;
  memcpy(out, crossing->reply.small, size);
  return EB_OK;
}

/* ---- bridge ------------------------------------------------------------------------------------ */

eb_status eb_bridge_open(const eb_bridge_options *options, eb_bridge **bridge) {
  return eb_isolated_open(options, NULL, bridge);
}

void eb_bridge_free(eb_bridge *bridge) {
  if (bridge != NULL && atomic_fetch_sub(&bridge->references, 1) == 1) eb_client_free(bridge);
}

eb_status eb_bridge_get_info(eb_bridge *bridge, eb_bridge_info *info) {
  eb_crossing crossing = {OP(bridge_get_info)};
  eb_status status = EB_OK;
  EB_ENSURE(bridge != NULL && info != NULL, EB_ERR_ARGUMENT);
  EB_TRY(eb_cross(bridge, &crossing));
  EB_TRY(get_exactly(&crossing, info, sizeof *info));
  info->process = (uint32_t)bridge->process;
done:
  return status;
}

eb_status eb_random(eb_bridge *bridge, uint8_t *out, size_t out_len) {
  eb_crossing crossing = {OP(random), .call.number = {out_len}, .out = out, .out_cap = out_len};
  eb_status status = EB_OK;
  EB_ENSURE(bridge != NULL && (out != NULL || out_len == 0), EB_ERR_ARGUMENT);
  EB_TRY(eb_cross(bridge, &crossing));
  EB_ENSURE(crossing.out_len == out_len, EB_ERR_BRIDGE_DIED);
done:
  return status;
}

/* ---- handshake ----------------------------------------------------------------------------------- */

eb_status eb_handshake_new(eb_bridge *bridge, eb_role role, const eb_suite *suites, size_t n,
                           eb_handshake **handshake) {
  eb_crossing crossing = {OP(handshake_new), .call.number = {role, n}};
  eb_status status = EB_OK;
  eb_handshake *made = NULL;
  EB_ENSURE(bridge != NULL && suites != NULL && handshake != NULL && n >= 1 && n <= 2, EB_ERR_ARGUMENT);
  for (size_t i = 0; i < n; i++) crossing.call.number[2 + i] = suites[i];
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  EB_TRY(eb_cross(bridge, &crossing));
  hold(bridge, &made->at, crossing.reply.handle);
  *handshake = made;
  made = NULL;
done:
  free(made);
  return status;
}

void eb_handshake_free(eb_handshake *handshake) {
  if (handshake == NULL) return;
  let_go(&handshake->at);
  free(handshake);
}

eb_status eb_handshake_public_key(eb_handshake *handshake, eb_suite suite, uint8_t *out, size_t out_cap,
                                  size_t *out_len) {
  eb_crossing crossing = {OP(handshake_public_key), .call.number = {suite, out_cap}};
  eb_status status = EB_OK;
  EB_ENSURE(handshake != NULL && out != NULL && out_len != NULL, EB_ERR_ARGUMENT);
  EB_TRY(call(&handshake->at, &crossing));
  EB_TRY(get_small(&crossing, out, out_cap, out_len));
done:
  return status;
}

eb_status eb_handshake_absorb(eb_handshake *handshake, const uint8_t *message, size_t len) {
  eb_crossing crossing = {OP(handshake_absorb), .in = message, .in_len = len};
  eb_status status = EB_OK;
  EB_ENSURE(handshake != NULL && (message != NULL || len == 0), EB_ERR_ARGUMENT);
  EB_ENSURE(len <= EB_MAX_MESSAGE_SIZE, EB_ERR_LENGTH);
  EB_TRY(call(&handshake->at, &crossing));
done:
  return status;
}

eb_status eb_handshake_select(eb_handshake *handshake, eb_suite suite) {
  eb_crossing crossing = {OP(handshake_select), .call.number = {suite}};
  return handshake == NULL ? EB_ERR_ARGUMENT : call(&handshake->at, &crossing);
}

eb_status eb_handshake_binding(eb_handshake *handshake, eb_role role, uint8_t out[EB_BINDING_SIZE]) {
  eb_crossing crossing = {OP(handshake_binding), .call.number = {role}};
  eb_status status = EB_OK;
  EB_ENSURE(handshake != NULL && out != NULL, EB_ERR_ARGUMENT);
  EB_TRY(call(&handshake->at, &crossing));
  EB_TRY(get_exactly(&crossing, out, EB_BINDING_SIZE));
done:
  return status;
}

eb_status eb_handshake_derive(eb_handshake *handshake, const uint8_t *peer_key, size_t len) {
  eb_crossing crossing = {OP(handshake_derive)};
  eb_status status = EB_OK;
  EB_ENSURE(handshake != NULL && peer_key != NULL, EB_ERR_ARGUMENT);
  /* Longer than any point: as many bytes of it as cross are refused for their length all the same, and the
   * handshake ends as it must. */
  EB_TRY(put_small(&crossing, peer_key, len < EB_SMALL_SIZE ? len : EB_SMALL_SIZE));
  EB_TRY(call(&handshake->at, &crossing));
done:
  return status;
}

eb_status eb_handshake_finished(eb_handshake *handshake, uint8_t *mac, size_t mac_cap, size_t *mac_len) {
  eb_crossing crossing = {OP(handshake_finished), .call.number = {mac_cap}};
  eb_status status = EB_OK;
  EB_ENSURE(handshake != NULL && mac != NULL && mac_len != NULL, EB_ERR_ARGUMENT);
  EB_TRY(call(&handshake->at, &crossing));
  EB_TRY(get_small(&crossing, mac, mac_cap, mac_len));
done:
  return status;
}

/* A MAC that is too long to cross is as wrong as its beginning. */
static size_t mac_crossing(size_t len) { return len < EB_SMALL_SIZE ? len : EB_SMALL_SIZE; }

eb_status eb_handshake_check_finished(eb_handshake *handshake, const uint8_t *mac, size_t len) {
  eb_crossing crossing = {OP(handshake_check_finished)};
  eb_status status = EB_OK;
  EB_ENSURE(handshake != NULL && mac != NULL, EB_ERR_ARGUMENT);
  EB_TRY(put_small(&crossing, mac, mac_crossing(len)));
  EB_TRY(call(&handshake->at, &crossing));
done:
  return status;
}

eb_status eb_handshake_session(eb_handshake *handshake, const uint8_t session_id[EB_SESSION_ID_SIZE],
                               eb_session **session) {
  eb_crossing crossing = {OP(handshake_session)};
  eb_status status = EB_OK;
  eb_session *made = NULL;
  EB_ENSURE(handshake != NULL && session_id != NULL && session != NULL, EB_ERR_ARGUMENT);
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  EB_TRY(put_small(&crossing, session_id, EB_SESSION_ID_SIZE));
  EB_TRY(call(&handshake->at, &crossing));
  hold(handshake->at.bridge, &made->at, crossing.reply.handle);
  *session = made;
  made = NULL;
done:
  free(made);
  return status;
}

/* ---- session --------------------------------------------------------------------------------------- */

void eb_session_free(eb_session *session) {
  if (session == NULL) return;
  let_go(&session->at);
  free(session);
}

eb_status eb_session_close(eb_session *session) {
  eb_crossing crossing = {OP(session_close)};
  return session == NULL ? EB_ERR_ARGUMENT : call(&session->at, &crossing);
}

eb_status eb_session_get_stats(eb_session *session, eb_session_stats *stats) {
  eb_crossing crossing = {OP(session_get_stats)};
  eb_status status = EB_OK;
  EB_ENSURE(session != NULL && stats != NULL, EB_ERR_ARGUMENT);
  EB_TRY(call(&session->at, &crossing));
  EB_TRY(get_exactly(&crossing, stats, sizeof *stats));
done:
  return status;
}

eb_status eb_session_rekey(eb_session *session) {
  eb_crossing crossing = {OP(session_rekey)};
  return session == NULL ? EB_ERR_ARGUMENT : call(&session->at, &crossing);
}

eb_status eb_session_mac(eb_session *session, eb_mac_purpose purpose, const uint8_t *message, size_t len, uint8_t *mac,
                         size_t mac_cap, size_t *mac_len) {
  eb_crossing crossing = {OP(session_mac), .call.number = {purpose, mac_cap}, .in = message, .in_len = len};
  eb_status status = EB_OK;
  EB_ENSURE(session != NULL && (message != NULL || len == 0) && mac != NULL && mac_len != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(len <= EB_MAX_MESSAGE_SIZE, EB_ERR_LENGTH);
  EB_TRY(call(&session->at, &crossing));
  EB_TRY(get_small(&crossing, mac, mac_cap, mac_len));
done:
  return status;
}

eb_status eb_session_check_mac(eb_session *session, eb_mac_purpose purpose, const uint8_t *message, size_t len,
                               const uint8_t *mac, size_t mac_len) {
  eb_crossing crossing = {OP(session_check_mac), .call.number = {purpose}, .in = message, .in_len = len};
  eb_status status = EB_OK;
  EB_ENSURE(session != NULL && (message != NULL || len == 0) && mac != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(len <= EB_MAX_MESSAGE_SIZE, EB_ERR_LENGTH);
  EB_TRY(put_small(&crossing, mac, mac_crossing(mac_len)));
  EB_TRY(call(&session->at, &crossing));
done:
  return status;
}

/* ---- transfer ---------------------------------------------------------------------------------------- */

eb_status eb_transfer_new(eb_bridge *bridge, const uint8_t transfer_id[EB_TRANSFER_ID_SIZE], const eb_window *window,
                          eb_transfer **transfer) {
  eb_crossing crossing = {OP(transfer_new)};
  eb_status status = EB_OK;
  eb_transfer *made = NULL;
  EB_ENSURE(bridge != NULL && transfer_id != NULL && window != NULL && transfer != NULL, EB_ERR_ARGUMENT);
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  made->window = *window;
  crossing.call.number[0] = window->region;
  crossing.call.number[1] = window->base_gpa;
  crossing.call.number[2] = window->pages;
  EB_TRY(put_small(&crossing, transfer_id, EB_TRANSFER_ID_SIZE));
  EB_TRY(eb_cross(bridge, &crossing));
  hold(bridge, &made->at, crossing.reply.handle);
  *transfer = made;
  made = NULL;
done:
  free(made);
  return status;
}

void eb_transfer_free(eb_transfer *transfer) {
  if (transfer == NULL) return;
  let_go(&transfer->at);
  if (transfer->arrived != NULL) munmap((void *)(uintptr_t)transfer->arrived, transfer->window.pages * EB_PAGE_SIZE);
  free(transfer);
}

eb_status eb_transfer_set_target_fd(eb_transfer *transfer, int fd, uint64_t fd_offset) {
  eb_crossing crossing = {OP(transfer_set_target_fd), .call.number = {fd_offset}, .fds = {fd}, .fd_count = 1};
  if (transfer == NULL) return EB_ERR_ARGUMENT;
  return fd < 0 ? EB_ERR_TARGET : call(&transfer->at, &crossing);
}

eb_status eb_transfer_set_target_memory(eb_transfer *transfer, uint8_t *memory, size_t len) {
  eb_status status = EB_OK;
  int fd = -1;
  void *arrived = MAP_FAILED;
  EB_ENSURE(transfer != NULL && memory != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(len == transfer->window.pages * EB_PAGE_SIZE, EB_ERR_LENGTH);
  fd = memfd_create("pagegate-arrived", MFD_CLOEXEC);
  EB_ENSURE(fd >= 0 && ftruncate(fd, (off_t)len) == 0, EB_ERR_MEMORY);
  arrived = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
  EB_ENSURE(arrived != MAP_FAILED, EB_ERR_MEMORY);
  EB_TRY(eb_transfer_set_target_fd(transfer, fd, 0));
  transfer->memory = memory;
  transfer->arrived = arrived;
done:
  if (fd >= 0) close(fd);
  if (status != EB_OK && arrived != MAP_FAILED) munmap(arrived, len);
  return status;
}

eb_status eb_transfer_pages(eb_transfer *transfer, uint64_t *pages) {
  eb_crossing crossing = {OP(transfer_pages)};
  eb_status status = EB_OK;
  EB_ENSURE(transfer != NULL && pages != NULL, EB_ERR_ARGUMENT);
  EB_TRY(call(&transfer->at, &crossing));
  *pages = crossing.reply.number;
done:
  return status;
}

eb_status eb_transfer_forget(eb_transfer *transfer, uint64_t first_gpa, uint64_t pages) {
  eb_crossing crossing = {OP(transfer_forget), .call.number = {first_gpa, pages}};
  return transfer == NULL ? EB_ERR_ARGUMENT : call(&transfer->at, &crossing);
}

eb_status eb_transfer_commit_mac(eb_session *session, eb_transfer *transfer, uint8_t *mac, size_t mac_cap,
                                 size_t *mac_len) {
  eb_crossing crossing = {OP(transfer_commit_mac), .call.number = {mac_cap}};
  eb_status status = EB_OK;
  EB_ENSURE(session != NULL && transfer != NULL && mac != NULL && mac_len != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(transfer->at.bridge == session->at.bridge, EB_ERR_ARGUMENT);
  crossing.call.handle[1] = transfer->at.number;
  EB_TRY(call(&session->at, &crossing));
  EB_TRY(get_small(&crossing, mac, mac_cap, mac_len));
done:
  return status;
}

eb_status eb_transfer_check_commit_mac(eb_session *session, eb_transfer *transfer, const uint8_t *mac,
                                       size_t mac_len) {
  eb_crossing crossing = {OP(transfer_check_commit_mac)};
  eb_status status = EB_OK;
  EB_ENSURE(session != NULL && transfer != NULL && mac != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(transfer->at.bridge == session->at.bridge, EB_ERR_ARGUMENT);
  crossing.call.handle[1] = transfer->at.number;
  EB_TRY(put_small(&crossing, mac, mac_crossing(mac_len)));
  EB_TRY(call(&session->at, &crossing));
done:
  return status;
}

/* ---- source -------------------------------------------------------------------------------------------- */

eb_status eb_source_open(eb_bridge *bridge, int fd, uint64_t offset, uint64_t len, eb_source **source) {
  eb_crossing crossing = {OP(source_open), .call.number = {offset, len}, .fds = {fd}, .fd_count = 1};
  eb_status status = EB_OK;
  eb_source *made = NULL;
  EB_ENSURE(bridge != NULL && source != NULL && len > 0, EB_ERR_ARGUMENT);
  EB_ENSURE(fcntl(fd, F_GETFD) >= 0, EB_ERR_SOURCE_UNREADABLE);
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  EB_TRY(eb_cross(bridge, &crossing));
  hold(bridge, &made->at, crossing.reply.handle);
  *source = made;
  made = NULL;
done:
  free(made);
  return status;
}

void eb_source_free(eb_source *source) {
  if (source == NULL) return;
  let_go(&source->at);
  free(source);
}

/* ---- pages --------------------------------------------------------------------------------------------- */

/* What all ways to seal have in common. */
static eb_status seal(eb_session *session, eb_transfer *transfer, eb_crossing *crossing, size_t pages,
                      uint8_t *records, size_t records_cap, size_t *records_len, eb_result *result) {
  eb_status status = EB_OK;
  eb_result sealed;
  EB_ENSURE(records != NULL && records_len != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(transfer == NULL || transfer->at.bridge == session->at.bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(pages >= 1 && pages <= EB_REKEY_PAGES, EB_ERR_LENGTH);
  EB_ENSURE(records_cap >= pages * EB_RECORD_SIZE, EB_ERR_BUFFER);
  crossing->out = records;
  crossing->out_cap = pages * EB_RECORD_SIZE;
  if (transfer != NULL) crossing->call.handle[1] = transfer->at.number;
  status = call(&session->at, crossing);
  if (status != EB_OK && result != NULL && crossing->reply.small_len == sizeof *result)
    (void)!get_exactly(crossing, result, sizeof *result); /* which page it was */
  if (status == EB_OK) status = get_exactly(crossing, &sealed, sizeof sealed);
  if (status == EB_OK && crossing->out_len != crossing->out_cap) status = EB_ERR_BRIDGE_DIED;
  if (status != EB_OK) memset(records, 0, crossing->out_len); /* all or nothing */
  EB_ENSURE(status == EB_OK, status);
  *records_len = crossing->out_len;
  if (result != NULL) *result = sealed;
done:
  return status;
}

eb_status eb_pages_seal(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                        const uint8_t *plain, size_t len, uint8_t *records, size_t records_cap, size_t *records_len,
                        eb_result *result) {
  eb_crossing crossing = {OP(pages_seal), .call.number = {region, first_gpa}, .in = plain, .in_len = len,
                          .in_unit = EB_PAGE_SIZE, .in_place = true};
  const size_t pages = len / EB_PAGE_SIZE, made = pages * EB_RECORD_SIZE;
  eb_status status = EB_OK;
  EB_ENSURE(session != NULL && plain != NULL, EB_ERR_ARGUMENT);
  EB_TRY(usable(&session->at));
  EB_ENSURE(len % EB_PAGE_SIZE == 0, EB_ERR_LENGTH);
  EB_ENSURE((uintptr_t)plain >= (uintptr_t)records + made || (uintptr_t)records >= (uintptr_t)plain + len,
            EB_ERR_ARGUMENT);
  EB_TRY(seal(session, transfer, &crossing, pages, records, records_cap, records_len, result));
done:
  return status;
}

eb_status eb_pages_seal_from(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                             eb_source *source, uint64_t source_offset, size_t len, uint8_t *records,
                             size_t records_cap, size_t *records_len, eb_result *result) {
  eb_crossing crossing = {OP(pages_seal_from), .call.number = {region, first_gpa, source_offset, len}};
  eb_status status = EB_OK;
  EB_ENSURE(session != NULL && source != NULL && source->at.bridge == session->at.bridge, EB_ERR_ARGUMENT);
  EB_TRY(usable(&session->at));
  EB_ENSURE(len % EB_PAGE_SIZE == 0, EB_ERR_LENGTH);
  crossing.call.handle[2] = source->at.number;
  EB_TRY(seal(session, transfer, &crossing, len / EB_PAGE_SIZE, records, records_cap, records_len, result));
done:
  return status;
}

/* ---- sealing keys and guards ---------------------------------------------------------------------------- */

static bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

static eb_status keep_sealing(eb_bridge *bridge, eb_crossing *crossing, eb_sealing **sealing) {
  eb_status status = EB_OK;
  eb_sealing *made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  EB_TRY(eb_cross(bridge, crossing));
  hold(bridge, &made->at, crossing->reply.handle);
  *sealing = made;
  made = NULL;
done:
  free(made);
  return status;
}

void eb_sealing_free(eb_sealing *sealing) {
  if (sealing == NULL) return;
  let_go(&sealing->at);
  free(sealing);
}

eb_status eb_sealing_open_file(eb_bridge *bridge, int fd, eb_sealing **sealing) {
  eb_crossing crossing = {OP(sealing_open_file), .fds = {fd}, .fd_count = 1};
  if (bridge == NULL || sealing == NULL) return EB_ERR_ARGUMENT;
  return is_open(fd) ? keep_sealing(bridge, &crossing, sealing) : EB_ERR_SEALING;
}

eb_status eb_sealing_open_snp(eb_bridge *bridge, int fd, const eb_snp_key_options *options, eb_snp_failure *failure,
                              eb_sealing **sealing) {
  eb_crossing crossing = {OP(sealing_open_snp), .fds = {fd}, .fd_count = 1};
  eb_status status = EB_OK;
  EB_ENSURE(bridge != NULL && options != NULL && failure != NULL && sealing != NULL, EB_ERR_ARGUMENT);
  *failure = (eb_snp_failure){.system_error = is_open(fd) ? 0 : EBADF};
  EB_ENSURE(is_open(fd), EB_ERR_SEALING);
  EB_TRY(put_small(&crossing, options, sizeof *options));
  EB_TRY(keep_sealing(bridge, &crossing, sealing));
done:
  if (failure != NULL && crossing.reply.small_len == sizeof *failure) memcpy(failure, crossing.reply.small, sizeof *failure);
  return status;
}

/* What eb_guard_new and eb_guard_load have in common. */
static eb_status make_guard(eb_bridge *bridge, eb_sealing *sealing, const eb_guard_scope *scope, uint64_t offset,
                            eb_crossing *crossing, eb_guard **guard) {
  eb_status status = EB_OK;
  eb_guard *made = NULL;
  EB_ENSURE(bridge != NULL && scope != NULL && scope->region != NULL && guard != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(sealing == NULL || sealing->at.bridge == bridge, EB_ERR_ARGUMENT);
  const size_t len = strnlen(scope->region, EB_MAX_REGION_NAME + 1);
  EB_ENSURE(len >= 1 && len <= EB_MAX_REGION_NAME, EB_ERR_ARGUMENT);
  for (uint32_t i = 0; i < crossing->fd_count; i++) EB_ENSURE(is_open(crossing->fds[i]), EB_ERR_TARGET);
  EB_TRY(put_small(crossing, scope->region, len));
  crossing->call.number[0] = scope->generation;
  crossing->call.number[1] = scope->pages;
  crossing->call.number[2] = offset;
  if (sealing != NULL) crossing->call.handle[0] = sealing->at.number;
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  EB_TRY(eb_cross(bridge, crossing));
  hold(bridge, &made->at, crossing->reply.handle);
  *guard = made;
  made = NULL;
done:
  free(made);
  return status;
}

eb_status eb_guard_new(eb_bridge *bridge, eb_sealing *sealing, const eb_guard_scope *scope, int fd, uint64_t fd_offset,
                       eb_guard **guard) {
  eb_crossing crossing = {OP(guard_new), .fds = {fd}, .fd_count = 1};
  return make_guard(bridge, sealing, scope, fd_offset, &crossing, guard);
}

eb_status eb_guard_load(eb_bridge *bridge, eb_sealing *sealing, const eb_guard_scope *scope, int fd, uint64_t fd_offset,
                        int table_fd, eb_guard **guard) {
  eb_crossing crossing = {OP(guard_load), .fds = {fd, table_fd}, .fd_count = 2};
  return sealing == NULL ? EB_ERR_ARGUMENT : make_guard(bridge, sealing, scope, fd_offset, &crossing, guard);
}

void eb_guard_free(eb_guard *guard) {
  if (guard == NULL) return;
  let_go(&guard->at);
  free(guard);
}

eb_status eb_transfer_set_guard(eb_transfer *transfer, eb_guard *guard) {
  eb_crossing crossing = {OP(transfer_set_guard)};
  if (transfer == NULL || guard == NULL || guard->at.bridge != transfer->at.bridge) return EB_ERR_ARGUMENT;
  crossing.call.handle[1] = guard->at.number;
  return call(&transfer->at, &crossing);
}

eb_status eb_guard_seal(eb_guard *guard, eb_session *session, eb_transfer *transfer, uint64_t first_gpa, uint64_t pages,
                        uint8_t *records, size_t records_cap, size_t *records_len, eb_result *result) {
  eb_crossing crossing = {OP(guard_seal)};
  eb_status status = EB_OK;
  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_ENSURE(guard != NULL && session != NULL && transfer != NULL && guard->at.bridge == session->at.bridge,
            EB_ERR_ARGUMENT);
  EB_TRY(usable(&session->at));
  crossing.call.number[1] = first_gpa;
  crossing.call.number[2] = pages;
  crossing.call.handle[2] = guard->at.number;
  EB_TRY(seal(session, transfer, &crossing, pages, records, records_cap, records_len, result));
done:
  return status;
}

eb_status eb_guard_verify(eb_guard *guard, uint64_t first, uint64_t pages, eb_page_range *bad, size_t bad_cap,
                          eb_verify_result *result) {
  eb_crossing crossing = {OP(guard_verify), .call.number = {first, pages, bad_cap}};
  eb_status status = EB_OK;
  EB_ENSURE(guard != NULL && (bad != NULL || bad_cap == 0) && result != NULL, EB_ERR_ARGUMENT);
  crossing.out = (uint8_t *)bad;
  crossing.out_cap = bad_cap < EB_PART_BYTES / sizeof *bad ? bad_cap * sizeof *bad : EB_PART_BYTES;
  EB_TRY(call(&guard->at, &crossing));
  EB_TRY(get_exactly(&crossing, result, sizeof *result));
  EB_ENSURE(crossing.out_len == result->ranges * sizeof *bad, EB_ERR_BRIDGE_DIED);
done:
  return status;
}

/* A call that names a bad page when it fails. */
static eb_status told_page(eb_guard *guard, eb_crossing *crossing, uint64_t *bad_page) {
  eb_status status = EB_OK;
  EB_ENSURE(guard != NULL && bad_page != NULL, EB_ERR_ARGUMENT);
  status = call(&guard->at, crossing);
  if (status == EB_ERR_TAMPERED) *bad_page = crossing->reply.number;
done:
  return status;
}

eb_status eb_guard_carry(eb_guard *guard, eb_guard *from, uint64_t *bad_page) {
  eb_crossing crossing = {OP(guard_carry)};
  if (guard == NULL || from == NULL || from->at.bridge != guard->at.bridge) return EB_ERR_ARGUMENT;
  crossing.call.handle[1] = from->at.number;
  return told_page(guard, &crossing, bad_page);
}

eb_status eb_guard_renew(eb_guard *guard, uint64_t generation, uint64_t *bad_page) {
  eb_crossing crossing = {OP(guard_renew), .call.number = {generation}};
  return told_page(guard, &crossing, bad_page);
}

eb_status eb_guard_save(eb_guard *guard, int table_fd) {
  eb_crossing crossing = {OP(guard_save), .fds = {table_fd}, .fd_count = 1};
  if (guard == NULL) return EB_ERR_ARGUMENT;
  return is_open(table_fd) ? call(&guard->at, &crossing) : EB_ERR_TARGET_IO;
}

eb_status eb_guard_journal(eb_guard *guard, int table_fd, uint64_t generation) {
  eb_crossing crossing = {OP(guard_journal), .call.number = {generation}, .fds = {table_fd}, .fd_count = 1};
  if (guard == NULL) return EB_ERR_ARGUMENT;
  return is_open(table_fd) ? call(&guard->at, &crossing) : EB_ERR_TARGET_IO;
}

/* Verified pages to where the caller wants them. An address was checked by the bridge before the page was
 * verified, and is checked again before it is used here. */
static void deliver(const eb_transfer *transfer, const uint64_t *gpas, uint64_t n) {
  for (uint64_t i = 0; i < n; i++) {
    const uint64_t index = (gpas[i] - transfer->window.base_gpa) / EB_PAGE_SIZE;
    if (gpas[i] >= transfer->window.base_gpa && index < transfer->window.pages)
      memcpy(transfer->memory + index * EB_PAGE_SIZE, transfer->arrived + index * EB_PAGE_SIZE, EB_PAGE_SIZE);
  }
}

eb_status eb_pages_open(eb_session *session, eb_transfer *transfer, const uint8_t *records, size_t records_len,
                        eb_result *result) {
  eb_crossing crossing = {OP(pages_open), .in = records, .in_len = records_len, .in_unit = EB_RECORD_SIZE};
  eb_status status = EB_OK;
  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_ENSURE(session != NULL, EB_ERR_ARGUMENT);
  EB_TRY(usable(&session->at));
  EB_ENSURE(transfer != NULL && records != NULL && transfer->at.bridge == session->at.bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(records_len > 0 && records_len % EB_RECORD_SIZE == 0, EB_ERR_LENGTH);
  if (transfer->memory != NULL) {
    crossing.gpas = malloc(records_len / EB_RECORD_SIZE * sizeof *crossing.gpas);
    EB_ENSURE(crossing.gpas != NULL, EB_ERR_MEMORY);
  }
  crossing.call.handle[1] = transfer->at.number;
  status = call(&session->at, &crossing);
  if (crossing.reply.small_len == sizeof *result) (void)!get_exactly(&crossing, result, sizeof *result);
  if (transfer->memory != NULL && result->pages <= records_len / EB_RECORD_SIZE)
    deliver(transfer, crossing.gpas, result->pages);
done:
  free(crossing.gpas);
  return status;
}

/* ---- lent memory ----------------------------------------------------------------------------------------- */

eb_status eb_lent_new(eb_session *session, int fd, uint8_t *at, size_t bytes, eb_lent **lent) {
  eb_crossing crossing = {OP(lent_new), .call.number = {bytes}, .fds = {fd}, .fd_count = 1};
  eb_status status = EB_OK;
  eb_lent *made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  EB_TRY(eb_cross(session->at.bridge, &crossing));
  hold(session->at.bridge, &made->at, crossing.reply.handle);
  made->here = at;
  *lent = made;
  made = NULL;
done:
  free(made);
  return status;
}

void eb_lent_free(eb_lent *lent) {
  if (lent == NULL) return;
  let_go(&lent->at);
  free(lent);
}

static bool reaches(const eb_lent *lent, const eb_session *session) {
  return lent != NULL && session != NULL && lent->at.bridge == session->at.bridge;
}

eb_status eb_lent_seal(eb_lent *lent, eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                       const uint8_t *plain, size_t len, uint8_t *records, size_t records_cap, eb_result *result) {
  eb_crossing crossing = {OP(lent_seal), .call.number = {region, first_gpa}, .in = plain, .in_len = len,
                          .in_unit = EB_PAGE_SIZE};
  eb_status status = EB_OK;
  eb_result sealed;
  size_t made = 0;
  if (!reaches(lent, session))
    return eb_pages_seal(session, transfer, region, first_gpa, plain, len, records, records_cap, &made, result);
  EB_ENSURE(plain != NULL, EB_ERR_ARGUMENT);
  EB_TRY(usable(&session->at));
  EB_ENSURE(len % EB_PAGE_SIZE == 0 && len / EB_PAGE_SIZE <= EB_REKEY_PAGES, EB_ERR_LENGTH);
  EB_ENSURE(transfer == NULL || transfer->at.bridge == session->at.bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(records_cap >= len / EB_PAGE_SIZE * EB_RECORD_SIZE, EB_ERR_BUFFER);
  if (transfer != NULL) crossing.call.handle[1] = transfer->at.number;
  crossing.call.handle[2] = lent->at.number;
  crossing.call.number[2] = (uint64_t)(records - lent->here);
  EB_TRY(call(&session->at, &crossing));
  EB_TRY(get_exactly(&crossing, &sealed, sizeof sealed));
  if (result != NULL) *result = sealed;
done:
  return status;
}

eb_status eb_lent_open(eb_lent *lent, eb_session *session, eb_transfer *transfer, const uint8_t *records, size_t len,
                       eb_result *result) {
  eb_crossing crossing = {OP(lent_open)};
  eb_status status = EB_OK;
  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_ENSURE(transfer != NULL, EB_ERR_ARGUMENT);
  /* Pages for memory that only this process has are delivered by it, by addresses that it copied itself. */
  if (!reaches(lent, session) || transfer->memory != NULL)
    return eb_pages_open(session, transfer, records, len, result);
  EB_TRY(usable(&session->at));
  EB_ENSURE(transfer->at.bridge == session->at.bridge, EB_ERR_ARGUMENT);
  crossing.call.handle[1] = transfer->at.number;
  crossing.call.handle[2] = lent->at.number;
  crossing.call.number[0] = (uint64_t)(records - lent->here);
  crossing.call.number[1] = len;
  status = call(&session->at, &crossing);
  if (crossing.reply.small_len == sizeof *result) (void)!get_exactly(&crossing, result, sizeof *result);
done:
  return status;
}
