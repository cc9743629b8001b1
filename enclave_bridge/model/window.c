/*
 * The replay window, src/window.c itself, with a window of 128 numbers: every order in which DEPTH
 * of the numbers below may arrive, repeats included, against what the window is for: a number is
 * accepted when it is not too old and was never accepted before. Exits with 1 at the first difference.
 *
 * .ci/model compiles it with -DWINDOW_C="..." : the source, then the source with mistakes in it.
 */
#include "enclave_bridge.h"

#undef EB_REPLAY_WINDOW
#define EB_REPLAY_WINDOW 128u
#include WINDOW_C

#include <stdio.h>

enum { DEPTH = 5 };

/* Both sides of a word's end, of the window's end, of two windows; and a jump over all of it. */
static const uint64_t numbers[] = {0,   1,   63,  64,  65,  126, 127, 128,          129,
                                   191, 192, 255, 256, 257, 383, 384, UINT64_MAX - 2, UINT64_MAX - 1};
enum { NUMBERS = sizeof numbers / sizeof *numbers };

static unsigned long long orders;

static int explore(const eb_replay *window, unsigned accepted, uint64_t highest, int depth) {
  if (depth == DEPTH) {
    orders++;
    return 0;
  }
  for (unsigned i = 0; i < NUMBERS; i++) {
    eb_replay after = *window;
    const uint64_t number = numbers[i];
    const int too_old = accepted != 0 && number < highest && highest - number >= EB_REPLAY_WINDOW;
    const int expected = !too_old && !(accepted >> i & 1);
    if (eb_replay_fresh(window, number) != expected) {
      fprintf(stderr, "number %llu, highest %llu, accepted %#x: expected %d\n", (unsigned long long)number,
              (unsigned long long)highest, accepted, expected);
      return 1;
    }
    if (expected) eb_replay_mark(&after, number);
    if (explore(&after, accepted | (unsigned)expected << i, number > highest ? number : highest, depth + 1)) return 1;
  }
  return 0;
}

int main(void) {
  eb_replay window;
  eb_replay_reset(&window);
  if (explore(&window, 0, 0, 0)) return 1;
  printf("replay window: %llu orders of %d numbers\n", orders, DEPTH);
  return 0;
}
