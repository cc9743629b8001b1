/*
 * One direction of a shared-memory channel: a lock-free ring of contiguous messages of any length,
 * one producer, one consumer, usually in two processes that do not trust each other.
 *
 * Everything in the shared memory may be written by the peer at any time. So each end keeps its own
 * position and every limit in its private eb_ring, copies an index or a length of the peer once,
 * checks the copy, and uses only that. What does not pass is EB_ERR_RING_CORRUPT, for good. A message
 * itself stays hostile memory: the consumer must read it once, and a producer that reads it back finds what the peer
 * has left there.
 *
 * Nothing here makes a system call while the peer keeps up. An end that has to wait spins for as long
 * as waits have lately been worth it, after 10 us offering its core to other threads, then sleeps on
 * a futex; the other end wakes it only if it says that it sleeps. Where a thread that was offered the
 * core kept it, it sleeps instead of offering for a while: the scheduler puts a sleeper first that is woken. A peer
 * that lies about sleeping can at worst make an end sleep until nap_ns is over.
 *
 * A message may grow: its bytes are told as they are put, and the consumer tells how many it is through with, so both
 * work on one message at a time. That costs a store each, no fence: only the last of them is sure to be seen by one that
 * falls asleep at that moment. So a producer puts all of a message before it waits for the consumer.
 *
 * An end belongs to one thread at a time; only eb_ring_close may be called from another.
 * model/ring.pml checks wrapping, growing and sleeping, fuzz/fuzz_ring.c plays the peer that writes what it likes.
 */
#ifndef EB_RING_H
#define EB_RING_H

#include <stdatomic.h>
#include <stdbool.h>

#include "enclave_bridge.h"

#define EB_RING_MIN_CAPACITY ((size_t)4096)
#define EB_RING_MAX_CAPACITY ((size_t)64 << 20)
#define EB_RING_CONTROL ((size_t)4096)  /* bytes before the data */
#define EB_RING_SLOT ((size_t)64)       /* messages begin at multiples of this */
#define EB_RING_HEADER ((size_t)16)     /* before each message; a record's ciphertext is then 64-byte aligned */
#define EB_RING_FOREVER UINT64_MAX      /* as a deadline */

typedef enum { EB_RING_PRODUCER = 1, EB_RING_CONSUMER = 2 } eb_ring_end;

typedef struct eb_ring_control eb_ring_control;

/* One end's private account. Initialised by eb_ring_attach; nothing to free. */
typedef struct {
  eb_ring_control *shared;
  uint8_t *data;
  uint64_t capacity;
  uint64_t life;
  eb_ring_end end;
  uint64_t own;      /* bytes that this end has published or consumed, ever */
  uint64_t peer;     /* the same of the peer, as last seen and checked */
  uint64_t skip;     /* bytes up to the end of the data that the current message leaves out */
  uint64_t begin;    /* where the current message is, or the last one: a position, past what is left out */
  size_t current;    /* length reserved, or of the message looked at */
  bool held;         /* there is a current message */
  bool growing;      /* producer: some of it was told, and not all */
  bool restart;      /* eb_ring_restart's wish */
  bool corrupt;
  atomic_bool closed; /* by eb_ring_close of this end */
  uint64_t spin_ns;  /* how long the next wait spins before it sleeps */
  uint64_t waits;
  uint64_t crowded_until; /* others have work for this core without end; 0, or the time from which to try again */
  /* May be changed after eb_ring_attach. */
  uint64_t spin_limit_ns; /* 0: never spin (the default where there is one CPU) */
  uint64_t nap_ns;        /* longest sleep between two looks; short where a futex does not reach the peer */
} eb_ring;

/* Shared bytes for a capacity (a power of two from EB_RING_MIN_CAPACITY to EB_RING_MAX_CAPACITY),
 * control block included; 0 for any other capacity. */
size_t eb_ring_bytes(size_t capacity);
/* The longest message. Half the data, so that one fits wherever the last one ended. */
size_t eb_ring_max_message(size_t capacity);

/* Makes an empty ring; by the creator only, before either end attaches. Ends of a former ring in the same
 * memory find theirs closed. `memory` is aligned to EB_RING_SLOT and shared (mmap). EB_ERR_LENGTH when bytes is not what eb_ring_bytes returns. */
EB_MUST_USE eb_status eb_ring_format(void *memory, size_t bytes);
/* Attaches one end, once in the life of the ring. `memory` must stay mapped, and must not be cut by a
 * hostile creator (seal a memfd with F_SEAL_SHRINK). EB_ERR_ARGUMENT, EB_ERR_LENGTH,
 * EB_ERR_RING_CORRUPT: it was not formatted for this size. */
EB_MUST_USE eb_status eb_ring_attach(eb_ring *ring, eb_ring_end end, void *memory, size_t bytes);

/* Deadlines are CLOCK_MONOTONIC nanoseconds; one that is past (0) means not to wait. */
uint64_t eb_ring_now(void);

/* Producer: waits for room for a message of up to len bytes. Reserving again drops the former
 * reservation. EB_ERR_LENGTH (more than eb_ring_max_message), EB_ERR_RING_TIMEOUT,
 * EB_ERR_RING_CLOSED (by either end), EB_ERR_RING_CORRUPT. */
EB_MUST_USE eb_status eb_ring_reserve(eb_ring *ring, size_t len, uint64_t deadline_ns, uint8_t **room);
/* Producer: makes the first len bytes of the reserved room a message. EB_ERR_STATE without a
 * reservation, EB_ERR_LENGTH when len is more than was reserved; nothing is published then. */
eb_status eb_ring_publish(eb_ring *ring, size_t len);
/* Producer: tells that the first len bytes of the reserved room are there; the message is as long as was reserved, and
 * ends with the call that tells all of it. EB_ERR_STATE, EB_ERR_LENGTH: more than that, or less than before. */
eb_status eb_ring_grow(eb_ring *ring, size_t len);
/* Producer: waits until the consumer is through with at_least bytes of the message that grew last, and says how many it
 * is through with (up to a slot more than it told). EB_ERR_RING_TIMEOUT: *len says how many all the same. EB_ERR_STATE:
 * not all of it was told, EB_ERR_LENGTH, EB_ERR_RING_CLOSED, EB_ERR_RING_CORRUPT. */
EB_MUST_USE eb_status eb_ring_consumed(eb_ring *ring, size_t at_least, uint64_t deadline_ns, size_t *len);
/* Producer: the next message goes to the start of the data, if it finds the ring empty and has room there before where
 * it would have gone. Memory used again is still in the caches of both ends, which the rest of the ring is not. */
void eb_ring_restart(eb_ring *ring);

/* Consumer: waits for a message; it stays valid until eb_ring_consume, and the same one is returned
 * until then. What the producer published before it closed still comes.
 * EB_ERR_RING_TIMEOUT, EB_ERR_RING_CLOSED, EB_ERR_RING_CORRUPT. */
EB_MUST_USE eb_status eb_ring_peek(eb_ring *ring, uint64_t deadline_ns, const uint8_t **message, size_t *len);
/* Consumer: as eb_ring_peek, but a message that grows is there as soon as the producer has begun it, and *arrived says how
 * many of its bytes are. */
EB_MUST_USE eb_status eb_ring_peek_growing(eb_ring *ring, uint64_t deadline_ns, const uint8_t **message, size_t *len,
                                           size_t *arrived);
/* Consumer: waits for at_least bytes of the message; *arrived says how many there are. As eb_ring_peek, and EB_ERR_STATE,
 * EB_ERR_LENGTH: it is not that long. */
EB_MUST_USE eb_status eb_ring_arrived(eb_ring *ring, size_t at_least, uint64_t deadline_ns, size_t *arrived);
/* Consumer: tells that it is through with the first len bytes of the message, which have arrived; the message stays.
 * EB_ERR_STATE, EB_ERR_LENGTH. */
eb_status eb_ring_consume_some(eb_ring *ring, size_t len);
/* Consumer: gives the room of the message back; nothing without one, or while it grows. */
void eb_ring_consume(eb_ring *ring);

/* Ends the ring for both, from either end and any thread; who sleeps wakes. Safe to repeat. */
void eb_ring_close(eb_ring *ring);

#endif
