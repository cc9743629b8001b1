#include "window.h"

#include <string.h>

static uint64_t bit_of(uint64_t sequence) { return UINT64_C(1) << (sequence % 64); }

static size_t word_of(uint64_t sequence) { return (size_t)(sequence % EB_REPLAY_WINDOW / 64); }

void eb_replay_reset(eb_replay *replay) { memset(replay, 0, sizeof *replay); }

bool eb_replay_fresh(const eb_replay *replay, uint64_t sequence) {
  if (sequence >= replay->next) return true;
  if (replay->next - sequence > EB_REPLAY_WINDOW) return false;
  return (replay->seen[word_of(sequence)] & bit_of(sequence)) == 0;
}

void eb_replay_mark(eb_replay *replay, uint64_t sequence) {
  if (sequence >= replay->next) {
    /* The numbers skipped over take the places of ones that fall out of the window. */
    if (sequence - replay->next >= EB_REPLAY_WINDOW) {
      memset(replay->seen, 0, sizeof replay->seen);
    } else {
      for (uint64_t skipped = replay->next; skipped < sequence; skipped++)
        replay->seen[word_of(skipped)] &= ~bit_of(skipped);
    }
    replay->next = sequence + 1;
  }
  replay->seen[word_of(sequence)] |= bit_of(sequence);
}
