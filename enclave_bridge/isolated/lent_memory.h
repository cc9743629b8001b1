/* Memory that the caller lends the bridge process (src/lent.h): hostile in every byte, there as long as it is mapped. */
#ifndef EB_LENT_MEMORY_H
#define EB_LENT_MEMORY_H

#include <stddef.h>

#include "enclave_bridge.h"

typedef struct eb_lent_memory eb_lent_memory;

/* Maps len bytes of fd from its start. EB_ERR_RING_MEMORY: it is not that long, or could be cut, which would end
 * whoever looks at it. EB_ERR_MEMORY. */
EB_MUST_USE eb_status eb_lent_memory_map(int fd, uint64_t len, eb_lent_memory **memory);
void eb_lent_memory_free(eb_lent_memory *memory);
/* len bytes at an offset; NULL when they are not all in it. */
uint8_t *eb_lent_memory_at(const eb_lent_memory *memory, uint64_t offset, uint64_t len);

#endif
