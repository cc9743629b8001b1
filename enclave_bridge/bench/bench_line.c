/*
 * How long a line of memory takes from one core to another and back: what processes that share memory pay for whatever
 * they tell each other. 100 ns where the cores share a cache, five times as much and more where they do not; a virtual
 * machine's cores may move from one to the other within seconds.
 *
 * pagegate-bench-line CPU CPU: two threads, one on each, take turns at one word. Prints one JSON object: the quartiles of
 * samples of 100 turns each, nanoseconds a turn.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { SAMPLES = 201, TURNS = 100, WARM_UP = 10 };

static _Alignas(128) atomic_uint word; /* odd: the second thread's turn */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void keep_on(int cpu) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET((size_t)cpu, &cpus);
  if (sched_setaffinity(0, sizeof cpus, &cpus) == 0) return;
  fprintf(stderr, "pagegate-bench-line: CPU %d is not ours\n", cpu);
  exit(1);
}

static void take_turns(unsigned mine) {
  for (unsigned turn = 0; turn < TURNS; turn++) {
    const unsigned seen = 2 * turn + mine;
    while (atomic_load_explicit(&word, memory_order_acquire) != seen) continue;
    atomic_store_explicit(&word, turn + 1 < TURNS || mine == 0 ? seen + 1 : 0, memory_order_release);
  }
}

static void *answer(void *cpu) {
  keep_on(*(const int *)cpu);
  for (int sample = -WARM_UP; sample < SAMPLES; sample++) take_turns(1);
  return NULL;
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  int cpus[2] = {argc == 3 ? atoi(argv[1]) : -1, argc == 3 ? atoi(argv[2]) : -1};
  double took[SAMPLES];
  pthread_t other;
  if (cpus[0] < 0 || cpus[1] < 0 || cpus[0] == cpus[1]) {
    fprintf(stderr, "usage: pagegate-bench-line CPU CPU (two different ones)\n");
    return 64;
  }
  keep_on(cpus[0]);
  if (pthread_create(&other, NULL, answer, &cpus[1]) != 0) {
    fprintf(stderr, "pagegate-bench-line: no thread\n");
    return 1;
  }
  for (int sample = -WARM_UP; sample < SAMPLES; sample++) {
    const double started = now();
    take_turns(0);
    while (atomic_load_explicit(&word, memory_order_acquire) != 0) continue;
    if (sample >= 0) took[sample] = (now() - started) / TURNS;
  }
  pthread_join(other, NULL);
  qsort(took, SAMPLES, sizeof took[0], ascending);
  printf("{\"turn_ns\": {\"median\": %.1f, \"q1\": %.1f, \"q3\": %.1f}}\n", took[SAMPLES / 2], took[SAMPLES / 4],
         took[3 * SAMPLES / 4]);
  return 0;
}
