/*
 * The ring of src/ring.c: positions, wrapping with skipped slots, and how an end falls asleep and is
 * woken. SLOTS slots, MESSAGES messages of one and two slots, so that every offset, full and
 * empty occur. A sleep has no end here: a lost wake-up is a deadlock, which spin finds.
 *
 * .ci/model checks it as it is, then with each of these mistakes, which it must find:
 *   NO_FENCE    a position is stored without the order that a sequentially consistent store has:
 *               it may become visible after the following load of the peer's `sleeping` (x86-TSO)
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

byte slot[SLOTS]
byte head, tail /* published and consumed slots, ever: they are not reset, as in ring.c */
bit producer_sleeps, consumer_sleeps /* the flags, which are the futexes */
bit producer_naps, consumer_naps /* asleep in the kernel */
byte producer_wake_at, consumer_wake_at /* the other's position from which to wake */

#ifdef NO_FENCE
byte head_buffer, tail_buffer
bit head_waits, tail_waits
#define STORE(position, value) atomic { position##_waits == 0 -> position##_buffer = value; position##_waits = 1 }
active proctype store_buffers() {
end:
  do
  :: atomic { head_waits -> head = head_buffer; head_waits = 0 }
  :: atomic { tail_waits -> tail = tail_buffer; tail_waits = 0 }
  od
}
#else
#define STORE(position, value) position = value
#endif

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
    if :: SIZE(number) == 2 -> slot[(at + 1) % SLOTS] = number :: else fi;
    own = at + SIZE(number);
    STORE(head, own);
    WAKE(own, consumer_sleeps, consumer_naps, consumer_wake_at);
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
    assert(SIZE(number) == 1 || (at % SLOTS != SLOTS - 1 && slot[(at + 1) % SLOTS] == number));
    own = at + SIZE(number);
    STORE(tail, own);
    WAKE(own, producer_sleeps, producer_naps, producer_wake_at);
    number++
  :: else -> break
  od
}
