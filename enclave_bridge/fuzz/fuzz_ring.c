/*
 * One honest end of a ring whose peer writes what it likes. The input is a script: its first byte
 * chooses the end, then each 12 bytes are a write of the hostile peer or a call of the honest end.
 * Whatever happens, no call waits, and what it returns is inside the data of the ring.
 */
#include <stdint.h>
#include <stdlib.h>

#include "check.h"
#include "ring.h"

enum { STEP = 12, CAPACITY = 4096 };

static uint64_t number(const uint8_t *at, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; i++) value |= (uint64_t)at[i] << (8 * i);
  return value;
}

/* Near the words that count, with values near the ones that count: else nearly every script ends at once. */
static void scribble(uint8_t *memory, const eb_ring *ring, const uint8_t *script) {
  const size_t words[] = {128, 384, 256, 512, EB_RING_CONTROL + (ring->own & (CAPACITY - 1)), EB_RING_CONTROL};
  const uint64_t value = number(script + 4, 8);
  const uint64_t values[] = {value, ring->own + 64 * (value % 80), ring->peer + 64 * (value % 80),
                             UINT64_C(0x4547534d) << 32 | value % 5000, UINT64_C(0x574f5247) << 32 | value % 5000,
                             UINT64_C(0x50494b53) << 32};
  const size_t bytes = eb_ring_bytes(CAPACITY);
  size_t at = script[1] % 8 < 6 ? words[script[1] % 8] : number(script + 2, 2) % (bytes - 8);
  memcpy(memory + at, &values[script[2] % 6], 8);
}

static void inside(const uint8_t *memory, const uint8_t *message, size_t len) {
  const uint8_t *data = memory + EB_RING_CONTROL;
  CHECK(message >= data + EB_RING_HEADER && message <= data + CAPACITY);
  CHECK(len <= eb_ring_max_message(CAPACITY) && len <= (size_t)(data + CAPACITY - message));
}

static void call(uint8_t *memory, eb_ring *ring, const uint8_t *script) {
  const uint8_t *message = NULL;
  uint8_t *room = NULL;
  size_t len = number(script + 2, 2) % 2200, n = 0;
  switch (script[1] % 10) {
    case 0:
      if (eb_ring_reserve(ring, len, 0, &room) != EB_OK) break;
      inside(memory, room, len);
      memset(room, script[4], len);
      break;
    case 1: (void)!eb_ring_publish(ring, len); break;
    case 2:
      if (eb_ring_peek(ring, 0, &message, &len) != EB_OK) break;
      inside(memory, message, len);
      for (size_t i = 0; i < len; i++) (void)*(const volatile uint8_t *)(message + i);
      break;
    case 3: eb_ring_restart(ring); break;
    case 4: (void)!eb_ring_grow(ring, len); break;
    case 5:
      if (eb_ring_consumed(ring, len, 0, &n) == EB_OK) CHECK(n >= len && n <= ring->current);
      break;
    case 6:
      if (eb_ring_peek_growing(ring, 0, &message, &len, &n) != EB_OK) break;
      inside(memory, message, len);
      CHECK(n <= len);
      break;
    case 7:
      if (eb_ring_arrived(ring, len, 0, &n) == EB_OK) CHECK(n >= len && n <= ring->current);
      break;
    case 8: (void)!eb_ring_consume_some(ring, len); break;
    default: eb_ring_consume(ring);
  }
  CHECK(ring->peer - ring->own <= CAPACITY || ring->own - ring->peer <= CAPACITY);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const size_t bytes = eb_ring_bytes(CAPACITY);
  eb_ring ring;
  if (size < 1) return 0;
  uint8_t *memory = aligned_alloc(4096, bytes); /* ASan sees every byte beyond it */
  CHECK(memory != NULL);
  CHECK_OK(eb_ring_format(memory, bytes));
  CHECK_OK(eb_ring_attach(&ring, data[0] & 1 ? EB_RING_PRODUCER : EB_RING_CONSUMER, memory, bytes));
  for (data++, size--; size >= STEP; data += STEP, size -= STEP) {
    if (data[0] & 1)
      scribble(memory, &ring, data);
    else
      call(memory, &ring, data);
  }
  free(memory);
  return 0;
}
