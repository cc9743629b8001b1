#include "serve.h"

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bridge.h"
#include "guard.h"

/* ---- parts and replies ----------------------------------------------------------------------- */

static size_t unit_of(eb_bulk bulk) { return bulk == EB_BULK_BYTES ? 1 : EB_RECORD_SIZE; }

static size_t largest_part(eb_bulk bulk) {
  return bulk == EB_BULK_BYTES ? EB_PART_BYTES : EB_PART_PAGES * unit_of(bulk);
}

/* Takes what is behind the first `at` bytes of a message of `len` bytes as a part, if it is whole units and no more than
 * was announced. */
static bool accept_part(eb_job *job, const uint8_t *message, size_t len, size_t at) {
  const eb_bulk bulk = eb_rows[job->call.op].bulk;
  job->part = message + at;
  job->part_at = at;
  job->part_len = len - at;
  job->broken = job->part_len > job->call.bulk_len - job->taken || job->part_len > largest_part(bulk) ||
                job->part_len % unit_of(bulk) != 0;
  job->taken += job->part_len;
  return !job->broken;
}

eb_status eb_job_arrived(eb_job *job, size_t at_least, size_t *arrived) {
  size_t of_message = 0;
  if (!job->broken)
    job->broken = eb_ring_arrived(&job->lane->calls, job->part_at + at_least, EB_RING_FOREVER, &of_message) != EB_OK;
  if (job->broken) return EB_ERR_BRIDGE_DIED;
  *arrived = of_message - job->part_at;
  return EB_OK;
}

void eb_job_made(eb_job *job, size_t len) { (void)eb_ring_consume_some(&job->lane->calls, job->part_at + len); }

/* Consumes the part, or the call if it has none. A call that failed has not waited for all of it. */
static void leave_part(eb_job *job) {
  size_t arrived = 0;
  if (eb_job_arrived(job, job->part_len, &arrived) == EB_OK) eb_ring_consume(&job->lane->calls);
}

bool eb_job_next(eb_job *job) {
  eb_ring *calls = &job->lane->calls;
  const uint8_t *message = NULL;
  size_t len = 0, arrived = 0;
  if (job->broken || job->taken == job->call.bulk_len) return false;
  leave_part(job);
  if (job->broken) return false;
  const bool grows = eb_rows[job->call.op].bulk != EB_BULK_BYTES;
  const eb_status status = grows ? eb_ring_peek_growing(calls, EB_RING_FOREVER, &message, &len, &arrived)
                                 : eb_ring_peek(calls, EB_RING_FOREVER, &message, &len);
  job->broken = status != EB_OK || !accept_part(job, message, len, 0) || job->part_len == 0;
  return !job->broken;
}

uint8_t *eb_job_room(eb_job *job, size_t len) {
  job->room = NULL;
  if (!job->broken) job->broken = eb_ring_reserve(&job->lane->replies, sizeof job->reply + len, EB_RING_FOREVER,
                                                  &job->room) != EB_OK;
  return job->broken ? NULL : job->room + sizeof job->reply;
}

void eb_job_send(eb_job *job, size_t len, bool final) {
  const size_t head = len > 0 ? sizeof job->reply : EB_REPLY_HEADER + job->reply.small_len;
  if (job->broken) return;
  job->reply.final = final;
  memcpy(job->room, &job->reply, head);
  job->broken = eb_ring_publish(&job->lane->replies, head + len) != EB_OK;
}

/* ---- one call --------------------------------------------------------------------------------- */

/* The descriptors that came with the call; -1 where none did. There is room for these alone: the kernel drops what
 * else a message holds. */
static void receive_descriptors(int socket, uint32_t count, int fds[EB_CALL_DESCRIPTORS]) {
  union {
    struct cmsghdr header;
    uint8_t bytes[CMSG_SPACE(EB_CALL_DESCRIPTORS * sizeof(int))];
  } control;
  uint8_t byte;
  struct iovec data = {&byte, 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
                           .msg_controllen = CMSG_LEN(count * sizeof(int))};
  for (uint32_t i = 0; i < EB_CALL_DESCRIPTORS; i++) fds[i] = -1;
  if (count == 0 || recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0) return;
  const struct cmsghdr *found = CMSG_FIRSTHDR(&message);
  if (found == NULL || found->cmsg_level != SOL_SOCKET || found->cmsg_type != SCM_RIGHTS) return;
  const size_t held = found->cmsg_len - CMSG_LEN(0);
  memcpy(fds, CMSG_DATA(found), held < count * sizeof(int) ? held : count * sizeof(int));
}

static bool gather(eb_job *job) {
  size_t filled = 0;
  do {
    memcpy(job->lane->gathered + filled, job->part, job->part_len);
    filled += job->part_len;
  } while (eb_job_next(job));
  job->bulk = job->lane->gathered;
  return !job->broken;
}

/* Resolves handles, makes the call, gives the handles back. */
static eb_status run(eb_job *job, const eb_row *row) {
  eb_handles *handles = &job->lane->server->handles;
  eb_status status = EB_OK;
  size_t held = 0;
  for (; held < EB_CALL_HANDLES; held++) {
    const uint64_t number = job->call.handle[held];
    eb_kind kind = row->kind[held];
    if (kind == EB_KIND_NONE || kind == EB_KIND_ANY) continue;
    const bool maybe = kind == EB_KIND_MAYBE_TRANSFER || kind == EB_KIND_MAYBE_SEALING;
    if (number == 0 && maybe) continue;
    if (maybe) kind = kind == EB_KIND_MAYBE_TRANSFER ? EB_KIND_TRANSFER : EB_KIND_SEALING;
    status = eb_handles_take(handles, kind, number, &job->object[held]);
    if (status != EB_OK) break;
  }
  if (status == EB_OK) status = row->run(job);
  while (held-- > 0)
    if (job->object[held] != NULL) eb_handles_give(handles, job->call.handle[held]);
  return status;
}

/* Consumes the message and those of the call's parts. False when it is not a call of this protocol. */
static bool serve_call(eb_lane *lane, const uint8_t *message, size_t len) {
  eb_job job = {.lane = lane};
  if (len < sizeof job.call) return false;
  memcpy(&job.call, message, sizeof job.call); /* the only look at it */
  if (job.call.op >= EB_OPS) return false;
  const eb_row *row = &eb_rows[job.call.op];
  if (job.call.small_len < row->small_least || job.call.small_len > row->small_most) return false;
  if (job.call.bulk_len > 0 && row->bulk == EB_BULK_NONE) return false;
  if (row->bulk == EB_BULK_BYTES && job.call.bulk_len > EB_MAX_MESSAGE_SIZE) return false;
  if (!accept_part(&job, message, len, sizeof job.call)) return false;
  receive_descriptors(lane->server->socket, row->descriptors, job.fds);
  eb_ring_restart(&lane->replies);

  eb_status status = EB_OK;
  if (row->bulk == EB_BULK_BYTES && !gather(&job)) return false;
  status = run(&job, row);
  while (eb_job_next(&job)) continue; /* what a failed call left */
  for (uint32_t i = 0; i < EB_CALL_DESCRIPTORS; i++)
    if (job.fds[i] >= 0) close(job.fds[i]);
  leave_part(&job); /* before the caller goes on: its next call is to find the ring empty */
  job.reply.status = (int32_t)status;
  if (!job.reply.final && eb_job_room(&job, 0) != NULL) eb_job_send(&job, 0, true);
  eb_lane_give(lane->server->bridge, job.used.lane, job.used.pages);
  return !job.broken;
}

bool eb_lane_serve(eb_lane *lane) {
  for (;;) {
    const uint8_t *message = NULL;
    size_t len = 0;
    const eb_status status = eb_ring_peek(&lane->calls, EB_RING_FOREVER, &message, &len);
    if (status == EB_ERR_RING_CLOSED) return true;
    if (status != EB_OK || !serve_call(lane, message, len)) return false;
  }
}

/* ---- threads ----------------------------------------------------------------------------------- */

static void close_lane(eb_lane *lane) {
  eb_ring_close(&lane->calls);
  eb_ring_close(&lane->replies);
}

void (*eb_server_violated)(eb_lane *lane) = close_lane;

static void *lane_thread(void *argument) {
  eb_lane *lane = argument;
  atomic_fetch_add(&lane->server->started, 1);
  if (!eb_lane_serve(lane)) eb_server_violated(lane);
  return NULL;
}

/* ---- set-up ------------------------------------------------------------------------------------- */

static eb_status open_area(eb_server *server) {
  eb_status status = EB_OK;
  server->area_len = server->lane_count * eb_lane_bytes();
  server->area_fd = memfd_create("pagegate-bridge", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EB_ENSURE(server->area_fd >= 0, EB_ERR_MEMORY);
  EB_ENSURE(ftruncate(server->area_fd, (off_t)server->area_len) == 0, EB_ERR_MEMORY);
  /* Nobody can cut it under the other's feet. */
  EB_ENSURE(fcntl(server->area_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0, EB_ERR_MEMORY);
  void *area = mmap(NULL, server->area_len, PROT_READ | PROT_WRITE, MAP_SHARED, server->area_fd, 0);
  EB_ENSURE(area != MAP_FAILED, EB_ERR_MEMORY);
  server->area = area;
done:
  return status;
}

static eb_status open_lane(eb_server *server, uint32_t index) {
  eb_lane *lane = &server->lanes[index];
  uint8_t *calls = eb_lane_at(server->area, index), *replies = calls + eb_ring_stride();
  eb_status status = EB_OK;
  lane->server = server;
  EB_TRY(eb_ring_format(calls, eb_ring_stride()));
  EB_TRY(eb_ring_format(replies, eb_ring_stride()));
  EB_TRY(eb_ring_attach(&lane->calls, EB_RING_CONSUMER, calls, eb_ring_stride()));
  EB_TRY(eb_ring_attach(&lane->replies, EB_RING_PRODUCER, replies, eb_ring_stride()));
  lane->gathered = malloc(EB_MAX_MESSAGE_SIZE);
  EB_ENSURE(lane->gathered != NULL, EB_ERR_MEMORY);
done:
  return status;
}

eb_status eb_server_open(eb_server *server, const eb_setup *setup, int socket) {
  eb_status status = EB_OK;
  char kernel[sizeof setup->gcm_kernel];
  memset(server, 0, sizeof *server);
  server->area_fd = -1;
  server->socket = socket;
  EB_ENSURE(setup->version == EB_WIRE_VERSION, EB_ERR_ARGUMENT);
  EB_ENSURE(setup->lanes >= 1 && setup->lanes <= EB_MAX_LANES, EB_ERR_ARGUMENT);
  memcpy(kernel, setup->gcm_kernel, sizeof kernel);
  EB_ENSURE(memchr(kernel, 0, sizeof kernel) != NULL, EB_ERR_ARGUMENT);
  server->lane_count = setup->lanes;
  const eb_bridge_options options = {.max_sessions = setup->max_sessions,
                                     .max_handshakes = setup->max_handshakes,
                                     .max_guards = setup->max_guards,
                                     .gcm_kernel = kernel[0] != 0 ? kernel : NULL,
                                     .file_io = "pread"}; /* io_uring's requests pass a filter by */
  EB_TRY(eb_bridge_open(&options, &server->bridge)); /* bounds both counts */
  EB_TRY(eb_handles_open(&server->handles, setup->max_sessions + setup->max_handshakes + EB_MAX_OTHERS));
  EB_TRY(open_area(server));
  for (uint32_t i = 0; i < server->lane_count; i++) EB_TRY(open_lane(server, i));
done:
  if (status != EB_OK) eb_server_close(server);
  return status;
}

eb_status eb_server_start(eb_server *server) {
  eb_status status = EB_OK;
  for (uint32_t i = 0; i < server->lane_count; i++) {
    EB_ENSURE(pthread_create(&server->lanes[i].thread, NULL, lane_thread, &server->lanes[i]) == 0, EB_ERR_MEMORY);
    server->lanes[i].running = true;
  }
  while (atomic_load(&server->started) < server->lane_count) sched_yield();
done:
  return status;
}

void eb_server_close(eb_server *server) {
  for (uint32_t i = 0; i < server->lane_count; i++) {
    eb_lane *lane = &server->lanes[i];
    close_lane(lane);
    if (lane->running) pthread_join(lane->thread, NULL);
    free(lane->gathered);
  }
  eb_handles_close(&server->handles);
  if (server->area != NULL) munmap(server->area, server->area_len);
  if (server->area_fd >= 0) close(server->area_fd);
  eb_bridge_free(server->bridge);
  memset(server, 0, sizeof *server);
  server->area_fd = -1;
}
