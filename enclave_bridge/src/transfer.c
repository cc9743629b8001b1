#include "transfer.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "equal.h"
#include "guard.h"
#include "record.h"
#include "session.h"

#define COMMIT_CHUNK 128u /* pages hashed at once */

static eb_status usable(const eb_transfer *transfer) {
  if (transfer == NULL) return EB_ERR_ARGUMENT;
  return eb_bridge_alive(transfer->bridge) ? EB_OK : EB_ERR_FORKED;
}

eb_status eb_transfer_new(eb_bridge *bridge, const uint8_t transfer_id[EB_TRANSFER_ID_SIZE], const eb_window *window,
                          eb_transfer **transfer) {
  eb_status status = EB_OK;
  eb_transfer *made = NULL;
  EB_ENSURE(bridge != NULL && transfer_id != NULL && window != NULL && transfer != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(eb_bridge_alive(bridge), EB_ERR_FORKED);
  EB_ENSURE(window->pages >= 1 && window->pages <= EB_MAX_WINDOW_PAGES, EB_ERR_ARGUMENT);
  EB_ENSURE(window->base_gpa % EB_PAGE_SIZE == 0, EB_ERR_UNALIGNED);
  EB_ENSURE(window->base_gpa <= UINT64_MAX - window->pages * EB_PAGE_SIZE, EB_ERR_OUT_OF_RANGE);
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  eb_bridge_hold(bridge);
  made->bridge = bridge;
  made->window = *window;
  made->file.fd = -1;
  memcpy(made->id, transfer_id, sizeof made->id);
  eb_mutex_init(&made->lock);
  made->tags = calloc(window->pages, sizeof *made->tags);
  made->recorded = calloc((window->pages + 63) / 64, sizeof *made->recorded);
  EB_ENSURE(made->tags != NULL && made->recorded != NULL, EB_ERR_MEMORY);
  *transfer = made;
  made = NULL;
done:
  eb_transfer_free(made);
  return status;
}

void eb_transfer_free(eb_transfer *transfer) {
  if (transfer == NULL) return;
  eb_file_unmap(transfer->mapping, transfer->window.pages * EB_PAGE_SIZE);
  eb_stored_close(&transfer->file);
  eb_guard_free(transfer->guard);
  if (eb_bridge_alive(transfer->bridge)) eb_mutex_destroy(&transfer->lock);
  free(transfer->tags);
  free(transfer->recorded);
  eb_bridge_free(transfer->bridge);
  free(transfer);
}

bool eb_transfer_has_target(const eb_transfer *transfer) {
  return transfer->target != NULL || transfer->file.fd >= 0 || transfer->guard != NULL;
}

eb_status eb_transfer_set_target_fd(eb_transfer *transfer, int fd, uint64_t fd_offset) {
  eb_status status = EB_OK;
  bool locked = false;
  EB_TRY(usable(transfer));
  const uint64_t len = transfer->window.pages * EB_PAGE_SIZE;
  EB_ENSURE(fd_offset % EB_PAGE_SIZE == 0, EB_ERR_UNALIGNED);
  eb_mutex_lock(&transfer->lock);
  locked = true;
  EB_ENSURE(!eb_transfer_has_target(transfer), EB_ERR_STATE);
  if (eb_file_is_stored(transfer->bridge, fd)) {
    EB_TRY(eb_stored_open(&transfer->file, fd, fd_offset, len));
  } else {
    transfer->mapping = eb_file_map(fd, fd_offset, len);
    EB_ENSURE(transfer->mapping != NULL, EB_ERR_TARGET);
    transfer->target = transfer->mapping;
  }
done:
  if (locked) eb_mutex_unlock(&transfer->lock);
  return status;
}

eb_status eb_transfer_set_target_memory(eb_transfer *transfer, uint8_t *memory, size_t len) {
  eb_status status = EB_OK;
  EB_TRY(usable(transfer));
  EB_ENSURE(memory != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(len == transfer->window.pages * EB_PAGE_SIZE, EB_ERR_LENGTH);
  eb_mutex_lock(&transfer->lock);
  if (eb_transfer_has_target(transfer))
    status = EB_ERR_STATE;
  else
    transfer->target = memory;
  eb_mutex_unlock(&transfer->lock);
done:
  return status;
}

eb_status eb_transfer_set_guard(eb_transfer *transfer, eb_guard *guard) {
  eb_status status = EB_OK;
  EB_TRY(usable(transfer));
  EB_TRY(eb_guard_usable(guard));
  EB_ENSURE(guard->bridge == transfer->bridge, EB_ERR_ARGUMENT);
  EB_ENSURE(guard->pages == transfer->window.pages, EB_ERR_LENGTH);
  eb_mutex_lock(&transfer->lock);
  if (eb_transfer_has_target(transfer)) {
    status = EB_ERR_STATE;
  } else {
    eb_guard_hold(guard);
    transfer->guard = guard;
  }
  eb_mutex_unlock(&transfer->lock);
done:
  return status;
}

eb_status eb_transfer_pages(eb_transfer *transfer, uint64_t *pages) {
  eb_status status = EB_OK;
  EB_TRY(usable(transfer));
  EB_ENSURE(pages != NULL, EB_ERR_ARGUMENT);
  eb_mutex_lock(&transfer->lock);
  *pages = transfer->pages;
  eb_mutex_unlock(&transfer->lock);
done:
  return status;
}

eb_status eb_transfer_locate(const eb_transfer *transfer, uint32_t region, uint64_t gpa, uint64_t *index) {
  if (region != transfer->window.region) return EB_ERR_WRONG_REGION;
  if (gpa % EB_PAGE_SIZE != 0) return EB_ERR_UNALIGNED;
  if (gpa < transfer->window.base_gpa) return EB_ERR_OUT_OF_RANGE;
  *index = (gpa - transfer->window.base_gpa) / EB_PAGE_SIZE;
  return *index < transfer->window.pages ? EB_OK : EB_ERR_OUT_OF_RANGE;
}

static bool is_recorded(const eb_transfer *transfer, uint64_t index) {
  return (transfer->recorded[index / 64] >> (index % 64)) & 1;
}

void eb_transfer_record(eb_transfer *transfer, uint64_t index, const uint8_t tag[EB_TAG_SIZE]) {
  transfer->pages += !is_recorded(transfer, index);
  transfer->recorded[index / 64] |= UINT64_C(1) << (index % 64);
  memcpy(transfer->tags[index], tag, EB_TAG_SIZE);
}

void eb_transfer_drop(eb_transfer *transfer, uint64_t index) {
  transfer->pages -= is_recorded(transfer, index);
  transfer->recorded[index / 64] &= ~(UINT64_C(1) << (index % 64));
}

static eb_status store_run(eb_transfer *transfer, uint64_t first, const uint8_t *pages, size_t n) {
  if (transfer->guard != NULL) return eb_guard_put(transfer->guard, first, pages, n);
  if (transfer->target == NULL) return eb_stored_write(&transfer->file, first * EB_PAGE_SIZE, pages, n * EB_PAGE_SIZE);
  memcpy(transfer->target + first * EB_PAGE_SIZE, pages, n * EB_PAGE_SIZE);
  return EB_OK;
}

eb_status eb_transfer_store(eb_transfer *transfer, const uint64_t *index, uint8_t (*tags)[EB_TAG_SIZE],
                            const uint8_t *pages, size_t n, size_t *stored) {
  eb_status status = EB_OK;
  for (*stored = 0; *stored < n && status == EB_OK;) {
    const size_t first = *stored;
    size_t end = first + 1; /* pages that follow each other go together */
    while (end < n && index[end] == index[end - 1] + 1) end++;
    status = store_run(transfer, index[first], pages + first * EB_PAGE_SIZE, end - first);
    for (size_t i = first; i < end; i++) {
      if (status == EB_OK)
        eb_transfer_record(transfer, index[i], tags[i]);
      else
        eb_transfer_drop(transfer, index[i]); /* what was there may be written over in part */
    }
    if (status == EB_OK) *stored = end;
  }
  return status;
}

eb_status eb_transfer_forget(eb_transfer *transfer, uint64_t first_gpa, uint64_t pages) {
  eb_status status = EB_OK;
  uint64_t first = 0;
  EB_TRY(usable(transfer));
  EB_TRY(eb_transfer_locate(transfer, transfer->window.region, first_gpa, &first));
  EB_ENSURE(pages >= 1 && pages <= transfer->window.pages - first, EB_ERR_OUT_OF_RANGE);
  eb_mutex_lock(&transfer->lock);
  for (uint64_t i = first; i < first + pages; i++) eb_transfer_drop(transfer, i);
  eb_mutex_unlock(&transfer->lock);
done:
  return status;
}

/* With the lock held: the account of the transfer goes into the MAC. */
static void hash_account(const eb_transfer *transfer, eb_hmac *mac) {
  static const uint8_t label[] = "commit"; /* its terminating zero is part of the message */
  enum { ENTRY = 8 + EB_TAG_SIZE };
  uint8_t chunk[COMMIT_CHUNK * ENTRY], count[8];
  size_t used = 0;

  eb_store_u64le(count, transfer->pages);
  eb_hmac_update(mac, label, sizeof label);
  eb_hmac_update(mac, transfer->id, sizeof transfer->id);
  eb_hmac_update(mac, count, sizeof count);
  for (uint64_t i = 0; i < transfer->window.pages; i++) {
    if (transfer->recorded[i / 64] == 0) {
      i |= 63; /* nothing in this word */
      continue;
    }
    if (!is_recorded(transfer, i)) continue;
    eb_store_u64le(chunk + used, transfer->window.base_gpa + i * EB_PAGE_SIZE);
    memcpy(chunk + used + 8, transfer->tags[i], EB_TAG_SIZE);
    used += ENTRY;
    if (used == sizeof chunk) {
      eb_hmac_update(mac, chunk, used);
      used = 0;
    }
  }
  eb_hmac_update(mac, chunk, used);
}

static eb_status commit_mac(eb_session *session, eb_role role, eb_transfer *transfer, uint8_t out[EB_MAX_MAC_SIZE]) {
  eb_status status = EB_OK;
  eb_hmac mac;
  EB_ENSURE(session->bridge == transfer->bridge, EB_ERR_ARGUMENT);
  EB_TRY(eb_session_mac_begin(session, role, EB_MAC_TRANSFER, &mac));
  eb_mutex_lock(&transfer->lock);
  hash_account(transfer, &mac);
  eb_mutex_unlock(&transfer->lock);
  eb_hmac_end(&mac, out);
done:
  return status;
}

eb_status eb_transfer_commit_mac(eb_session *session, eb_transfer *transfer, uint8_t *mac, size_t mac_cap,
                                 size_t *mac_len) {
  eb_status status = EB_OK;
  EB_TRY(eb_session_usable(session));
  EB_TRY(usable(transfer));
  EB_ENSURE(mac != NULL && mac_len != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(mac_cap >= eb_suite_find(session->suite)->hash_size, EB_ERR_BUFFER);
  EB_TRY(commit_mac(session, session->role, transfer, mac));
  *mac_len = eb_suite_find(session->suite)->hash_size;
done:
  return status;
}

eb_status eb_transfer_check_commit_mac(eb_session *session, eb_transfer *transfer, const uint8_t *mac,
                                       size_t mac_len) {
  eb_status status = EB_OK;
  uint8_t expected[EB_MAX_MAC_SIZE];
  EB_TRY(eb_session_usable(session));
  EB_TRY(usable(transfer));
  EB_ENSURE(mac != NULL, EB_ERR_ARGUMENT);
  EB_TRY(commit_mac(session, eb_session_peer(session), transfer, expected));
  EB_ENSURE(mac_len == eb_suite_find(session->suite)->hash_size && eb_equal(mac, expected, mac_len),
            EB_ERR_MAC);
done:
  OPENSSL_cleanse(expected, sizeof expected);
  return status;
}
