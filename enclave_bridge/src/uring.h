/*
 * One io_uring, by raw system calls (io_uring(7)): reads of files, nothing else.
 *
 * A ring restricts itself when it is made: the kernel takes no other operation from it, so its
 * descriptor gives whoever breaks in here no way around a seccomp filter. It has no thread of the
 * kernel and is used by one thread at a time. Never more than EB_URING_DEPTH requests are in
 * flight, and the completion queue has room for twice as many: it cannot overflow.
 */
#ifndef EB_URING_H
#define EB_URING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EB_URING_DEPTH 4u /* a power of two */

struct io_uring_sqe;
struct io_uring_cqe;

typedef struct {
  int fd; /* -1: there is no ring */
  bool registered; /* the memory is pinned: requests need not look it up */
  uint8_t *rings;
  size_t rings_len;
  struct io_uring_sqe *requests;
  size_t requests_len;
  uint32_t *sq_head, *sq_tail, *sq_array, *cq_head, *cq_tail;
  uint32_t sq_mask, cq_mask;
  struct io_uring_cqe *completions;
} eb_uring;

/* False, with fd -1, where the kernel has no io_uring with restrictions (Linux 5.10), or does not let
 * us: kernel.io_uring_disabled, seccomp, a limit. All reads go to `memory`, which is
 * registered where the kernel can pin it: not memfd_secret's. That is no condition. */
bool eb_uring_open(eb_uring *ring, uint8_t *memory, size_t len);
/* With nothing in flight. In a forked child only the descriptor is closed. */
void eb_uring_close(eb_uring *ring, bool forked);

/* Puts a read of len bytes of the file at offset into the queue, which has room; `id` comes back with
 * its completion. */
void eb_uring_queue(eb_uring *ring, uint32_t id, int fd, uint64_t offset, uint8_t *at, size_t len);
/* Hands the queue to the kernel and, with `wait`, sleeps until something has completed. May return
 * early; what the kernel did not take stays queued. */
void eb_uring_enter(eb_uring *ring, bool wait);
/* Takes back a request that the kernel did not take. False when there is none. */
bool eb_uring_withdraw(eb_uring *ring, uint32_t *id);
/* The next completion: bytes read, or an errno below zero. False when there is none yet. */
bool eb_uring_reap(eb_uring *ring, uint32_t *id, int *result);

#endif
