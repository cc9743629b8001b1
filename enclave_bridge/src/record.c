#include "record.h"

#include <string.h>

enum { AT_SESSION = 0, AT_EPOCH = 16, AT_FLAGS = 20, AT_SEQUENCE = 24, AT_REGION = 32, AT_RESERVED = 36, AT_GPA = 40 };

static void store(uint8_t *out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; i++) out[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t load(const uint8_t *in, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; i++) value |= (uint64_t)in[i] << (8 * i);
  return value;
}

void eb_store_u64le(uint8_t *out, uint64_t value) { store(out, value, 8); }

uint64_t eb_load_u64le(const uint8_t *in) { return load(in, 8); }

void eb_record_write(uint8_t out[EB_RECORD_HEADER_SIZE], const eb_record_header *header) {
  memcpy(out + AT_SESSION, header->session_id, EB_SESSION_ID_SIZE);
  store(out + AT_EPOCH, header->epoch, 4);
  store(out + AT_FLAGS, header->flags, 4);
  store(out + AT_SEQUENCE, header->sequence, 8);
  store(out + AT_REGION, header->region, 4);
  store(out + AT_RESERVED, header->reserved, 4);
  store(out + AT_GPA, header->gpa, 8);
}

void eb_record_read(const uint8_t in[EB_RECORD_HEADER_SIZE], eb_record_header *header) {
  memcpy(header->session_id, in + AT_SESSION, EB_SESSION_ID_SIZE);
  header->epoch = (uint32_t)load(in + AT_EPOCH, 4);
  header->flags = (uint32_t)load(in + AT_FLAGS, 4);
  header->sequence = load(in + AT_SEQUENCE, 8);
  header->region = (uint32_t)load(in + AT_REGION, 4);
  header->reserved = (uint32_t)load(in + AT_RESERVED, 4);
  header->gpa = load(in + AT_GPA, 8);
}

void eb_record_nonce(uint8_t out[EB_GCM_IV_SIZE], const uint8_t iv[EB_GCM_IV_SIZE], uint64_t sequence) {
  memcpy(out, iv, EB_GCM_IV_SIZE);
  for (unsigned i = 0; i < 8; i++) out[EB_GCM_IV_SIZE - 1 - i] ^= (uint8_t)(sequence >> (8 * i));
}

eb_status eb_record_parse(const uint8_t *record, size_t len, eb_record_header *header) {
  if (record == NULL || header == NULL) return EB_ERR_ARGUMENT;
  if (len != EB_RECORD_SIZE) return EB_ERR_LENGTH;
  eb_record_read(record, header);
  return EB_OK;
}
