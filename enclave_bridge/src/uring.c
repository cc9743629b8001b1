#include "uring.h"

#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif

#ifdef IORING_SETUP_R_DISABLED /* Linux 5.10, of the headers; the running kernel is asked */
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static uint32_t load(const uint32_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static void store(uint32_t *at, uint32_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }

static int enrol(int fd, unsigned what, const void *argument, unsigned count) {
  return (int)syscall(__NR_io_uring_register, fd, what, argument, count);
}

/* Not inherited by a child, which must not touch the queues of its parent. */
static void *map(int fd, size_t len, off_t what) {
  void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);
  if (at == MAP_FAILED) return NULL;
  if (madvise(at, len, MADV_DONTFORK) == 0) return at;
  munmap(at, len);
  return NULL;
}

static bool map_queues(eb_uring *ring, const struct io_uring_params *made) {
  const size_t sq = made->sq_off.array + made->sq_entries * sizeof(uint32_t);
  const size_t cq = made->cq_off.cqes + made->cq_entries * sizeof(struct io_uring_cqe);
  ring->rings_len = sq > cq ? sq : cq;
  ring->requests_len = made->sq_entries * sizeof(struct io_uring_sqe);
  ring->rings = map(ring->fd, ring->rings_len, IORING_OFF_SQ_RING);
  ring->requests = map(ring->fd, ring->requests_len, IORING_OFF_SQES);
  if (ring->rings == NULL || ring->requests == NULL) return false;
  ring->sq_head = (uint32_t *)(void *)(ring->rings + made->sq_off.head);
  ring->sq_tail = (uint32_t *)(void *)(ring->rings + made->sq_off.tail);
  ring->sq_array = (uint32_t *)(void *)(ring->rings + made->sq_off.array);
  ring->cq_head = (uint32_t *)(void *)(ring->rings + made->cq_off.head);
  ring->cq_tail = (uint32_t *)(void *)(ring->rings + made->cq_off.tail);
  ring->completions = (struct io_uring_cqe *)(void *)(ring->rings + made->cq_off.cqes);
  ring->sq_mask = made->sq_entries - 1; /* entries are powers of two */
  ring->cq_mask = made->cq_entries - 1;
  return true;
}

static bool restrict_to_reads(int fd) {
  static const uint8_t allowed[] = {IORING_OP_READ, IORING_OP_READ_FIXED};
  struct io_uring_restriction rules[sizeof allowed];
  memset(rules, 0, sizeof rules);
  for (size_t i = 0; i < sizeof allowed; i++) {
    rules[i].opcode = IORING_RESTRICTION_SQE_OP;
    rules[i].sqe_op = allowed[i];
  }
  return enrol(fd, IORING_REGISTER_RESTRICTIONS, rules, sizeof allowed) == 0 &&
         enrol(fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) == 0;
}

bool eb_uring_open(eb_uring *ring, uint8_t *memory, size_t len) {
  const unsigned needed = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP;
  struct io_uring_params params;
  memset(&params, 0, sizeof params);
  params.flags = IORING_SETUP_R_DISABLED;
  *ring = (eb_uring){.fd = (int)syscall(__NR_io_uring_setup, EB_URING_DEPTH, &params)};
  if (ring->fd < 0) return false;
  if ((params.features & needed) == needed && params.sq_entries == EB_URING_DEPTH && map_queues(ring, &params)) {
    const struct iovec all = {memory, len};
    ring->registered = enrol(ring->fd, IORING_REGISTER_BUFFERS, &all, 1) == 0;
    if (restrict_to_reads(ring->fd)) return true;
  }
  eb_uring_close(ring, false);
  return false;
}

void eb_uring_close(eb_uring *ring, bool forked) {
  if (ring->fd < 0) return;
  if (!forked && ring->requests != NULL) munmap(ring->requests, ring->requests_len);
  if (!forked && ring->rings != NULL) munmap(ring->rings, ring->rings_len);
  close(ring->fd);
  ring->fd = -1;
}

void eb_uring_queue(eb_uring *ring, uint32_t id, int fd, uint64_t offset, uint8_t *at, size_t len) {
  const uint32_t tail = *ring->sq_tail, slot = tail & ring->sq_mask;
  struct io_uring_sqe *sqe = &ring->requests[slot];
  memset(sqe, 0, sizeof *sqe);
  sqe->opcode = ring->registered ? IORING_OP_READ_FIXED : IORING_OP_READ; /* fixed: of buffer 0, the only one */
  sqe->fd = fd;
  sqe->off = offset;
  sqe->addr = (uint64_t)(uintptr_t)at;
  sqe->len = (uint32_t)len;
  sqe->user_data = id;
  ring->sq_array[slot] = slot;
  store(ring->sq_tail, tail + 1);
}

void eb_uring_enter(eb_uring *ring, bool wait) {
  const uint32_t queued = *ring->sq_tail - load(ring->sq_head);
  const unsigned flags = wait ? IORING_ENTER_GETEVENTS : 0;
  if (queued == 0 && !wait) return;
  /* A signal, or no memory for now: the caller looks at the queues and comes again. */
  if (syscall(__NR_io_uring_enter, ring->fd, queued, wait ? 1 : 0, flags, NULL, 0) < 0) sched_yield();
}

bool eb_uring_withdraw(eb_uring *ring, uint32_t *id) {
  const uint32_t tail = *ring->sq_tail;
  if (tail == load(ring->sq_head)) return false;
  *id = (uint32_t)ring->requests[(tail - 1) & ring->sq_mask].user_data;
  store(ring->sq_tail, tail - 1);
  return true;
}

bool eb_uring_reap(eb_uring *ring, uint32_t *id, int *result) {
  const uint32_t head = *ring->cq_head;
  if (head == load(ring->cq_tail)) return false;
  const struct io_uring_cqe *cqe = &ring->completions[head & ring->cq_mask];
  *id = (uint32_t)cqe->user_data;
  *result = cqe->res;
  store(ring->cq_head, head + 1);
  return true;
}

#else /* built where there is no io_uring to build against */

bool eb_uring_open(eb_uring *ring, uint8_t *memory, size_t len) {
  (void)memory;
  (void)len;
  ring->fd = -1;
  return false;
}
void eb_uring_close(eb_uring *ring, bool forked) { (void)ring, (void)forked; }
void eb_uring_queue(eb_uring *ring, uint32_t id, int fd, uint64_t offset, uint8_t *at, size_t len) {
  (void)ring, (void)id, (void)fd, (void)offset, (void)at, (void)len;
}
void eb_uring_enter(eb_uring *ring, bool wait) { (void)ring, (void)wait; }
bool eb_uring_withdraw(eb_uring *ring, uint32_t *id) { return (void)ring, (void)id, false; }
bool eb_uring_reap(eb_uring *ring, uint32_t *id, int *result) { return (void)ring, (void)id, (void)result, false; }

#endif
