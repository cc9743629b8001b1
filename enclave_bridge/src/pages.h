/*
 * The page path for pages that come, or records that go, part by part: what enclave_bridge.h's functions do with
 * whole buffers. From the first part to the last it is one call: one check of the whole, consecutive numbers, one
 * lane, and the direction of the session is locked. A part that is late makes the next call of that direction wait.
 */
#ifndef EB_PAGES_H
#define EB_PAGES_H

#include <stdbool.h>

#include "enclave_bridge.h"
#include "gcm.h"

/* Where pages or records come from. */
typedef struct {
  /* The next part, of whole pages or records; *len 0 after the last. It is the page path's until the next call. */
  eb_status (*next)(void *context, const uint8_t **part, size_t *len);
  void *context;
  /* Says how many pages of the part are there, and waits for the first at_least of them; `next` promises no more than that
   * they come. NULL: all are there. Only pages that are sealed may come so. */
  eb_status (*arrived)(void *context, size_t at_least, size_t *n);
  bool is_private; /* nobody else sees the part: it may be overwritten */
  size_t apart;    /* bytes from the end of a page to the next one */
} eb_feed;

/* A buffer as a feed of one part: {.next = eb_next_of_whole, .context = &whole}. */
typedef struct {
  const uint8_t *buffer;
  size_t len;
} eb_whole;

static inline eb_status eb_next_of_whole(void *context, const uint8_t **part, size_t *len) {
  eb_whole *whole = context;
  *part = whole->buffer;
  *len = whole->len;
  whole->len = 0;
  return EB_OK;
}

/* Where records go. */
typedef struct {
  /* Room for the next n records; NULL: nobody is there to take them. */
  uint8_t *(*room)(void *context, size_t n);
  /* The first n of the room are there. NULL: nobody works on them meanwhile. */
  void (*so_far)(void *context, size_t n);
  /* All n are in the room. It may be gone afterwards, and what was handed over is not taken back on failure. */
  void (*made)(void *context, size_t n);
  void *context;
} eb_sink;

/* A buffer as a sink; the caller has seen to it that there is room for all. */
typedef struct {
  uint8_t *buffer;
  size_t filled; /* bytes */
} eb_flat;

eb_sink eb_flat_sink(eb_flat *flat);
/* All or nothing: zeroises what a failed call left. */
void eb_flat_end(eb_flat *flat, eb_status status);

/* Secret memory that a call is through with. A function that takes one leaves there what it has used, and its caller gives
 * it back (eb_lane_give) as soon as the result is on its way: to zeroise 16 pages takes as long as to open three. NULL: the
 * function gives it back before it returns. */
typedef struct {
  eb_lane_secret *lane;
  size_t pages; /* so many of the first were written */
} eb_used_lane;

/* What such a function does with its lane at the end. */
void eb_lane_leave(eb_bridge *bridge, eb_used_lane lane, eb_used_lane *used);

/* As their namesakes in enclave_bridge.h, but for the buffers. A caller of eb_pages_seal_fed has seen to it that what
 * comes from the feed is `len` bytes of pages, and that each is apart from the sink's room or where its record's goes.
 * EB_ERR_BRIDGE_DIED: the sink is gone. */
eb_status eb_pages_seal_fed(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa, size_t len,
                            const eb_feed *plain, const eb_sink *records, eb_used_lane *used, eb_result *result);
eb_status eb_pages_seal_from_to(eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                                eb_source *source, uint64_t source_offset, size_t len, const eb_sink *records,
                                eb_result *result);
eb_status eb_guard_seal_to(eb_guard *guard, eb_session *session, eb_transfer *transfer, uint64_t first_gpa,
                           uint64_t pages, const eb_sink *records, eb_result *result);
eb_status eb_pages_open_fed(eb_session *session, eb_transfer *transfer, const eb_feed *records, eb_used_lane *used,
                            eb_result *result);

#endif
