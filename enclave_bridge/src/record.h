/* The 48-byte record header, little-endian, and the nonce made from its sequence number. */
#ifndef EB_RECORD_H
#define EB_RECORD_H

#include "enclave_bridge.h"
#include "gcm.h"

void eb_record_write(uint8_t out[EB_RECORD_HEADER_SIZE], const eb_record_header *header);
void eb_record_read(const uint8_t in[EB_RECORD_HEADER_SIZE], eb_record_header *header);

/* nonce = iv XOR (0^32 || sequence), the sequence number as 64 bits big-endian (as TLS 1.3 does,
 * RFC 8446 5.3). The key is one direction's and one epoch's, so a nonce repeats only if a sequence number does. */
void eb_record_nonce(uint8_t out[EB_GCM_IV_SIZE], const uint8_t iv[EB_GCM_IV_SIZE], uint64_t sequence);

void eb_store_u64le(uint8_t *out, uint64_t value);
uint64_t eb_load_u64le(const uint8_t *in);

#endif
