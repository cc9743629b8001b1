/*
 * Memory that a channel shares with its peer, lent to the bridge of a session: records are then sealed straight into
 * it and opened straight out of it wherever the bridge is. lent_here.c for a bridge in this process, which sees the
 * memory anyhow; isolated/proxy.c for one in another, which maps it too.
 */
#ifndef EB_LENT_H
#define EB_LENT_H

#include "enclave_bridge.h"

typedef struct eb_lent eb_lent;

/* Lends `bytes` of fd from its start, mapped at `at` here. *lent may be NULL: nothing needs to be lent. The memory
 * cannot shrink (F_SEAL_SHRINK). EB_ERR_RING_MEMORY, EB_ERR_LIMIT. */
EB_MUST_USE eb_status eb_lent_new(eb_session *session, int fd, uint8_t *at, size_t bytes, eb_lent **lent);
/* NULL is allowed. No call is in progress. */
void eb_lent_free(eb_lent *lent);

/* eb_pages_seal into records, eb_pages_open from records, which are in the lent memory. With NULL, as if they were
 * not. */
EB_MUST_USE eb_status eb_lent_seal(eb_lent *lent, eb_session *session, eb_transfer *transfer, uint32_t region,
                                   uint64_t first_gpa, const uint8_t *plain, size_t len, uint8_t *records,
                                   size_t records_cap, eb_result *result);
EB_MUST_USE eb_status eb_lent_open(eb_lent *lent, eb_session *session, eb_transfer *transfer, const uint8_t *records,
                                   size_t len, eb_result *result);

#endif
