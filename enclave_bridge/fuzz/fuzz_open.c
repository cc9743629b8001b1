/*
 * eb_pages_open and eb_record_parse on anything. The input is a script: each 8 bytes change, repeat
 * or reorder what an honest sender sealed, and the rest is opened as it is.
 * Whatever happens, the target holds only pages that were sealed, each at its place.
 */
#include <stdint.h>

#include "pair.h"

enum { STEP = 8 };

static uint64_t number(const uint8_t *at, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; i++) value = value << 8 | at[i];
  return value;
}

static void step(eb_pair *pair, const uint8_t *script) {
  const size_t n = pair->records_len / EB_RECORD_SIZE;
  uint8_t *record = pair->records + (n > 0 ? script[1] % n : 0) * EB_RECORD_SIZE;
  uint64_t argument = number(script + 2, 4);
  eb_result result;
  switch (script[0] % 7) {
    case 0: pair_seal(pair, script[1] % WINDOW_PAGES, 1 + argument % (WINDOW_PAGES - script[1] % WINDOW_PAGES)); break;
    case 1: record[argument % EB_RECORD_SIZE] ^= script[6]; break;
    case 2: record[argument % EB_RECORD_HEADER_SIZE] = script[6]; break;
    case 3: CHECK_OK(eb_session_rekey(pair->client)); break;
    case 4: if (n > 0) memmove(record, pair->records + argument % n * EB_RECORD_SIZE, EB_RECORD_SIZE); break;
    case 5: pair->client->send_sequence += argument % (2 * EB_REPLAY_WINDOW); break;
    default: {
      eb_status status = pair_open(pair, &result);
      CHECK(result.pages <= n && (status == EB_OK) == (n > 0 && result.pages == n));
    }
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static eb_pair *pair;
  eb_record_header header;
  eb_result result;
  if (pair == NULL || pair->server->secret == NULL) { /* the first time, or closed by bad tags */
    if (pair != NULL) pair_free(pair);
    pair = pair_new(EB_SUITE_P256_SHA256_AES128GCM, number(data, size < 8 ? 0 : 8) & 1 ? &batched_ops : NULL);
  }
  (void)!eb_record_parse(data, size, &header);
  (void)!eb_pages_open(pair->server, pair->received, data, size, &result);
  for (; size >= STEP && pair->server->secret != NULL; data += STEP, size -= STEP) step(pair, data);
  for (size_t i = 0; i < WINDOW_PAGES; i++) CHECK(pair_arrived(pair, i) || pair_untouched(pair, i));
  return 0;
}
