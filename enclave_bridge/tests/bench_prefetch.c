/*
 * What software prefetch is worth where pages are sealed from memory: the next run's cache lines are
 * asked for while this one is sealed. Rounds are interleaved. Prints JSON: GB a second of CPU, one value a round.
 *
 *   bench_prefetch [rounds]
 */
#include <time.h>
#include <unistd.h>

#include "pair.h"

#define PAGES 32768u /* 128 MiB: more than any cache */
#define STEP EB_LANE_PAGES

typedef enum { NOTHING, NEXT_RUN, NEXT_RUN_HEADS, VARIANTS } variant;
static const char *const names[VARIANTS] = {"none", "all lines of the next run", "first lines of the next run's pages"};

static void prefetch(const uint8_t *pages, variant how) {
  const size_t lines = how == NEXT_RUN ? EB_PAGE_SIZE / 64 : 4;
  for (size_t page = 0; page < STEP; page++)
    for (size_t line = 0; line < lines; line++) __builtin_prefetch(pages + page * EB_PAGE_SIZE + line * 64, 0, 2);
}

static double seal_all(eb_pair *pair, const uint8_t *plain, uint8_t *records, variant how) {
  struct timespec from, to;
  size_t len = 0;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
  for (size_t i = 0; i < PAGES; i += STEP) {
    if (how != NOTHING && i + STEP < PAGES) prefetch(plain + (i + STEP) * EB_PAGE_SIZE, how);
    CHECK_OK(eb_pages_seal(pair->client, NULL, REGION, BASE_GPA, plain + i * EB_PAGE_SIZE, STEP * EB_PAGE_SIZE, records,
                           STEP * EB_RECORD_SIZE, &len, NULL));
  }
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
  return (double)PAGES * EB_PAGE_SIZE / ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec));
}

int main(int argc, char **argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 9;
  uint8_t *plain = malloc((size_t)PAGES * EB_PAGE_SIZE), *records = malloc(STEP * EB_RECORD_SIZE);
  double *found = calloc((size_t)rounds * VARIANTS, sizeof *found);
  CHECK(rounds > 0 && plain != NULL && records != NULL && found != NULL);
  for (size_t i = 0; i < (size_t)PAGES * EB_PAGE_SIZE; i += 8) memcpy(plain + i, &i, 8);
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
  (void)seal_all(pair, plain, records, NOTHING);
  for (int round = 0; round < rounds; round++)
    for (variant how = NOTHING; how < VARIANTS; how++)
      found[(int)how * rounds + round] = seal_all(pair, plain, records, how);
  printf("{\"kernel\": \"%s\"", pair->bridge->gcm->name);
  for (variant how = NOTHING; how < VARIANTS; how++) {
    printf(", \"%s\": [", names[how]);
    for (int round = 0; round < rounds; round++)
      printf("%s%.3f", round == 0 ? "" : ", ", found[(int)how * rounds + round]);
    printf("]");
  }
  printf("}\n");
  pair_free(pair);
  free(found);
  free(records);
  free(plain);
  return 0;
}
