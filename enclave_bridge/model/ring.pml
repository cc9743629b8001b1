/*
 * The ring of src/ring.c: positions, wrapping with skipped slots, messages that grow, and how an end falls asleep and is
 * woken. SLOTS slots, MESSAGES messages of one and two slots, so that every offset, full and
 * empty occur. Some of two slots grow: each slot is told when it is put, turned over in its place by the consumer, who
 * tells that too, and then looked at by the producer. A sleep has no end here: a lost wake-up is a deadlock, which spin
 * finds.
 *
 * .ci/model checks it as it is, then with each of these mistakes, which it must find:
 *   NO_FENCE    a position is stored without the order that a sequentially consistent store has:
 *               it may become visible after the following load of the peer's `sleeping` (x86-TSO). What is told of a
 *               part of a message that grows is stored so, but not the last of it
 *   LAST_HINT   the last of it is, by the producer
 *   BETWEEN     the producer waits for what becomes of a message that it has not told all of
 *   TOO_SOON    the consumer does not wait for the rest of a message that grows
 *   NO_RECHECK  the sleeper does not look again once it has said that it sleeps
 *   NO_COMPARE  the futex sleeps whatever the flag says by then
 *   NO_SKIP     the room that the skipped slots take is not counted
 *   LATE        a sleeper is woken only beyond the position that it asked for
 *   TOO_LONG    a message goes back to the start though it and what it leaves out are more than the ring holds
 */
#define SLOTS 4
#ifndef MESSAGES
#define MESSAGES 13 /* the last has one slot */
#endif
#define SKIPPED 255
#define SIZE(i) (1 + ((i) % 3 != 0)) /* at most SLOTS / 2 */
#define GROWS(i) ((i) % 6 == 4) /* after enough that do not, since the ring is empty afterwards */
#define TURNED 128

byte slot[SLOTS]
byte head, tail /* published and consumed slots, ever: they are not reset, as in ring.c */
bit producer_sleeps, consumer_sleeps /* the flags, which are the futexes */
bit producer_naps, consumer_naps /* asleep in the kernel */
byte producer_wake_at, consumer_wake_at /* the other's position from which to wake */

/* Stores that are not ordered wait in a buffer for a while. */
byte head_buffer, tail_buffer
bit head_waits, tail_waits
#define HINT(position, value) atomic { position##_waits == 0 -> position##_buffer = value; position##_waits = 1 }
#ifdef NO_FENCE
#define STORE(position, value) HINT(position, value)
#else
#define STORE(position, value) atomic { position##_waits == 0 -> position = value }
#endif
#ifdef LAST_HINT
#define STORE_LAST(position, value) HINT(position, value)
#else
#define STORE_LAST(position, value) STORE(position, value)
#endif
active proctype store_buffers() {
end:
  do
  :: atomic { head_waits -> head = head_buffer; head_waits = 0 }
  :: atomic { tail_waits -> tail = tail_buffer; tail_waits = 0 }
  od
}

#ifdef NO_RECHECK
#define LOOK_AGAIN(condition) false
#else
#define LOOK_AGAIN(condition) condition
#endif

#ifdef NO_COMPARE
#define STILL(flag) true
#else
#define STILL(flag) flag
#endif

#ifdef LATE
#define REACHED(position, at) ((position) > (at))
#else
#define REACHED(position, at) ((position) >= (at))
#endif

/* wait_until_ready, without the spinning: a spin is only more looks. Once asleep, an end waits for `worth`. */
#define WAIT(condition, worth, at, flag, nap, wake_at)      \
  if                                                        \
  :: condition -> skip                                      \
  :: else ->                                                \
    wake_at = at;                                           \
    do                                                      \
    :: worth -> break                                       \
    :: else ->                                              \
      flag = 1;                                             \
      if                                                    \
      :: LOOK_AGAIN(worth) -> skip                          \
      :: else ->                                            \
        atomic { if :: STILL(flag) -> nap = 1 :: else fi }; \
        nap == 0                                            \
      fi                                                    \
    od;                                                     \
    flag = 0                                                \
  fi

#ifdef TOO_LONG
#define FITS_BEFORE(size, offset) true
#else
#define FITS_BEFORE(size, offset) ((size) <= (offset))
#endif

/* wake_if_sleeping */
#define WAKE(position, flag, nap, wake_at) \
  if :: flag -> if :: REACHED(position, wake_at) -> flag = 0; nap = 0 :: else fi :: else fi

active proctype producer() {
  byte own, number, gap, need, want, at
  do
  :: number < MESSAGES ->
    d_step {
      gap = (SIZE(number) > SLOTS - own % SLOTS -> SLOTS - own % SLOTS : 0)
    }
    if /* eb_ring_restart, or not */
    :: gap == 0 && tail == own && own % SLOTS != 0 && FITS_BEFORE(SIZE(number), own % SLOTS) -> gap = SLOTS - own % SLOTS
    :: true
    fi;
    d_step {
#ifdef NO_SKIP
      need = SIZE(number);
#else
      need = gap + SIZE(number);
#endif
      want = (need < SLOTS / 2 -> SLOTS / 2 : need)
    }
    WAIT(SLOTS - (own - tail) >= need, SLOTS - (own - tail) >= want, own + want - SLOTS, producer_sleeps, producer_naps,
         producer_wake_at);
    if :: gap > 0 -> slot[own % SLOTS] = SKIPPED :: else fi;
    at = own + gap;
    slot[at % SLOTS] = number;
    if
    :: GROWS(number) ->
      own = at + 1;
      HINT(head, own);
      WAKE(own, consumer_sleeps, consumer_naps, consumer_wake_at);
#ifdef BETWEEN
      WAIT(tail - at >= 1 && tail - at <= 2, tail - at >= 1 && tail - at <= 2, at + 1, producer_sleeps, producer_naps,
           producer_wake_at);
#endif
      slot[(at + 1) % SLOTS] = number;
      own = at + 2;
      STORE_LAST(head, own);
      WAKE(own, consumer_sleeps, consumer_naps, consumer_wake_at);
      WAIT(own - tail <= 1, own - tail <= 1, at + 1, producer_sleeps, producer_naps, producer_wake_at);
      assert(slot[at % SLOTS] == number + TURNED);
      WAIT(tail == own, tail == own, own, producer_sleeps, producer_naps, producer_wake_at);
      assert(slot[(at + 1) % SLOTS] == number + TURNED)
    :: else ->
      if :: SIZE(number) == 2 -> slot[(at + 1) % SLOTS] = number :: else fi;
      own = at + SIZE(number);
      STORE(head, own);
      WAKE(own, consumer_sleeps, consumer_naps, consumer_wake_at)
    fi;
    number++
  :: else -> break
  od
}

active proctype consumer() {
  byte own, number, at
  do
  :: number < MESSAGES ->
    WAIT(head != own, head != own, own + 1, consumer_sleeps, consumer_naps, consumer_wake_at);
    assert(head - own <= SLOTS);
    at = own;
    if
    :: slot[at % SLOTS] == SKIPPED ->
      assert(at % SLOTS != 0);
      at = at + SLOTS - at % SLOTS
    :: else
    fi;
    assert(slot[at % SLOTS] == number);
    assert(SIZE(number) == 1 || at % SLOTS != SLOTS - 1);
    if
    :: GROWS(number) ->
      slot[at % SLOTS] = number + TURNED;
      own = at + 1;
      HINT(tail, own);
      WAKE(own, producer_sleeps, producer_naps, producer_wake_at);
#ifndef TOO_SOON
      WAIT(head != own, head != own, own + 1, consumer_sleeps, consumer_naps, consumer_wake_at);
#endif
      assert(slot[(at + 1) % SLOTS] == number);
      slot[(at + 1) % SLOTS] = number + TURNED
    :: else ->
      assert(SIZE(number) == 1 || slot[(at + 1) % SLOTS] == number)
    fi;
    own = at + SIZE(number);
    STORE(tail, own);
    WAKE(own, producer_sleeps, producer_naps, producer_wake_at);
    number++
  :: else -> break
  od
}
