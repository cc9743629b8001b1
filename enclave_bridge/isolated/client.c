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
#define BOTH_FULL_NS UINT64_C(50000) /* how long one direction is waited for before the other is looked at */
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

typedef struct {
  uint8_t *at;
  size_t records;
} place;

typedef struct {
  eb_client_lane *lane;
  eb_crossing *crossing;
  size_t sent, part;          /* bytes sent; size of the next part in units */
  place places[EB_PARTS_KEPT]; /* of parts whose records are yet to be taken, the oldest first */
  size_t kept;
} exchange;

/* So the oldest is not written over: a message is left out of the ring's end at most once on the way round. */
_Static_assert((EB_PARTS_KEPT + 1) * (EB_PART_PAGES * EB_RECORD_SIZE + EB_RING_HEADER + EB_RING_SLOT) <= EB_LANE_CAPACITY,
               "the parts that are kept fit the ring, with the next one");

static bool may_send(const exchange *x) { return x->sent < x->crossing->in_len && x->kept < EB_PARTS_KEPT; }

/* The last parts of pages that come back get smaller again, since nothing is done meanwhile while the bridge works on
 * the last one. */
static size_t next_part(const exchange *x) {
  const size_t left = x->crossing->in_len - x->sent, unit = x->crossing->in_unit;
  if (unit == 1) return left < EB_PART_BYTES ? left : EB_PART_BYTES;
  const size_t units = left / unit;
  const size_t some = x->crossing->in_place && units > EB_LAST_PART ? (2 * units + 1) / 3 : units;
  return (some < x->part ? some : x->part) * unit;
}

/* The address in a record's header: what the bridge was shown, whatever becomes of the caller's memory. */
static void note_gpas(exchange *x, const uint8_t *records, size_t len) {
  uint64_t *gpas = x->crossing->gpas;
  if (gpas == NULL) return;
  gpas += x->sent / EB_RECORD_SIZE;
  for (size_t at = 0; at < len; at += EB_RECORD_SIZE) {
    eb_record_header header;
    *gpas++ = eb_record_parse(records + at, EB_RECORD_SIZE, &header) == EB_OK ? header.gpa : UINT64_MAX;
  }
}

/* The bridge has just read the lines of the room, and a batch that has come over a network is in no cache: each line is
 * asked for before its turn. One after the other they take as long as the copy, and the CPU's own prefetcher stops at
 * the end of each page. */
static void copy_into(uint8_t *room, const uint8_t *from, size_t len) {
  enum { LINE = 64, AHEAD = 1024 };
  size_t at = 0;
  for (; len - at >= LINE; at += LINE) {
    if (len - at > AHEAD) {
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

/* What so many bytes of `in` take in the ring: pages have room for a header and a tag. */
static size_t size_across(const eb_crossing *crossing, size_t len) {
  return crossing->in_unit == EB_PAGE_SIZE ? len / EB_PAGE_SIZE * EB_RECORD_SIZE : len;
}

/* Pages go where the bridge may make records of them. */
static void put_pages(exchange *x, uint8_t *room, const uint8_t *pages, size_t n) {
  for (size_t i = 0; i < n; i++)
    copy_into(room + i * EB_RECORD_SIZE + EB_RECORD_HEADER_SIZE, pages + i * EB_PAGE_SIZE, EB_PAGE_SIZE);
  if (n > 0 && x->crossing->in_place) x->places[x->kept++] = (place){room, n};
}

/* Sends the next part, behind the call if `head` is set. EB_ERR_RING_TIMEOUT: no room yet. */
static eb_status send_part(exchange *x, size_t head, uint64_t deadline) {
  const eb_crossing *crossing = x->crossing;
  const size_t len = head > 0 && crossing->in_unit > 1 ? 0 : next_part(x); /* the bridge makes ready meanwhile */
  const size_t all = head + size_across(crossing, len);
  eb_status status = EB_OK;
  uint8_t *room = NULL;
  EB_TRY(eb_ring_reserve(&x->lane->calls, all, deadline, &room));
  memcpy(room, &crossing->call, head);
  if (crossing->in_unit == EB_PAGE_SIZE)
    put_pages(x, room + head, crossing->in + x->sent, len / EB_PAGE_SIZE);
  else if (len > 0)
    copy_into(room + head, crossing->in + x->sent, len);
  note_gpas(x, room + head, len);
  EB_TRY(eb_ring_publish(&x->lane->calls, all));
  x->sent += len;
  if (len > 0) x->part = 4 * x->part < EB_PART_PAGES ? 4 * x->part : EB_PART_PAGES;
done:
  return status;
}

/* What a part has become is copied from its place. */
static eb_status take_place(exchange *x) {
  eb_status status = EB_OK;
  EB_ENSURE(x->kept > 0, EB_ERR_RING_CORRUPT);
  const place oldest = x->places[0];
  if (x->crossing->reply.number == 1) EB_TRY(take(x->crossing, oldest.at, oldest.records * EB_RECORD_SIZE));
  memmove(&x->places[0], &x->places[1], --x->kept * sizeof oldest);
done:
  return status;
}

/* Takes a reply and its bulk data. EB_ERR_RING_TIMEOUT: none yet. */
static eb_status take_reply(exchange *x, uint64_t deadline) {
  eb_crossing *crossing = x->crossing;
  const uint8_t *message = NULL;
  size_t len = 0;
  eb_status status = EB_OK;
  EB_TRY(eb_ring_peek(&x->lane->replies, deadline, &message, &len));
  const size_t head = len < sizeof crossing->reply ? len : sizeof crossing->reply;
  EB_ENSURE(head >= EB_REPLY_HEADER, EB_ERR_RING_CORRUPT);
  memcpy(&crossing->reply, message, head);
  EB_ENSURE(crossing->reply.small_len <= head - EB_REPLY_HEADER, EB_ERR_RING_CORRUPT);
  EB_TRY(take(crossing, message + head, len - head));
  if (crossing->in_place && !crossing->reply.final) EB_TRY(take_place(x));
  eb_ring_consume(&x->lane->replies);
done:
  return status;
}

/* Parts go out and replies come in, whichever can. */
static eb_status converse(exchange *x) {
  eb_status status = EB_OK;
  bool idle = false;
  do {
    const bool more = may_send(x);
    bool moved = false;
    if (more) {
      status = send_part(x, 0, idle ? eb_ring_now() + BOTH_FULL_NS : 0);
      moved = status == EB_OK;
      EB_ENSURE(moved || status == EB_ERR_RING_TIMEOUT, status);
    }
    status = take_reply(x, more ? 0 : EB_RING_FOREVER);
    EB_ENSURE(status == EB_OK || status == EB_ERR_RING_TIMEOUT, status);
    idle = !moved && status != EB_OK;
  } while (status != EB_OK || !x->crossing->reply.final);
  EB_ENSURE(x->sent == x->crossing->in_len, EB_ERR_RING_CORRUPT);
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
  crossing->call.bulk_len = size_across(crossing, crossing->in_len);

  const bool descriptors = crossing->fd_count > 0;
  if (descriptors) {
    pthread_mutex_lock(&bridge->socket_lock);
    status = send_descriptors(bridge->socket, crossing);
  }
  if (status == EB_OK) {
    const uint32_t index = take_lane(bridge);
    exchange x = {.lane = &bridge->lanes[index], .crossing = crossing, .part = EB_FIRST_PART};
    eb_ring_restart(&x.lane->calls);
    status = send_part(&x, sizeof crossing->call, EB_RING_FOREVER);
    if (status == EB_OK) status = converse(&x);
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
