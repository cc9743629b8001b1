#include "ring.h"

#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"
#include "pause.h"

#define MAGIC UINT64_C(0x31676e6972626570) /* "pebring1" */
#define APART 128 /* two cache lines: the prefetcher fetches them in pairs */
#define SECOND UINT64_C(1000000000)
#define SPIN_LIMIT_NS UINT64_C(50000) /* about what a wake-up takes in a virtual machine */
#define FIRST_OFFER_NS UINT64_C(10000) /* when one that spins lets another thread have the core: a wait for a page is over */
#define OFFER_NS UINT64_C(2000)         /* how often afterwards */
#define TAKEN_NS UINT64_C(1000000) /* a thread that keeps an offered core for so long has no end of work */
#define CROWDED_NS UINT64_C(100000000) /* how long nothing is offered then */
#define TRY_AGAIN 8u
#define NAP_NS UINT64_C(100000000)
#define LOOKS_PER_CLOCK 16
/* The first looks follow each other closely, later ones after longer pauses, which leave more to the other thread of the core. */
#define CLOSE_LOOKS (2 * LOOKS_PER_CLOCK)
#define LATER_PAUSES 4

/* What one end tells the other, written by that end alone, but for `sleeping`, which the other end
 * takes back when it wakes it. The position changes with every message; the rest is read with every
 * message and seldom changes, so it has a line of its own. */
typedef struct {
  _Alignas(APART) _Atomic uint64_t position;
  _Alignas(APART) _Atomic uint32_t sleeping; /* the futex */
  _Atomic uint32_t closed; // cppcheck-suppress unusedStructMember
  _Atomic uint64_t wake_at; /* the position of the other end from which waking is worth it */
} side;

struct eb_ring_control {
  _Alignas(APART) uint64_t magic;
  uint64_t capacity;
  _Atomic uint64_t life; /* changes when the ring is made anew: an end of a former one must not go on */
  side producer, consumer;
};

_Static_assert(sizeof(eb_ring_control) <= EB_RING_CONTROL, "the control block has room");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "atomics work between processes");

/* The first word of a header: kind in the high half, length in the low one. */
enum { MESSAGE = 0x4547534d, GROWING = 0x574f5247, SKIP = 0x50494b53 };

static side *own_side(const eb_ring *ring) {
  return ring->end == EB_RING_PRODUCER ? &ring->shared->producer : &ring->shared->consumer;
}

static side *peer_side(const eb_ring *ring) {
  return ring->end == EB_RING_PRODUCER ? &ring->shared->consumer : &ring->shared->producer;
}

static uint64_t slots(size_t len) { return (len + EB_RING_HEADER + EB_RING_SLOT - 1) & ~(uint64_t)(EB_RING_SLOT - 1); }

static uint64_t offset_of(const eb_ring *ring, uint64_t position) { return position & (ring->capacity - 1); }

static _Atomic uint64_t *header_at(const eb_ring *ring, uint64_t offset) {
  return (_Atomic uint64_t *)(void *)(ring->data + offset);
}

/* ---- set-up ------------------------------------------------------------------------------- */

size_t eb_ring_bytes(size_t capacity) {
  if (capacity < EB_RING_MIN_CAPACITY || capacity > EB_RING_MAX_CAPACITY || (capacity & (capacity - 1)) != 0) return 0;
  return EB_RING_CONTROL + capacity;
}

size_t eb_ring_max_message(size_t capacity) {
  return eb_ring_bytes(capacity) == 0 ? 0 : capacity / 2 - EB_RING_HEADER;
}

static eb_status check_memory(const void *memory, size_t bytes) {
  if (memory == NULL || (uintptr_t)memory % EB_RING_SLOT != 0) return EB_ERR_ARGUMENT;
  if (bytes < EB_RING_CONTROL || eb_ring_bytes(bytes - EB_RING_CONTROL) != bytes) return EB_ERR_LENGTH;
  return EB_OK;
}

eb_status eb_ring_format(void *memory, size_t bytes) {
  eb_status status = check_memory(memory, bytes);
  if (status != EB_OK) return status;
  eb_ring_control *control = memory;
  const uint64_t life = atomic_load(&control->life) + 1;
  memset(control, 0, EB_RING_CONTROL);
  atomic_store(&control->life, life);
  control->magic = MAGIC;
  control->capacity = bytes - EB_RING_CONTROL;
  return EB_OK;
}

static bool one_cpu(void) {
  cpu_set_t cpus;
  return sched_getaffinity(0, sizeof cpus, &cpus) != 0 || CPU_COUNT(&cpus) < 2;
}

eb_status eb_ring_attach(eb_ring *ring, eb_ring_end end, void *memory, size_t bytes) {
  eb_status status = EB_OK;
  EB_ENSURE(ring != NULL && (end == EB_RING_PRODUCER || end == EB_RING_CONSUMER), EB_ERR_ARGUMENT);
  EB_TRY(check_memory(memory, bytes));
  const uint64_t capacity = bytes - EB_RING_CONTROL;
  eb_ring_control *control = memory;
  EB_ENSURE(control->magic == MAGIC && control->capacity == capacity, EB_ERR_RING_CORRUPT);
  memset(ring, 0, sizeof *ring);
  ring->shared = control;
  ring->data = (uint8_t *)memory + EB_RING_CONTROL;
  ring->capacity = capacity;
  ring->life = atomic_load(&control->life);
  ring->end = end;
  atomic_init(&ring->closed, false);
  ring->spin_limit_ns = one_cpu() ? 0 : SPIN_LIMIT_NS;
  ring->nap_ns = NAP_NS;
done:
  return status;
}

/* ---- the peer's words ---------------------------------------------------------------------- */

static eb_status corrupt(eb_ring *ring) {
  ring->corrupt = true;
  eb_ring_close(ring); /* an honest peer need not wait */
  return EB_ERR_RING_CORRUPT;
}

/* Takes over the peer's position if it moved on within what it may. The producer's position is at
 * most a ring's length ahead of the consumer's, the consumer's at most the producer's. */
static eb_status look(eb_ring *ring) {
  const uint64_t seen = atomic_load(&peer_side(ring)->position);
  const uint64_t limit = ring->end == EB_RING_PRODUCER ? ring->own : ring->own + ring->capacity;
  if (seen % EB_RING_SLOT != 0 || seen - ring->peer > limit - ring->peer) return corrupt(ring);
  ring->peer = seen;
  return EB_OK;
}

/* Bytes to write, or to read, by the positions known. */
static uint64_t usable_bytes(const eb_ring *ring) {
  return ring->end == EB_RING_PRODUCER ? ring->capacity - (ring->own - ring->peer) : ring->peer - ring->own;
}

/* Are there `need` bytes? EB_ERR_RING_TIMEOUT stands for "not yet". The peer's position is looked at
 * only when what is known of it is not enough. */
static eb_status ready(eb_ring *ring, uint64_t need) {
  if (atomic_load_explicit(&ring->closed, memory_order_relaxed)) return EB_ERR_RING_CLOSED;
  if (atomic_load_explicit(&ring->shared->life, memory_order_relaxed) != ring->life) return EB_ERR_RING_CLOSED;
  /* Before the position: what was published before closing is seen. */
  const bool over = atomic_load(&peer_side(ring)->closed) != 0;
  if (over && ring->end == EB_RING_PRODUCER) return EB_ERR_RING_CLOSED;
  if (usable_bytes(ring) >= need) return EB_OK;
  eb_status status = look(ring);
  if (status != EB_OK) return status;
  if (usable_bytes(ring) >= need) return EB_OK;
  return over ? EB_ERR_RING_CLOSED : EB_ERR_RING_TIMEOUT;
}

/* ---- waiting -------------------------------------------------------------------------------- */

uint64_t eb_ring_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* Not FUTEX_PRIVATE: the other end is in another process. */
static void nap(_Atomic uint32_t *word, uint64_t until_ns) {
  const struct timespec until = {.tv_sec = (time_t)(until_ns / SECOND), .tv_nsec = (long)(until_ns % SECOND)};
  syscall(SYS_futex, (void *)word, FUTEX_WAIT_BITSET, 1, &until, NULL, FUTEX_BITSET_MATCH_ANY);
}

static void wake(_Atomic uint32_t *word) {
  atomic_store(word, 0);
  syscall(SYS_futex, (void *)word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* The store of a position, or of closed, comes before this load, and the sleeper's store of
 * `sleeping` before its last look at them: all four are sequentially consistent, so at least one of
 * the two sees the other's store. If the flag is taken back in between, the futex does not sleep.
 * wake_at is stored before `sleeping`, so it is seen with it; a lie about it delays only the liar. */
static void wake_if_sleeping(side *peer, uint64_t position) {
  if (atomic_load(&peer->sleeping) != 0 && (int64_t)(position - atomic_load(&peer->wake_at)) >= 0)
    wake(&peer->sleeping);
}

/* A producer that has gone to sleep on a full ring is woken when half of it is free: woken for each message it
 * would take turns with the consumer, and each turn may wait for a core. */
static uint64_t worth_waking(const eb_ring *ring, uint64_t need) {
  return ring->end == EB_RING_PRODUCER && need < ring->capacity / 2 ? ring->capacity / 2 : need;
}

/* How often another thread was given the core of this one. */
static long switches(void) {
  struct rusage used;
  return getrusage(RUSAGE_THREAD, &used) == 0 ? used.ru_nivcsw : 0;
}

/* One that has work without end keeps an offered core for a time slice, milliseconds. Who sleeps is put before it as soon
 * as it is woken, so offers are no good for a while. A host that takes the core for as long is none of our threads. */
static void offer_core(eb_ring *ring, uint64_t now, long switches_before) {
  sched_yield();
  const uint64_t back = eb_ring_now();
  if (back - now >= TAKEN_NS && switches() != switches_before) ring->crowded_until = back + CROWDED_NS;
}

static eb_status spin(eb_ring *ring, uint64_t need, uint64_t started_ns, uint64_t until_ns) {
  eb_status status = EB_ERR_RING_TIMEOUT;
  uint64_t offer = started_ns + FIRST_OFFER_NS;
  long before = -1; /* not known: a short spin makes no system call */
  for (unsigned looks = 1; status == EB_ERR_RING_TIMEOUT; looks++) {
    if (looks % LOOKS_PER_CLOCK == 0) {
      const uint64_t now = eb_ring_now();
      if (now >= until_ns) break;
      if (now >= offer) {
        if (now < ring->crowded_until) break;
        if (before < 0) before = switches();
        offer_core(ring, now, before);
        offer = now + OFFER_NS;
      }
    }
    for (unsigned pauses = looks < CLOSE_LOOKS ? 1 : LATER_PAUSES; pauses > 0; pauses--) eb_pause_cpu();
    status = ready(ring, need);
  }
  return status;
}

static eb_status sleep_on(eb_ring *ring, uint64_t need, uint64_t deadline_ns) {
  side *me = own_side(ring);
  const uint64_t want = worth_waking(ring, need);
  eb_status status = EB_ERR_RING_TIMEOUT;
  atomic_store(&me->wake_at, ring->end == EB_RING_PRODUCER ? ring->own - (ring->capacity - want) : ring->own + want);
  for (uint64_t now = eb_ring_now(); status == EB_ERR_RING_TIMEOUT && now < deadline_ns; now = eb_ring_now()) {
    const uint64_t rest = deadline_ns - now;
    atomic_store(&me->sleeping, 1);
    status = ready(ring, want);
    if (status == EB_ERR_RING_TIMEOUT) {
      nap(&me->sleeping, now + (rest < ring->nap_ns ? rest : ring->nap_ns));
      status = ready(ring, want);
    }
  }
  atomic_store(&me->sleeping, 0);
  return status == EB_ERR_RING_TIMEOUT ? ready(ring, need) : status;
}

/* A wait that a whole spin would have ended, or nearly, makes the next spin whole; a longer one halves it. Every so many
 * waits it is whole anyway: two ends that both sleep would else wait for each other's waking up for ever. */
static uint64_t spin_budget(eb_ring *ring) {
  const bool whole = ring->waits++ % TRY_AGAIN == 0 || ring->spin_ns > ring->spin_limit_ns;
  return whole ? ring->spin_limit_ns : ring->spin_ns;
}

static eb_status wait_until_ready(eb_ring *ring, uint64_t need, uint64_t deadline_ns) {
  eb_status status = ready(ring, need);
  if (status != EB_ERR_RING_TIMEOUT || deadline_ns == 0) return status;
  const uint64_t started = eb_ring_now();
  if (started >= deadline_ns) return status;
  const uint64_t rest = deadline_ns - started, budget = spin_budget(ring);
  if (budget > 0) status = spin(ring, need, started, started + (rest < budget ? rest : budget));
  if (status != EB_ERR_RING_TIMEOUT) {
    ring->spin_ns = ring->spin_limit_ns;
    return status;
  }
  status = sleep_on(ring, need, deadline_ns);
  /* Waking up took part of this time: what was waited for came sooner. */
  const bool soon = status == EB_OK && eb_ring_now() - started <= 2 * ring->spin_limit_ns;
  ring->spin_ns = soon ? ring->spin_limit_ns : ring->spin_ns / 2;
  return status;
}

/* ---- what is told ------------------------------------------------------------------------------ */

static void tell(eb_ring *ring, uint64_t position) {
  ring->own = position;
  atomic_store(&own_side(ring)->position, position);
  wake_if_sleeping(peer_side(ring), position);
}

/* Without the order between the store and the look at `sleeping`: a peer that falls asleep at this moment may be missed,
 * and is woken by what is told next. */
static void hint(eb_ring *ring, uint64_t position) {
  side *peer = peer_side(ring);
  ring->own = position;
  atomic_store_explicit(&own_side(ring)->position, position, memory_order_release);
  if (atomic_load_explicit(&peer->sleeping, memory_order_relaxed) != 0) wake_if_sleeping(peer, position);
}

/* Bytes of the current message before a position. */
static size_t length_before(const eb_ring *ring, uint64_t position) {
  const int64_t len = (int64_t)(position - ring->begin) - (int64_t)EB_RING_HEADER;
  if (len <= 0) return 0;
  return (uint64_t)len < ring->current ? (size_t)len : ring->current;
}

/* ---- producer --------------------------------------------------------------------------------- */

static eb_status usable(const eb_ring *ring, eb_ring_end end) {
  if (ring == NULL || ring->shared == NULL || ring->end != end) return EB_ERR_ARGUMENT;
  return ring->corrupt ? EB_ERR_RING_CORRUPT : EB_OK;
}

void eb_ring_restart(eb_ring *ring) {
  if (usable(ring, EB_RING_PRODUCER) == EB_OK) ring->restart = true;
}

/* What to leave out before a message that takes `need` bytes. */
static uint64_t skip_before(eb_ring *ring, uint64_t need) {
  const uint64_t here = offset_of(ring, ring->own), to_end = ring->capacity - here;
  if (need > to_end) return to_end;
  /* With less room before it, the message and what is left out would be more than the ring holds. */
  return ring->restart && need <= here && look(ring) == EB_OK && ring->peer == ring->own ? to_end : 0;
}

eb_status eb_ring_reserve(eb_ring *ring, size_t len, uint64_t deadline_ns, uint8_t **room) {
  eb_status status = EB_OK;
  EB_TRY(usable(ring, EB_RING_PRODUCER));
  EB_ENSURE(room != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(!ring->growing, EB_ERR_STATE);
  EB_ENSURE(len <= ring->capacity / 2 - EB_RING_HEADER, EB_ERR_LENGTH);
  const uint64_t skip = skip_before(ring, slots(len));
  EB_ENSURE(!ring->corrupt, EB_ERR_RING_CORRUPT);
  ring->held = false;
  EB_TRY(wait_until_ready(ring, skip + slots(len), deadline_ns));
  ring->held = true;
  ring->skip = skip;
  ring->begin = ring->own + skip;
  ring->current = len;
  *room = ring->data + offset_of(ring, ring->begin) + EB_RING_HEADER;
done:
  return status;
}

static void put_header(eb_ring *ring, uint64_t position, uint64_t kind, uint64_t len) {
  atomic_store_explicit(header_at(ring, offset_of(ring, position)), kind << 32 | len, memory_order_relaxed);
}

static void put_headers(eb_ring *ring, uint64_t kind, size_t len) {
  if (ring->skip > 0) put_header(ring, ring->own, SKIP, 0);
  put_header(ring, ring->begin, kind, len);
}

eb_status eb_ring_publish(eb_ring *ring, size_t len) {
  eb_status status = EB_OK;
  EB_TRY(usable(ring, EB_RING_PRODUCER));
  EB_ENSURE(ring->held && !ring->growing, EB_ERR_STATE);
  EB_ENSURE(len <= ring->current, EB_ERR_LENGTH);
  put_headers(ring, MESSAGE, len);
  ring->held = ring->restart = false;
  tell(ring, ring->begin + slots(len));
done:
  return status;
}

eb_status eb_ring_grow(eb_ring *ring, size_t len) {
  eb_status status = EB_OK;
  EB_TRY(usable(ring, EB_RING_PRODUCER));
  EB_ENSURE(ring->held, EB_ERR_STATE);
  EB_ENSURE(len <= ring->current, EB_ERR_LENGTH);
  const uint64_t position = ring->begin + slots(len);
  EB_ENSURE(!ring->growing || position >= ring->own, EB_ERR_LENGTH);
  if (!ring->growing) put_headers(ring, GROWING, ring->current);
  ring->restart = false;
  ring->growing = ring->held = len < ring->current;
  if (ring->growing)
    hint(ring, position);
  else
    tell(ring, position);
done:
  return status;
}

eb_status eb_ring_consumed(eb_ring *ring, size_t at_least, uint64_t deadline_ns, size_t *len) {
  eb_status status = EB_OK;
  EB_TRY(usable(ring, EB_RING_PRODUCER));
  EB_ENSURE(len != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(!ring->held || deadline_ns == 0, EB_ERR_STATE);
  EB_ENSURE(at_least <= ring->current, EB_ERR_LENGTH);
  EB_TRY(look(ring));
  /* So much is free when the consumer is there: at least half of the ring, which is when a producer wants to be woken. */
  if (at_least > length_before(ring, ring->peer))
    status = wait_until_ready(ring, ring->capacity - (ring->own - (ring->begin + slots(at_least))), deadline_ns);
  *len = length_before(ring, ring->peer);
done:
  return status;
}

/* ---- consumer --------------------------------------------------------------------------------- */

/* The message at `own`. Its header, or that of a skip and its own, is copied once; its bounds are
 * checked against what was published and against the end of the data. */
static eb_status parse(eb_ring *ring) {
  const uint64_t available = ring->peer - ring->own;
  uint64_t offset = offset_of(ring, ring->own), skip = 0;
  uint64_t header = atomic_load_explicit(header_at(ring, offset), memory_order_relaxed);
  if (header >> 32 == SKIP) {
    skip = ring->capacity - offset;
    if (offset == 0 || skip >= available) return corrupt(ring);
    offset = 0;
    header = atomic_load_explicit(header_at(ring, offset), memory_order_relaxed);
  }
  const uint64_t len = header & UINT32_MAX, kind = header >> 32;
  if ((kind != MESSAGE && kind != GROWING) || len > ring->capacity / 2 - EB_RING_HEADER) return corrupt(ring);
  if (slots(len) > ring->capacity - offset || (kind == MESSAGE && slots(len) > available - skip)) return corrupt(ring);
  ring->held = true;
  ring->skip = skip;
  ring->begin = ring->own + skip;
  ring->current = len;
  return EB_OK;
}

/* Has all of the current message before a position arrived, which this end is not beyond? */
static bool has_arrived(const eb_ring *ring, uint64_t position) { return usable_bytes(ring) >= position - ring->own; }

eb_status eb_ring_peek_growing(eb_ring *ring, uint64_t deadline_ns, const uint8_t **message, size_t *len,
                               size_t *arrived) {
  eb_status status = EB_OK;
  EB_TRY(usable(ring, EB_RING_CONSUMER));
  EB_ENSURE(message != NULL && len != NULL && arrived != NULL, EB_ERR_ARGUMENT);
  if (!ring->held) {
    EB_TRY(wait_until_ready(ring, EB_RING_SLOT, deadline_ns));
    EB_TRY(parse(ring));
  }
  *message = ring->data + offset_of(ring, ring->begin) + EB_RING_HEADER;
  *len = ring->current;
  *arrived = length_before(ring, ring->peer);
done:
  return status;
}

eb_status eb_ring_peek(eb_ring *ring, uint64_t deadline_ns, const uint8_t **message, size_t *len) {
  size_t arrived = 0;
  eb_status status = EB_OK;
  EB_TRY(eb_ring_peek_growing(ring, deadline_ns, message, len, &arrived));
  EB_TRY(eb_ring_arrived(ring, *len, deadline_ns, &arrived));
done:
  return status;
}

eb_status eb_ring_arrived(eb_ring *ring, size_t at_least, uint64_t deadline_ns, size_t *arrived) {
  eb_status status = EB_OK;
  EB_TRY(usable(ring, EB_RING_CONSUMER));
  EB_ENSURE(arrived != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(ring->held, EB_ERR_STATE);
  EB_ENSURE(at_least <= ring->current, EB_ERR_LENGTH);
  const uint64_t position = ring->begin + slots(at_least);
  const bool wait = (int64_t)(position - ring->own) > 0 && !has_arrived(ring, position);
  if (wait) EB_TRY(wait_until_ready(ring, position - ring->own, deadline_ns));
  *arrived = length_before(ring, ring->peer);
done:
  return status;
}

eb_status eb_ring_consume_some(eb_ring *ring, size_t len) {
  eb_status status = EB_OK;
  EB_TRY(usable(ring, EB_RING_CONSUMER));
  EB_ENSURE(ring->held, EB_ERR_STATE);
  EB_ENSURE(len <= ring->current, EB_ERR_LENGTH);
  const uint64_t position = ring->begin + slots(len);
  EB_ENSURE((int64_t)(position - ring->own) >= 0 && has_arrived(ring, position), EB_ERR_LENGTH);
  hint(ring, position);
done:
  return status;
}

void eb_ring_consume(eb_ring *ring) {
  if (usable(ring, EB_RING_CONSUMER) != EB_OK || !ring->held) return;
  const uint64_t position = ring->begin + slots(ring->current);
  if (!has_arrived(ring, position)) return;
  ring->held = false;
  tell(ring, position);
}

/* ---- end --------------------------------------------------------------------------------------- */

void eb_ring_close(eb_ring *ring) {
  if (ring == NULL || ring->shared == NULL) return;
  atomic_store(&ring->closed, true);
  if (atomic_load(&ring->shared->life) != ring->life) return; /* it is others' by now */
  atomic_store(&own_side(ring)->closed, 1);
  wake(&own_side(ring)->sleeping); /* another thread of this end */
  wake(&peer_side(ring)->sleeping);
}
