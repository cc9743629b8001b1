/*
 * What crosses between a process that wants the bridge and the bridge process (both of one build).
 *
 * A lane is a pair of rings (ring.h) and a thread of the bridge process. One caller at a time has it:
 *
 *   caller -> bridge   eb_call, with the first part of the bulk data behind it or none yet, then the rest of the bulk
 *                      data as messages of their own, each of whole units: bytes or records. A page is a record whose
 *                      header and tag are not there yet
 *   bridge -> caller   eb_reply with bulk data behind it, as often as there is some; `final` marks the last. One without
 *                      bulk data ends with its small data: each line of memory that crosses takes its time
 *
 * A part of pages or records grows (ring.h): the bridge seals or opens one while the caller copies the next. Where pages
 * become records in their places, what the bridge is through with has been sealed, and the caller takes it from where it
 * put the pages: the memory changes hands twice, not four times. If the call fails it is what the caller put there.
 *
 * To add a function of enclave_bridge.h:
 *   1. a row in EB_CALLS below;
 *   2. a function in calls.c that makes the call on job->object, job->call.number, job->call.small and job->bulk, and
 *      fills job->reply: call_<name of the row>; what it needs of the call are the other columns;
 *   3. the function itself in proxy.c: fill an eb_crossing, call eb_cross.
 * A function that is missing in proxy.c fails the import of the Python module `_isolated`.
 */
#ifndef EB_WIRE_H
#define EB_WIRE_H

#include <stddef.h>

#include "enclave_bridge.h"

#define EB_WIRE_VERSION 6u
#define EB_MAX_LANES 16u
#define EB_LANE_CAPACITY ((size_t)4 << 20) /* of each of a lane's two rings: twice the largest message, at least */
#define EB_PART_PAGES 256u                 /* most pages or records in one part */
#define EB_PART_BYTES ((size_t)64 << 10)   /* most bytes in one part of anything else */
#define EB_MAX_OTHERS 4096u                /* handles beside sessions and handshakes */

/* What a handle of a call must be. A number is of one kind for ever. */
typedef enum {
  EB_KIND_NONE,
  EB_KIND_HANDSHAKE,
  EB_KIND_SESSION,
  EB_KIND_TRANSFER,
  EB_KIND_SOURCE,
  EB_KIND_GUARD,
  EB_KIND_SEALING,
  EB_KIND_LENT,
  EB_KIND_MAYBE_TRANSFER, /* of a call only: one, or none */
  EB_KIND_MAYBE_SEALING,
  EB_KIND_ANY,            /* of a call only: the function looks itself */
} eb_kind;

#define EB_CALL_HANDLES 3u
#define EB_CALL_DESCRIPTORS 2u

/* What the bulk data of a call is: nothing, bytes gathered before the function runs, or pages or records that it takes
 * as they come. */
typedef enum { EB_BULK_NONE, EB_BULK_BYTES, EB_BULK_PAGES, EB_BULK_RECORDS } eb_bulk;

/* X(name, first, second and third handle, length of small data (least, most), bulk, how many descriptors come along) */
#define EB_CALLS(X)                                                                                 \
  X(bridge_get_info, NONE, NONE, NONE, 0, 0, NONE, 0)                                           \
  X(random, NONE, NONE, NONE, 0, 0, NONE, 0)                                                    \
  X(release, ANY, NONE, NONE, 0, 0, NONE, 0)                                                    \
  X(handshake_new, NONE, NONE, NONE, 0, 0, NONE, 0)                                             \
  X(handshake_public_key, HANDSHAKE, NONE, NONE, 0, 0, NONE, 0)                                 \
  X(handshake_absorb, HANDSHAKE, NONE, NONE, 0, 0, BYTES, 0)                                    \
  X(handshake_select, HANDSHAKE, NONE, NONE, 0, 0, NONE, 0)                                     \
  X(handshake_binding, HANDSHAKE, NONE, NONE, 0, 0, NONE, 0)                                    \
  X(handshake_derive, HANDSHAKE, NONE, NONE, 0, EB_SMALL_SIZE, NONE, 0)                         \
  X(handshake_finished, HANDSHAKE, NONE, NONE, 0, 0, NONE, 0)                                   \
  X(handshake_check_finished, HANDSHAKE, NONE, NONE, 0, EB_SMALL_SIZE, NONE, 0)                 \
  X(handshake_session, HANDSHAKE, NONE, NONE, EB_SESSION_ID_SIZE, EB_SESSION_ID_SIZE, NONE, 0)  \
  X(session_close, SESSION, NONE, NONE, 0, 0, NONE, 0)                                          \
  X(session_get_stats, SESSION, NONE, NONE, 0, 0, NONE, 0)                                      \
  X(session_rekey, SESSION, NONE, NONE, 0, 0, NONE, 0)                                          \
  X(session_mac, SESSION, NONE, NONE, 0, 0, BYTES, 0)                                           \
  X(session_check_mac, SESSION, NONE, NONE, 0, EB_SMALL_SIZE, BYTES, 0)                         \
  X(transfer_new, NONE, NONE, NONE, EB_TRANSFER_ID_SIZE, EB_TRANSFER_ID_SIZE, NONE, 0)          \
  X(transfer_set_target_fd, TRANSFER, NONE, NONE, 0, 0, NONE, 1)                                 \
  X(transfer_pages, TRANSFER, NONE, NONE, 0, 0, NONE, 0)                                        \
  X(transfer_forget, TRANSFER, NONE, NONE, 0, 0, NONE, 0)                                       \
  X(transfer_commit_mac, SESSION, TRANSFER, NONE, 0, 0, NONE, 0)                                \
  X(transfer_check_commit_mac, SESSION, TRANSFER, NONE, 0, EB_SMALL_SIZE, NONE, 0)              \
  X(sealing_open_file, NONE, NONE, NONE, 0, 0, NONE, 1)                                             \
  X(sealing_open_snp, NONE, NONE, NONE, sizeof(eb_snp_key_options), sizeof(eb_snp_key_options), NONE, 1)\
  X(guard_new, MAYBE_SEALING, NONE, NONE, 0, EB_MAX_REGION_NAME, NONE, 1)                           \
  X(guard_load, SEALING, NONE, NONE, 0, EB_MAX_REGION_NAME, NONE, 2)                                \
  X(transfer_set_guard, TRANSFER, GUARD, NONE, 0, 0, NONE, 0)                                       \
  X(guard_seal, SESSION, TRANSFER, GUARD, 0, 0, NONE, 0)                                            \
  X(guard_verify, GUARD, NONE, NONE, 0, 0, NONE, 0)                                                 \
  X(guard_carry, GUARD, GUARD, NONE, 0, 0, NONE, 0)                                                 \
  X(guard_save, GUARD, NONE, NONE, 0, 0, NONE, 1)                                                   \
  X(guard_journal, GUARD, NONE, NONE, 0, 0, NONE, 1)                                                \
  X(guard_renew, GUARD, NONE, NONE, 0, 0, NONE, 0)                                                  \
  X(source_open, NONE, NONE, NONE, 0, 0, NONE, 1)                                                \
  X(pages_seal_from, SESSION, MAYBE_TRANSFER, SOURCE, 0, 0, NONE, 0)                            \
  X(pages_seal, SESSION, MAYBE_TRANSFER, NONE, 0, 0, PAGES, 0)                                  \
  X(pages_open, SESSION, TRANSFER, NONE, 0, 0, RECORDS, 0)                                       \
  X(lent_new, NONE, NONE, NONE, 0, 0, NONE, 1)                                                   \
  X(lent_seal, SESSION, MAYBE_TRANSFER, LENT, 0, 0, PAGES, 0)                                    \
  X(lent_open, SESSION, TRANSFER, LENT, 0, 0, NONE, 0)

#define EB_SMALL_SIZE 112u

typedef enum {
#define X(name, ...) EB_OP_##name,
  EB_CALLS(X)
#undef X
  EB_OPS
} eb_op;

/* A multiple of 64 bytes, so that a record's ciphertext behind it is 64-byte aligned. */
typedef struct {
  uint32_t op;
  uint32_t small_len;
  uint64_t handle[EB_CALL_HANDLES]; /* 0: none */
  uint64_t number[5];
  uint64_t bulk_len; /* of all parts */
  uint8_t small[EB_SMALL_SIZE];
} eb_call;

typedef struct {
  int32_t status;
  uint32_t final;
  uint64_t handle; /* of what was made */
  uint64_t number;
  uint32_t small_len;
  uint32_t unused;
  uint8_t small[288]; /* a MAC, a key, an eb_result, an eb_bridge_info */
} eb_reply;

#define EB_REPLY_HEADER offsetof(eb_reply, small)

_Static_assert(sizeof(eb_call) % 64 == 0 && sizeof(eb_reply) % 64 == 0, "records behind them stay aligned");
_Static_assert(sizeof(eb_bridge_info) <= sizeof((eb_reply *)0)->small, "the info fits");

/* The first message over the socket, from the process that wants the bridge. */
typedef struct {
  uint32_t version;
  uint32_t lanes; /* 1..EB_MAX_LANES */
  uint32_t max_sessions, max_handshakes, max_guards, unused;
  uint64_t memory_limit; /* bytes of private memory; 0: no limit */
  char gcm_kernel[32];   /* empty: the fastest */
} eb_setup;

/* The answer. On EB_OK the lanes' memory comes with it as a descriptor (eb_lane_bytes() a lane, sealed). */
typedef struct {
  uint32_t version;
  int32_t status;
  uint32_t hardening;
} eb_ready;

#endif
