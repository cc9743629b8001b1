#include "client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guard.h"

#define CANARY UINT64_C(0x656e636c61766532)
/* As long as 256 records take at most: nothing comes back while they are opened, and to be woken afterwards takes as long
 * as half of them. */
#define SPIN_NS UINT64_C(500000)

/* ---- life ---------------------------------------------------------------------------------- */

eb_status eb_client_new(eb_bridge **bridge) {
  eb_status status = EB_OK;
  eb_bridge *made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  atomic_init(&made->references, 1);
  made->socket = made->pidfd = -1;
  pthread_mutex_init(&made->lock, NULL);
  pthread_mutex_init(&made->socket_lock, NULL);
  pthread_cond_init(&made->lane_given, NULL);
  void *page = mmap(NULL, sizeof CANARY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EB_ENSURE(page != MAP_FAILED, EB_ERR_MEMORY);
  made->canary = page;
  EB_ENSURE(madvise(page, sizeof CANARY, MADV_WIPEONFORK) == 0, EB_ERR_MEMORY);
  *made->canary = CANARY;
  *bridge = made;
  made = NULL;
done:
  if (made != NULL) eb_client_free(made);
  return status;
}

static bool here(const eb_bridge *bridge) { return bridge->canary != NULL && *bridge->canary == CANARY; }

eb_status eb_client_usable(const eb_bridge *bridge) {
  if (bridge == NULL) return EB_ERR_ARGUMENT;
  return here(bridge) ? EB_OK : EB_ERR_FORKED;
}

static eb_status attach_lane(eb_bridge *bridge, uint32_t index) {
  eb_client_lane *lane = &bridge->lanes[index];
  uint8_t *calls = eb_lane_at(bridge->area, index);
  eb_status status = EB_OK;
  EB_TRY(eb_ring_attach(&lane->calls, EB_RING_PRODUCER, calls, eb_ring_stride()));
  EB_TRY(eb_ring_attach(&lane->replies, EB_RING_CONSUMER, calls + eb_ring_stride(), eb_ring_stride()));
  if (lane->replies.spin_limit_ns != 0) lane->replies.spin_limit_ns = lane->calls.spin_limit_ns = SPIN_NS;
  bridge->free_lanes[bridge->free_count++] = index;
done:
  return status;
}

eb_status eb_client_attach(eb_bridge *bridge, int area_fd, uint32_t lanes) {
  eb_status status = EB_OK;
  struct stat facts;
  bool locked = false;
  EB_ENSURE(lanes >= 1 && lanes <= EB_MAX_LANES, EB_ERR_ARGUMENT);
  bridge->area_len = lanes * eb_lane_bytes();
  EB_ENSURE(fstat(area_fd, &facts) == 0 && (uint64_t)facts.st_size == bridge->area_len, EB_ERR_BRIDGE_DIED);
  void *area = mmap(NULL, bridge->area_len, PROT_READ | PROT_WRITE, MAP_SHARED, area_fd, 0);
  EB_ENSURE(area != MAP_FAILED, EB_ERR_MEMORY);
  bridge->area = area;
  EB_ENSURE(madvise(area, bridge->area_len, MADV_DONTFORK) == 0, EB_ERR_MEMORY);
  locked = pthread_mutex_lock(&bridge->lock) == 0;
  for (uint32_t i = 0; i < lanes; i++) EB_TRY(attach_lane(bridge, i));
  bridge->lane_count = lanes;
  bridge->attached = true;
  EB_ENSURE(!atomic_load(&bridge->dead), EB_ERR_BRIDGE_DIED); /* it ended meanwhile */
done:
  if (locked) pthread_mutex_unlock(&bridge->lock);
  return status;
}

void eb_client_end(eb_bridge *bridge) {
  pthread_mutex_lock(&bridge->lock);
  atomic_store(&bridge->dead, true);
  for (uint32_t i = 0; bridge->attached && i < bridge->lane_count; i++) {
    eb_ring_close(&bridge->lanes[i].calls);
    eb_ring_close(&bridge->lanes[i].replies);
  }
  pthread_mutex_unlock(&bridge->lock);
}

void eb_client_free(eb_bridge *bridge) {
  if (here(bridge)) {
    eb_client_stop(bridge);
    if (bridge->area != NULL) munmap(bridge->area, bridge->area_len);
    pthread_mutex_destroy(&bridge->lock);
    pthread_mutex_destroy(&bridge->socket_lock);
    pthread_cond_destroy(&bridge->lane_given);
  } /* a forked child has neither the thread nor the lanes' memory; its locks may be held for ever */
  if (bridge->canary != NULL) munmap((void *)(uintptr_t)bridge->canary, sizeof CANARY);
  if (bridge->socket >= 0) close(bridge->socket);
  if (bridge->pidfd >= 0) close(bridge->pidfd);
  free(bridge);
}

/* ---- lanes ----------------------------------------------------------------------------------- */

/* The lane given back last is the warmest. */
static uint32_t take_lane(eb_bridge *bridge) {
  pthread_mutex_lock(&bridge->lock);
  while (bridge->free_count == 0) pthread_cond_wait(&bridge->lane_given, &bridge->lock);
  const uint32_t index = bridge->free_lanes[--bridge->free_count];
  pthread_mutex_unlock(&bridge->lock);
  return index;
}

static void give_lane(eb_bridge *bridge, uint32_t index) {
  pthread_mutex_lock(&bridge->lock);
  bridge->free_lanes[bridge->free_count++] = index;
  pthread_cond_signal(&bridge->lane_given);
  pthread_mutex_unlock(&bridge->lock);
}

/* ---- crossing ----------------------------------------------------------------------------------- */

enum { LINE = 64, AHEAD = 2048, LOOK_PAGES = 4 };

/* The bridge has just read the lines of the room, and a batch that has come over a network is in no cache: each line is
 * asked for before its turn, beyond the end too where the next `more` bytes follow. One after the other they take as long
 * as the copy, and the CPU's own prefetcher stops at the end of each page. */
static void copy_into(uint8_t *room, const uint8_t *from, size_t len, size_t more) {
  size_t at = 0;
  for (; len - at >= LINE; at += LINE) {
    if (len + more - at > AHEAD) {
      __builtin_prefetch(from + at + AHEAD);
#if defined(__x86_64__)
      __asm__ volatile("prefetchw %0" : : "m"(room[at + AHEAD]));
#endif
    }
    memcpy(room + at, from + at, LINE);
  }
  memcpy(room + at, from + at, len - at);
}

/* Takes what has come back. */
static eb_status take(eb_crossing *crossing, const uint8_t *from, size_t len) {
  if (len > crossing->out_cap - crossing->out_len) return EB_ERR_RING_CORRUPT;
  if (len > 0) memcpy(crossing->out + crossing->out_len, from, len);
  crossing->out_len += len;
  return EB_OK;
}

/* The call, and bytes behind it and after it. */
static eb_status send_bytes(eb_client_lane *lane, const eb_crossing *crossing) {
  const size_t all = crossing->in_unit == 1 ? crossing->in_len : 0;
  eb_status status = EB_OK;
  size_t head = sizeof crossing->call;
  for (size_t sent = 0, len; head > 0 || sent < all; sent += len, head = 0) {
    uint8_t *room = NULL;
    len = all - sent < EB_PART_BYTES ? all - sent : EB_PART_BYTES;
    EB_TRY(eb_ring_reserve(&lane->calls, head + len, EB_RING_FOREVER, &room));
    memcpy(room, &crossing->call, head);
    if (len > 0) copy_into(room + head, crossing->in + sent, len, 0);
    EB_TRY(eb_ring_publish(&lane->calls, head + len));
  }
done:
  return status;
}

/* Puts a page or a record, of which `left` follow it in the part. A page goes where the bridge may make a record of it. */
static void put_one(const eb_crossing *crossing, uint8_t *room, size_t index, size_t left) {
  const size_t unit = crossing->in_unit;
  const uint8_t *from = crossing->in + index * unit;
  copy_into(unit == EB_PAGE_SIZE ? room + EB_RECORD_HEADER_SIZE : room, from, unit, left * unit);
  if (crossing->gpas != NULL) { /* as the bridge was shown it, whatever becomes of the caller's memory */
    eb_record_header header;
    const bool whole = eb_record_parse(room, EB_RECORD_SIZE, &header) == EB_OK;
    crossing->gpas[index] = whole ? header.gpa : UINT64_MAX;
  }
}

/* n pages or records from the first that was not sent. What they become in their places is taken as it is made, and looked
 * for now and then: each look may fetch the line in which the bridge tells it. */
static eb_status cross_part(eb_client_lane *lane, eb_crossing *crossing, size_t first, size_t n) {
  eb_ring *calls = &lane->calls;
  eb_status status = EB_OK;
  uint8_t *room = NULL;
  size_t put = 0, taken = crossing->in_place ? 0 : n;
  EB_TRY(eb_ring_reserve(calls, n * EB_RECORD_SIZE, EB_RING_FOREVER, &room));
  while (put < n || taken < n) {
    size_t made = 0;
    if (put < n) {
      put_one(crossing, room + put * EB_RECORD_SIZE, first + put, n - put - 1);
      EB_TRY(eb_ring_grow(calls, ++put * EB_RECORD_SIZE));
    }
    const bool wait = put == n;
    if (taken == n || (!wait && put % LOOK_PAGES != 0)) continue;
    EB_TRY(eb_ring_consumed(calls, wait ? (taken + 1) * EB_RECORD_SIZE : 0, wait ? EB_RING_FOREVER : 0, &made));
    for (made /= EB_RECORD_SIZE; taken < made; taken++)
      EB_TRY(take(crossing, room + taken * EB_RECORD_SIZE, EB_RECORD_SIZE));
  }
done:
  return status;
}

static eb_status cross_parts(eb_client_lane *lane, eb_crossing *crossing) {
  const size_t units = crossing->in_unit == 1 ? 0 : crossing->in_len / crossing->in_unit;
  eb_status status = EB_OK;
  for (size_t sent = 0, n; sent < units; sent += n) {
    n = units - sent < EB_PART_PAGES ? units - sent : EB_PART_PAGES;
    EB_TRY(cross_part(lane, crossing, sent, n));
  }
done:
  return status;
}

static eb_status take_replies(eb_client_lane *lane, eb_crossing *crossing) {
  eb_reply *reply = &crossing->reply;
  eb_status status = EB_OK;
  do {
    const uint8_t *message = NULL;
    size_t len = 0;
    EB_TRY(eb_ring_peek(&lane->replies, EB_RING_FOREVER, &message, &len));
    const size_t head = len < sizeof *reply ? len : sizeof *reply;
    EB_ENSURE(head >= EB_REPLY_HEADER, EB_ERR_RING_CORRUPT);
    memcpy(reply, message, head);
    EB_ENSURE(reply->small_len <= head - EB_REPLY_HEADER, EB_ERR_RING_CORRUPT);
    EB_TRY(take(crossing, message + head, len - head));
    eb_ring_consume(&lane->replies);
  } while (!reply->final);
done:
  return status;
}

static eb_status converse(eb_client_lane *lane, eb_crossing *crossing) {
  eb_status status = EB_OK;
  eb_ring_restart(&lane->calls);
  EB_TRY(send_bytes(lane, crossing)); /* before pages, so that the bridge makes ready while they are copied */
  EB_TRY(cross_parts(lane, crossing));
  EB_TRY(take_replies(lane, crossing));
done:
  return status;
}

static eb_status send_descriptors(int socket, const eb_crossing *crossing) {
  union {
    struct cmsghdr header;
    uint8_t bytes[CMSG_SPACE(EB_CALL_DESCRIPTORS * sizeof(int))];
  } control = {.bytes = {0}};
  uint8_t byte = 0;
  const size_t len = crossing->fd_count * sizeof(int);
  struct iovec data = {&byte, 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
                           .msg_controllen = CMSG_SPACE(len)};
  control.header.cmsg_level = SOL_SOCKET;
  control.header.cmsg_type = SCM_RIGHTS;
  control.header.cmsg_len = CMSG_LEN(len);
  memcpy(CMSG_DATA(&control.header), crossing->fds, len);
  if (sendmsg(socket, &message, MSG_NOSIGNAL) == 1) return EB_OK;
  return errno == EBADF ? EB_ERR_TARGET : EB_ERR_BRIDGE_DIED;
}

eb_status eb_cross(eb_bridge *bridge, eb_crossing *crossing) {
  eb_status status = EB_OK;
  EB_TRY(eb_client_usable(bridge));
  EB_ENSURE(!atomic_load(&bridge->dead), EB_ERR_BRIDGE_DIED);
  if (crossing->in_unit == 0) crossing->in_unit = 1;
  const bool bytes = crossing->in_unit == 1;
  crossing->call.bulk_len = bytes ? crossing->in_len : crossing->in_len / crossing->in_unit * EB_RECORD_SIZE;

  const bool descriptors = crossing->fd_count > 0;
  if (descriptors) {
    pthread_mutex_lock(&bridge->socket_lock);
    status = send_descriptors(bridge->socket, crossing);
  }
  if (status == EB_OK) {
    const uint32_t index = take_lane(bridge);
    status = converse(&bridge->lanes[index], crossing);
    if (status != EB_OK) { /* closed: the watcher did; anything else: a program that cannot be spoken with */
      eb_client_end(bridge);
      status = EB_ERR_BRIDGE_DIED;
    } else {
      status = (eb_status)crossing->reply.status;
    }
    give_lane(bridge, index);
  }
  if (descriptors) pthread_mutex_unlock(&bridge->socket_lock);
done:
  return status;
}
