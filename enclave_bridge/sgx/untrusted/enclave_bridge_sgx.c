/* enclave_bridge.h for the application, by ECALLs: one enclave a bridge. Nothing here is trusted. */
#include "enclave_bridge_sgx.h"

#include <errno.h>
#include <fcntl.h>
#include <sgx_urts.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "enclave_bridge_u.h"
#include "guard.h"
#include "platform.h"

#ifndef EB_SGX_ENCLAVE
#define EB_SGX_ENCLAVE "enclave_bridge.signed.so" /* found as the SDK's loader finds it */
#endif
#ifndef SGX_DEBUG_FLAG
#define SGX_DEBUG_FLAG 0
#endif

struct eb_bridge {
  atomic_uint references;
  sgx_enclave_id_t enclave;
  pid_t opener; /* the enclave is not in a forked child's address space */
};

struct eb_handshake {
  eb_bridge *bridge;
  uint64_t handle;
};

struct eb_session {
  eb_bridge *bridge;
  uint64_t handle;
};

struct eb_source {
  eb_bridge *bridge;
  int fd;
  uint64_t offset, len;
};

struct eb_transfer {
  eb_bridge *bridge;
  uint64_t handle, pages;
  uint8_t *mapping;
};

static eb_status outcome(sgx_status_t entered, int returned) {
  switch (entered) {
    case SGX_SUCCESS: return (eb_status)returned;
    case SGX_ERROR_INVALID_PARAMETER: return EB_ERR_ARGUMENT;
    case SGX_ERROR_OUT_OF_MEMORY: return EB_ERR_MEMORY;
    case SGX_ERROR_OUT_OF_TCS: return EB_ERR_LIMIT;
    default: return EB_ERR_BRIDGE_DIED; /* lost by a power transition, or crashed */
  }
}

static eb_status usable(const eb_bridge *bridge) { return bridge->opener == getpid() ? EB_OK : EB_ERR_FORKED; }

#define BRIDGE_OF(thing) ((thing) != NULL ? (thing)->bridge : NULL)

/* Enters the bridge's enclave; NULL is refused. */
#define CALL(on, function, ...)                                                    \
  do {                                                                             \
    const eb_bridge *bridge_ = (on);                                               \
    int returned_ = 0;                                                             \
    EB_ENSURE(bridge_ != NULL, EB_ERR_ARGUMENT);                                   \
    EB_TRY(usable(bridge_));                                                       \
    const sgx_status_t entered_ = function(bridge_->enclave, &returned_, __VA_ARGS__); \
    EB_TRY(outcome(entered_, returned_));                                            \
  } while (0)

/* ---- bridge -------------------------------------------------------------------------------- */

eb_status eb_bridge_open(const eb_bridge_options *options, eb_bridge **bridge) {
  const eb_bridge_options defaults = {.max_sessions = 256, .max_handshakes = 64};
  eb_status status = EB_OK;
  eb_bridge *made = NULL;
  int returned = 0;
  if (options == NULL) options = &defaults;
  EB_ENSURE(bridge != NULL && options->file_io == NULL, EB_ERR_ARGUMENT); /* there is no choice of it here */
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  EB_ENSURE(sgx_create_enclave(EB_SGX_ENCLAVE, SGX_DEBUG_FLAG, NULL, NULL, &made->enclave, NULL) == SGX_SUCCESS,
            EB_ERR_BRIDGE_DIED);
  atomic_init(&made->references, 1);
  made->opener = getpid();
  const sgx_status_t entered = ecall_bridge_open(made->enclave, &returned, options->max_sessions,
                                                 options->max_handshakes, options->gcm_kernel);
  EB_TRY(outcome(entered, returned));
  *bridge = made;
  made = NULL;
done:
  if (made != NULL && made->opener != 0) (void)sgx_destroy_enclave(made->enclave);
  free(made);
  return status;
}

static eb_bridge *hold(eb_bridge *bridge) {
  atomic_fetch_add(&bridge->references, 1);
  return bridge;
}

void eb_bridge_free(eb_bridge *bridge) {
  if (bridge == NULL || atomic_fetch_sub(&bridge->references, 1) != 1) return;
  if (usable(bridge) == EB_OK) (void)sgx_destroy_enclave(bridge->enclave);
  free(bridge);
}

eb_status eb_bridge_get_info(eb_bridge *bridge, eb_bridge_info *info) {
  eb_status status = EB_OK;
  CALL(bridge, ecall_bridge_info, info);
done:
  return status;
}

eb_status eb_random(eb_bridge *bridge, uint8_t *out, size_t out_len) {
  eb_status status = EB_OK;
  CALL(bridge, ecall_random, out, out_len);
done:
  return status;
}

/* ---- handshake ----------------------------------------------------------------------------- */

eb_status eb_handshake_new(eb_bridge *bridge, eb_role role, const eb_suite *suites, size_t n,
                           eb_handshake **handshake) {
  eb_status status = EB_OK;
  eb_handshake *made = NULL;
  int wanted[2] = {0};
  EB_ENSURE(bridge != NULL && suites != NULL && handshake != NULL && n >= 1 && n <= 2, EB_ERR_ARGUMENT);
  for (size_t i = 0; i < n; i++) wanted[i] = (int)suites[i];
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  made->bridge = hold(bridge);
  CALL(BRIDGE_OF(made), ecall_handshake_new, (int)role, wanted, n, &made->handle);
  *handshake = made;
  made = NULL;
done:
  eb_handshake_free(made);
  return status;
}

void eb_handshake_free(eb_handshake *handshake) {
  int returned = 0;
  if (handshake == NULL) return;
  if (handshake->handle != 0 && usable(handshake->bridge) == EB_OK)
    (void)ecall_handshake_free(handshake->bridge->enclave, &returned, handshake->handle);
  eb_bridge_free(handshake->bridge);
  free(handshake);
}

#define FORWARD(name, type, parameters, ...)             \
  eb_status eb_##name parameters {                       \
    eb_status status = EB_OK;                            \
    CALL(BRIDGE_OF(type), ecall_##name, type->handle, __VA_ARGS__); \
  done:                                                  \
    return status;                                       \
  }

FORWARD(handshake_public_key, handshake,
        (eb_handshake *handshake, eb_suite suite, uint8_t *out, size_t out_cap, size_t *out_len), (int)suite, out,
        out_cap, out_len)
FORWARD(handshake_absorb, handshake, (eb_handshake *handshake, const uint8_t *message, size_t len), message, len)
FORWARD(handshake_select, handshake, (eb_handshake *handshake, eb_suite suite), (int)suite)
FORWARD(handshake_binding, handshake, (eb_handshake *handshake, eb_role role, uint8_t out[EB_BINDING_SIZE]), (int)role,
        out)
FORWARD(handshake_derive, handshake, (eb_handshake *handshake, const uint8_t *peer_key, size_t len), peer_key, len)
FORWARD(handshake_finished, handshake, (eb_handshake *handshake, uint8_t *mac, size_t mac_cap, size_t *mac_len), mac,
        mac_cap, mac_len)
FORWARD(handshake_check_finished, handshake, (eb_handshake *handshake, const uint8_t *mac, size_t len), mac, len)

eb_status eb_sgx_handshake_report(eb_handshake *handshake, eb_role role, const sgx_target_info_t *target,
                                  sgx_report_t *report) {
  eb_status status = EB_OK;
  CALL(BRIDGE_OF(handshake), ecall_handshake_report, handshake->handle, (int)role, target, report);
done:
  return status;
}

eb_status eb_handshake_session(eb_handshake *handshake, const uint8_t session_id[EB_SESSION_ID_SIZE],
                               eb_session **session) {
  eb_status status = EB_OK;
  eb_session *made = NULL;
  EB_ENSURE(handshake != NULL && session != NULL, EB_ERR_ARGUMENT);
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  made->bridge = hold(handshake->bridge);
  CALL(BRIDGE_OF(handshake), ecall_handshake_session, handshake->handle, session_id, &made->handle);
  *session = made;
  made = NULL;
done:
  eb_session_free(made);
  return status;
}

/* ---- session ------------------------------------------------------------------------------- */

void eb_session_free(eb_session *session) {
  int returned = 0;
  if (session == NULL) return;
  if (session->handle != 0 && usable(session->bridge) == EB_OK)
    (void)ecall_session_free(session->bridge->enclave, &returned, session->handle);
  eb_bridge_free(session->bridge);
  free(session);
}

eb_status eb_session_close(eb_session *session) {
  eb_status status = EB_OK;
  CALL(BRIDGE_OF(session), ecall_session_close, session->handle);
done:
  return status;
}

eb_status eb_session_rekey(eb_session *session) {
  eb_status status = EB_OK;
  CALL(BRIDGE_OF(session), ecall_session_rekey, session->handle);
done:
  return status;
}

FORWARD(session_get_stats, session, (eb_session *session, eb_session_stats *stats), stats)
FORWARD(session_mac, session,
        (eb_session *session, eb_mac_purpose purpose, const uint8_t *message, size_t len, uint8_t *mac,
         size_t mac_cap, size_t *mac_len),
        (int)purpose, message, len, mac, mac_cap, mac_len)
FORWARD(session_check_mac, session,
        (eb_session *session, eb_mac_purpose purpose, const uint8_t *message, size_t len, const uint8_t *mac,
         size_t mac_len),
        (int)purpose, message, len, mac, mac_len)

/* ---- transfer ------------------------------------------------------------------------------ */

eb_status eb_transfer_new(eb_bridge *bridge, const uint8_t transfer_id[EB_TRANSFER_ID_SIZE], const eb_window *window,
                          eb_transfer **transfer) {
  eb_status status = EB_OK;
  eb_transfer *made = NULL;
  EB_ENSURE(bridge != NULL && window != NULL && transfer != NULL, EB_ERR_ARGUMENT);
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  made->bridge = hold(bridge);
  made->pages = window->pages;
  CALL(BRIDGE_OF(made), ecall_transfer_new, transfer_id, window, &made->handle);
  *transfer = made;
  made = NULL;
done:
  eb_transfer_free(made);
  return status;
}

void eb_transfer_free(eb_transfer *transfer) {
  int returned = 0;
  if (transfer == NULL) return;
  if (transfer->handle != 0 && usable(transfer->bridge) == EB_OK)
    (void)ecall_transfer_free(transfer->bridge->enclave, &returned, transfer->handle);
  eb_file_unmap(transfer->mapping, transfer->pages * EB_PAGE_SIZE);
  eb_bridge_free(transfer->bridge);
  free(transfer);
}

FORWARD(transfer_pages, transfer, (eb_transfer *transfer, uint64_t *pages), pages)
FORWARD(transfer_forget, transfer, (eb_transfer *transfer, uint64_t first_gpa, uint64_t pages), first_gpa, pages)

eb_status eb_transfer_set_target_memory(eb_transfer *transfer, uint8_t *memory, size_t len) {
  eb_status status = EB_OK;
  CALL(BRIDGE_OF(transfer), ecall_transfer_set_target, transfer->handle, memory, len);
done:
  return status;
}

/* The file is mapped here: the enclave only sees memory outside. */
eb_status eb_transfer_set_target_fd(eb_transfer *transfer, int fd, uint64_t fd_offset) {
  eb_status status = EB_OK;
  uint8_t *mapping = NULL;
  EB_ENSURE(transfer != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(fd_offset % EB_PAGE_SIZE == 0, EB_ERR_UNALIGNED);
  mapping = eb_file_map(fd, fd_offset, transfer->pages * EB_PAGE_SIZE);
  EB_ENSURE(mapping != NULL, EB_ERR_TARGET);
  EB_TRY(eb_transfer_set_target_memory(transfer, mapping, transfer->pages * EB_PAGE_SIZE));
  transfer->mapping = mapping;
  mapping = NULL;
done:
  if (mapping != NULL) eb_file_unmap(mapping, transfer->pages * EB_PAGE_SIZE);
  return status;
}

eb_status eb_transfer_commit_mac(eb_session *session, eb_transfer *transfer, uint8_t *mac, size_t mac_cap,
                                 size_t *mac_len) {
  eb_status status = EB_OK;
  EB_ENSURE(transfer != NULL && BRIDGE_OF(session) == transfer->bridge, EB_ERR_ARGUMENT);
  CALL(BRIDGE_OF(session), ecall_transfer_commit_mac, session->handle, transfer->handle, mac, mac_cap, mac_len);
done:
  return status;
}

eb_status eb_transfer_check_commit_mac(eb_session *session, eb_transfer *transfer, const uint8_t *mac,
                                       size_t mac_len) {
  eb_status status = EB_OK;
  EB_ENSURE(transfer != NULL && BRIDGE_OF(session) == transfer->bridge, EB_ERR_ARGUMENT);
  CALL(BRIDGE_OF(session), ecall_transfer_check_commit_mac, session->handle, transfer->handle, mac, mac_len);
done:
  return status;
}

/* ---- pages --------------------------------------------------------------------------------- */

eb_status eb_pages_seal(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                        const uint8_t *plain, size_t len, uint8_t *records, size_t records_cap, size_t *records_len,
                        eb_result *result) {
  const uint64_t started = eb_clock();
  eb_status status = EB_OK;
  EB_ENSURE(transfer == NULL || BRIDGE_OF(session) == transfer->bridge, EB_ERR_ARGUMENT);
  CALL(BRIDGE_OF(session), ecall_pages_seal, session->handle, transfer != NULL ? transfer->handle : 0, region, first_gpa, plain,
       len, records, records_cap, records_len, result);
  if (result != NULL) result->nanoseconds = eb_clock() - started;
done:
  return status;
}

eb_status eb_pages_open(eb_session *session, eb_transfer *transfer, const uint8_t *records, size_t records_len,
                        eb_result *result) {
  const uint64_t started = eb_clock();
  eb_status status = EB_OK;
  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  EB_ENSURE(transfer != NULL && BRIDGE_OF(session) == transfer->bridge, EB_ERR_ARGUMENT);
  CALL(BRIDGE_OF(session), ecall_pages_open, session->handle, transfer->handle, records, records_len, result);
done:
  if (result != NULL) result->nanoseconds = eb_clock() - started;
  return status;
}

/* ---- source: files are outside, so they are read outside ------------------------------------ */

eb_status eb_source_open(eb_bridge *bridge, int fd, uint64_t offset, uint64_t len, eb_source **source) {
  eb_status status = EB_OK;
  eb_source *made = NULL;
  struct stat facts;
  EB_ENSURE(bridge != NULL && source != NULL && len > 0, EB_ERR_ARGUMENT);
  EB_TRY(usable(bridge));
  EB_ENSURE(fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode), EB_ERR_SOURCE_UNREADABLE);
  EB_ENSURE(offset <= INT64_MAX - len && (uint64_t)facts.st_size >= offset + len, EB_ERR_SOURCE_UNREADABLE);
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  *made = (eb_source){hold(bridge), fcntl(fd, F_DUPFD_CLOEXEC, 0), offset, len};
  EB_ENSURE(made->fd >= 0 && pread(made->fd, &(char){0}, 1, (off_t)offset) == 1, EB_ERR_SOURCE_UNREADABLE);
  *source = made;
  made = NULL;
done:
  eb_source_free(made);
  return status;
}

void eb_source_free(eb_source *source) {
  if (source == NULL) return;
  if (source->fd >= 0) close(source->fd);
  eb_bridge_free(source->bridge);
  free(source);
}

/* len bytes at `at` of the source, zero beyond its end. */
static eb_status read_source(const eb_source *source, uint64_t at, uint8_t *out, size_t len) {
  const uint64_t there = source->len - at;
  const size_t want = there < len ? (size_t)there : len;
  memset(out + want, 0, len - want);
  for (size_t done = 0; done < want;) {
    const ssize_t n = pread(source->fd, out + done, want - done, (off_t)(source->offset + at + done));
    if (n <= 0 && !(n < 0 && errno == EINTR)) return EB_ERR_SOURCE_UNREADABLE;
    done += n > 0 ? (size_t)n : 0;
  }
  return EB_OK;
}

eb_status eb_pages_seal_from(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                             eb_source *source, uint64_t source_offset, size_t len, uint8_t *records,
                             size_t records_cap, size_t *records_len, eb_result *result) {
  eb_status status = EB_OK;
  uint8_t *plain = NULL;
  EB_ENSURE(source != NULL && BRIDGE_OF(session) == source->bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(source_offset < source->len && len > 0 && len <= EB_REKEY_PAGES * EB_PAGE_SIZE, EB_ERR_LENGTH);
  EB_ENSURE(len <= source->len - source_offset || len - (source->len - source_offset) < EB_PAGE_SIZE, EB_ERR_LENGTH);
  plain = malloc(len);
  EB_ENSURE(plain != NULL, EB_ERR_MEMORY);
  EB_TRY(read_source(source, source_offset, plain, len));
  EB_TRY(eb_pages_seal(session, transfer, region, first_gpa, plain, len, records, records_cap, records_len, result));
done:
  free(plain);
  return status;
}
