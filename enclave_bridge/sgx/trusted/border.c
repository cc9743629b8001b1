/*
 * The inside of enclave_bridge.edl. Nothing outside is trusted: not a handle, not a length, not that a
 * handle is not freed while another thread uses it, and not that one thread at a time uses a handshake.
 */
#include <sgx_lfence.h>
#include <sgx_trts.h>
#include <sgx_utils.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "enclave_bridge_t.h"
#include "guard.h"
#include "platform.h"

#define MAX_TRANSFERS 4096u
#define MAX_SLOTS 65536u

/* ---- handles ------------------------------------------------------------------------------- */

typedef enum { NOTHING, HANDSHAKE, SESSION, TRANSFER } kind_of;

typedef struct {
  kind_of kind;
  void *object;
  uint32_t generation; /* the upper half of a handle; a slot's next tenant has another */
  uint32_t uses;       /* calls in progress */
  bool ending;         /* freed by the last of them */
} slot;

/* An enclave is one bridge. */
static struct {
  eb_mutex lock;
  eb_bridge *bridge;
  slot *slots;
  uint32_t count;
} border = {.lock = SGX_THREAD_MUTEX_INITIALIZER};

static void destroy(kind_of kind, void *object) {
  if (kind == HANDSHAKE) eb_handshake_free(object);
  if (kind == SESSION) eb_session_free(object);
  if (kind == TRANSFER) eb_transfer_free(object);
}

/* With the lock held: NULL unless the handle is one of that kind that lives. */
static slot *find(uint64_t handle, kind_of kind) {
  const uint32_t index = (uint32_t)handle, generation = (uint32_t)(handle >> 32);
  if (index >= border.count) return NULL;
  sgx_lfence(); /* the index is the host's */
  slot *found = &border.slots[index];
  return found->kind == kind && found->generation == generation && !found->ending ? found : NULL;
}

/* Takes over the object, also when it fails. EB_ERR_LIMIT. */
static eb_status put(kind_of kind, void *object, uint64_t *handle) {
  eb_status status = EB_ERR_LIMIT;
  eb_mutex_lock(&border.lock);
  for (uint32_t i = 0; i < border.count && status != EB_OK; i++) {
    slot *free_slot = &border.slots[i];
    if (free_slot->kind != NOTHING || free_slot->generation == UINT32_MAX) continue;
    *free_slot = (slot){kind, object, free_slot->generation + 1, 0, false};
    *handle = (uint64_t)free_slot->generation << 32 | i;
    status = EB_OK;
  }
  eb_mutex_unlock(&border.lock);
  if (status != EB_OK) destroy(kind, object);
  return status;
}

/* The object stays until the matching give. EB_ERR_ARGUMENT: no such handle; EB_ERR_STATE: a
 * handshake that another thread uses. */
static eb_status take(uint64_t handle, kind_of kind, void **object) {
  eb_status status = EB_OK;
  eb_mutex_lock(&border.lock);
  slot *found = find(handle, kind);
  EB_ENSURE(found != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(kind != HANDSHAKE || found->uses == 0, EB_ERR_STATE);
  found->uses++;
  *object = found->object;
done:
  eb_mutex_unlock(&border.lock);
  return status;
}

/* With the lock held: what to destroy once it is released. */
static slot clear_if_ended(slot *used) {
  const slot old = *used;
  if (!old.ending || old.uses > 0) return (slot){.kind = NOTHING};
  *used = (slot){.generation = old.generation};
  return old;
}

static void give(uint64_t handle) {
  eb_mutex_lock(&border.lock);
  slot *used = &border.slots[(uint32_t)handle]; /* was found by take, and cannot have gone since */
  used->uses--;
  const slot ended = clear_if_ended(used);
  eb_mutex_unlock(&border.lock);
  destroy(ended.kind, ended.object);
}

static eb_status end(uint64_t handle, kind_of kind) {
  eb_status status = EB_OK;
  slot ended = {.kind = NOTHING};
  eb_mutex_lock(&border.lock);
  slot *found = find(handle, kind);
  EB_ENSURE(found != NULL, EB_ERR_ARGUMENT);
  found->ending = true;
  ended = clear_if_ended(found);
done:
  eb_mutex_unlock(&border.lock);
  destroy(ended.kind, ended.object);
  return status;
}

/* All of it, and no byte inside: else the host could have secrets read or written for it. */
static bool outside(const void *pointer, size_t len) {
  const bool good = pointer != NULL && len > 0 && sgx_is_outside_enclave(pointer, len) == 1;
  sgx_lfence();
  return good;
}

/* One call on one object. */
#define ON(kind, handle, call)                        \
  void *object = NULL;                                \
  eb_status status = take(handle, kind, &object);     \
  if (status == EB_OK) {                              \
    status = (call);                                  \
    give(handle);                                     \
  }                                                   \
  return (int)status

/* ---- bridge -------------------------------------------------------------------------------- */

int ecall_bridge_open(uint32_t max_sessions, uint32_t max_handshakes, const char *gcm_kernel) {
  const eb_bridge_options options = {
      .max_sessions = max_sessions, .max_handshakes = max_handshakes, .gcm_kernel = gcm_kernel};
  eb_status status = EB_OK;
  eb_mutex_lock(&border.lock);
  EB_ENSURE(border.bridge == NULL, EB_ERR_STATE);
  EB_ENSURE(max_sessions <= MAX_SLOTS && max_handshakes <= MAX_SLOTS, EB_ERR_ARGUMENT);
  free(border.slots); /* of an attempt that failed */
  border.count = 0;
  border.slots = calloc(max_sessions + max_handshakes + MAX_TRANSFERS, sizeof *border.slots);
  EB_ENSURE(border.slots != NULL, EB_ERR_MEMORY);
  EB_TRY(eb_bridge_open(&options, &border.bridge));
  border.count = max_sessions + max_handshakes + MAX_TRANSFERS;
done:
  eb_mutex_unlock(&border.lock);
  return (int)status;
}

/* The bridge stays as long as the enclave: no reference is counted. */
static eb_status opened(eb_bridge **bridge) {
  eb_mutex_lock(&border.lock);
  *bridge = border.bridge;
  eb_mutex_unlock(&border.lock);
  return *bridge != NULL ? EB_OK : EB_ERR_STATE;
}

int ecall_bridge_info(eb_bridge_info *info) {
  eb_bridge *bridge = NULL;
  eb_status status = EB_OK;
  EB_TRY(opened(&bridge));
  EB_TRY(eb_bridge_get_info(bridge, info));
done:
  return (int)status;
}

int ecall_random(uint8_t *out, size_t len) {
  eb_bridge *bridge = NULL;
  eb_status status = EB_OK;
  EB_TRY(opened(&bridge));
  EB_TRY(eb_random(bridge, out, len));
done:
  return (int)status;
}

/* ---- handshake ------------------------------------------------------------------------------- */

int ecall_handshake_new(int role, const int *suites, size_t n, uint64_t *handle) {
  eb_suite wanted[2] = {0};
  eb_bridge *bridge = NULL;
  eb_handshake *made = NULL;
  eb_status status = EB_OK;
  EB_ENSURE(suites != NULL && n >= 1 && n <= sizeof wanted / sizeof wanted[0] && handle != NULL, EB_ERR_ARGUMENT);
  for (size_t i = 0; i < n; i++) wanted[i] = (eb_suite)suites[i];
  EB_TRY(opened(&bridge));
  EB_TRY(eb_handshake_new(bridge, (eb_role)role, wanted, n, &made));
  EB_TRY(put(HANDSHAKE, made, handle));
done:
  return (int)status;
}

int ecall_handshake_free(uint64_t handshake) { return (int)end(handshake, HANDSHAKE); }

int ecall_handshake_public_key(uint64_t handshake, int suite, uint8_t *out, size_t cap, size_t *len) {
  ON(HANDSHAKE, handshake, eb_handshake_public_key(object, (eb_suite)suite, out, cap, len));
}

int ecall_handshake_absorb(uint64_t handshake, const uint8_t *message, size_t len) {
  ON(HANDSHAKE, handshake, eb_handshake_absorb(object, message, len));
}

int ecall_handshake_select(uint64_t handshake, int suite) {
  ON(HANDSHAKE, handshake, eb_handshake_select(object, (eb_suite)suite));
}

int ecall_handshake_binding(uint64_t handshake, int role, uint8_t *out) {
  ON(HANDSHAKE, handshake, eb_handshake_binding(object, (eb_role)role, out));
}

/* The enclave reports nothing but a handshake's binding: a host cannot have it vouch for other data. */
static eb_status make_report(eb_handshake *handshake, eb_role role, const sgx_target_info_t *target,
                             sgx_report_t *report) {
  _Static_assert(sizeof(sgx_report_data_t) == EB_BINDING_SIZE, "REPORT_DATA is the binding");
  eb_status status = EB_OK;
  sgx_report_data_t data;
  EB_ENSURE(target != NULL && report != NULL, EB_ERR_ARGUMENT);
  EB_TRY(eb_handshake_binding(handshake, role, data.d));
  EB_ENSURE(sgx_create_report(target, &data, report) == SGX_SUCCESS, EB_ERR_CRYPTO);
done:
  return status;
}

int ecall_handshake_report(uint64_t handshake, int role, const sgx_target_info_t *target, sgx_report_t *report) {
  ON(HANDSHAKE, handshake, make_report(object, (eb_role)role, target, report));
}

int ecall_handshake_derive(uint64_t handshake, const uint8_t *peer_key, size_t len) {
  ON(HANDSHAKE, handshake, eb_handshake_derive(object, peer_key, len));
}

int ecall_handshake_finished(uint64_t handshake, uint8_t *mac, size_t cap, size_t *len) {
  ON(HANDSHAKE, handshake, eb_handshake_finished(object, mac, cap, len));
}

int ecall_handshake_check_finished(uint64_t handshake, const uint8_t *mac, size_t len) {
  ON(HANDSHAKE, handshake, eb_handshake_check_finished(object, mac, len));
}

static eb_status make_session(eb_handshake *handshake, const uint8_t *session_id, uint64_t *handle) {
  eb_session *made = NULL;
  eb_status status = EB_OK;
  EB_ENSURE(handle != NULL, EB_ERR_ARGUMENT);
  EB_TRY(eb_handshake_session(handshake, session_id, &made));
  EB_TRY(put(SESSION, made, handle));
done:
  return status;
}

int ecall_handshake_session(uint64_t handshake, const uint8_t *session_id, uint64_t *session) {
  ON(HANDSHAKE, handshake, make_session(object, session_id, session));
}

/* ---- session --------------------------------------------------------------------------------- */

int ecall_session_free(uint64_t session) { return (int)end(session, SESSION); }

int ecall_session_close(uint64_t session) { ON(SESSION, session, eb_session_close(object)); }

int ecall_session_get_stats(uint64_t session, eb_session_stats *stats) {
  ON(SESSION, session, eb_session_get_stats(object, stats));
}

int ecall_session_rekey(uint64_t session) { ON(SESSION, session, eb_session_rekey(object)); }

int ecall_session_mac(uint64_t session, int purpose, const uint8_t *message, size_t len, uint8_t *mac, size_t cap,
                      size_t *mac_len) {
  ON(SESSION, session, eb_session_mac(object, (eb_mac_purpose)purpose, message, len, mac, cap, mac_len));
}

int ecall_session_check_mac(uint64_t session, int purpose, const uint8_t *message, size_t len, const uint8_t *mac,
                            size_t mac_len) {
  ON(SESSION, session, eb_session_check_mac(object, (eb_mac_purpose)purpose, message, len, mac, mac_len));
}

/* ---- transfer -------------------------------------------------------------------------------- */

int ecall_transfer_new(const uint8_t *transfer_id, const eb_window *window, uint64_t *handle) {
  eb_bridge *bridge = NULL;
  eb_transfer *made = NULL;
  eb_status status = EB_OK;
  EB_ENSURE(handle != NULL, EB_ERR_ARGUMENT);
  EB_TRY(opened(&bridge));
  EB_TRY(eb_transfer_new(bridge, transfer_id, window, &made));
  EB_TRY(put(TRANSFER, made, handle));
done:
  return (int)status;
}

int ecall_transfer_free(uint64_t transfer) { return (int)end(transfer, TRANSFER); }

int ecall_transfer_set_target(uint64_t transfer, uint8_t *memory, size_t len) {
  if (!outside(memory, len)) return EB_ERR_ARGUMENT;
  ON(TRANSFER, transfer, eb_transfer_set_target_memory(object, memory, len));
}

int ecall_transfer_pages(uint64_t transfer, uint64_t *pages) {
  ON(TRANSFER, transfer, eb_transfer_pages(object, pages));
}

int ecall_transfer_forget(uint64_t transfer, uint64_t first_gpa, uint64_t pages) {
  ON(TRANSFER, transfer, eb_transfer_forget(object, first_gpa, pages));
}

/* ---- both ------------------------------------------------------------------------------------ */

typedef struct {
  uint64_t session, transfer; /* handles */
  void *session_object, *transfer_object;
} both;

/* transfer 0: none, when that is allowed. */
static eb_status take_both(both *pair, bool need_transfer) {
  eb_status status = EB_OK;
  EB_TRY(take(pair->session, SESSION, &pair->session_object));
  if (pair->transfer != 0 || need_transfer) status = take(pair->transfer, TRANSFER, &pair->transfer_object);
  if (status != EB_OK) {
    give(pair->session);
    pair->session_object = NULL;
  }
done:
  return status;
}

static void give_both(const both *pair) {
  if (pair->transfer_object != NULL) give(pair->transfer);
  if (pair->session_object != NULL) give(pair->session);
}

int ecall_transfer_commit_mac(uint64_t session, uint64_t transfer, uint8_t *mac, size_t cap, size_t *len) {
  both pair = {.session = session, .transfer = transfer};
  eb_status status = EB_OK;
  EB_TRY(take_both(&pair, true));
  status = eb_transfer_commit_mac(pair.session_object, pair.transfer_object, mac, cap, len);
done:
  give_both(&pair);
  return (int)status;
}

int ecall_transfer_check_commit_mac(uint64_t session, uint64_t transfer, const uint8_t *mac, size_t len) {
  both pair = {.session = session, .transfer = transfer};
  eb_status status = EB_OK;
  EB_TRY(take_both(&pair, true));
  status = eb_transfer_check_commit_mac(pair.session_object, pair.transfer_object, mac, len);
done:
  give_both(&pair);
  return (int)status;
}

int ecall_pages_seal(uint64_t session, uint64_t transfer, uint32_t region, uint64_t first_gpa, const uint8_t *plain,
                     size_t len, uint8_t *records, size_t cap, size_t *records_len, eb_result *result) {
  both pair = {.session = session, .transfer = transfer};
  eb_status status = EB_OK;
  EB_ENSURE(outside(plain, len) && outside(records, cap), EB_ERR_ARGUMENT);
  EB_TRY(take_both(&pair, false));
  status = eb_pages_seal(pair.session_object, pair.transfer_object, region, first_gpa, plain, len, records, cap,
                         records_len, result);
done:
  give_both(&pair);
  return (int)status;
}

int ecall_pages_open(uint64_t session, uint64_t transfer, const uint8_t *records, size_t len, eb_result *result) {
  both pair = {.session = session, .transfer = transfer};
  eb_status status = EB_OK;
  EB_ENSURE(outside(records, len), EB_ERR_ARGUMENT);
  EB_TRY(take_both(&pair, true));
  status = eb_pages_open(pair.session_object, pair.transfer_object, records, len, result);
done:
  give_both(&pair);
  return (int)status;
}
