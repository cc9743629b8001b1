/* The sealing key: what this machine, and only what runs on it now, can have again after a restart. */
#ifndef EB_SEALING_H
#define EB_SEALING_H

#include "bridge.h"

#define EB_SEALING_KEY_SIZE 32u

struct eb_sealing {
  eb_bridge *bridge;
  atomic_uint references;
  uint8_t *key; /* EB_SEALING_KEY_SIZE bytes in a slot of secret memory */
};

/* Writes the key into secret memory, from wherever it comes: a file, the SNP firmware, an SGX enclave's
 * EGETKEY. `room` is EB_GCM_SECRET_SIZE bytes of zeroed secret memory for what it needs on the way. */
typedef eb_status (*eb_sealing_source)(void *context, uint8_t key[EB_SEALING_KEY_SIZE], uint8_t *room);

/* A sealing key from that source. EB_ERR_LIMIT, and what the source returns. */
eb_status eb_sealing_from(eb_bridge *bridge, eb_sealing_source source, void *context, eb_sealing **sealing);
void eb_sealing_hold(eb_sealing *sealing);

#endif
