/*
 * The record header: any 48 bytes are read and written back as they were, any other length than a
 * record's is refused, and two sequence numbers never make one nonce.
 */
#include "check.h"
#include "fuzz.h"
#include "record.h"

enum { SCRIPT = EB_RECORD_HEADER_SIZE + EB_GCM_IV_SIZE + 16 };

static void check_nonces(const uint8_t *iv, uint64_t a, uint64_t b) {
  uint8_t first[EB_GCM_IV_SIZE], second[EB_GCM_IV_SIZE];
  eb_record_nonce(first, iv, a);
  eb_record_nonce(second, iv, b);
  CHECK((memcmp(first, second, sizeof first) == 0) == (a == b));
  CHECK(memcmp(first, iv, 4) == 0); /* the sequence number is in the last eight bytes */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static uint8_t record[EB_RECORD_SIZE];
  uint8_t written[EB_RECORD_HEADER_SIZE];
  eb_record_header header;
  CHECK_STATUS(size == EB_RECORD_SIZE ? EB_OK : EB_ERR_LENGTH, eb_record_parse(data, size, &header));
  if (size < SCRIPT) return 0;
  memcpy(record, data, EB_RECORD_HEADER_SIZE);
  CHECK_OK(eb_record_parse(record, sizeof record, &header));
  eb_record_write(written, &header);
  CHECK(memcmp(written, data, sizeof written) == 0);
  const uint8_t *numbers = data + EB_RECORD_HEADER_SIZE + EB_GCM_IV_SIZE;
  check_nonces(data + EB_RECORD_HEADER_SIZE, fuzz_number(numbers, 8), fuzz_number(numbers + 8, 8));
  return 0;
}
