/*
 * The replay window against the plainest account there is: a list of all numbers that were marked.
 * Each 4 bytes are a step from the highest number so far, forwards or back.
 */
#include "check.h"
#include "fuzz.h"
#include "window.h"

enum { STEP = 4, MOST = 2048 };

static bool in(const uint64_t *list, size_t n, uint64_t number) {
  for (size_t i = 0; i < n; i++)
    if (list[i] == number) return true;
  return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static uint64_t marked[MOST];
  size_t n = 0;
  uint64_t next = 0; /* one more than the highest */
  eb_replay replay;
  eb_replay_reset(&replay);
  for (; size >= STEP && n < MOST; data += STEP, size -= STEP) {
    const uint64_t distance = fuzz_number(data + 1, 3) % (data[0] & 2 ? 3 * EB_REPLAY_WINDOW : 80);
    const uint64_t sequence = data[0] & 1 ? next + distance : next - (distance < next ? distance : next);
    const bool too_old = sequence + EB_REPLAY_WINDOW < next;
    const bool fresh = eb_replay_fresh(&replay, sequence);
    CHECK(fresh == (!too_old && !in(marked, n, sequence)));
    if (!fresh || data[0] & 4) continue; /* asked only */
    eb_replay_mark(&replay, sequence);
    CHECK(!eb_replay_fresh(&replay, sequence));
    marked[n++] = sequence;
    if (sequence >= next) next = sequence + 1;
  }
  return 0;
}
