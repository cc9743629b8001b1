/* Two sessions that have shaken hands, and a transfer at each end. */
#ifndef PAIR_H
#define PAIR_H

#include "bridge.h"
#include "check.h"
#include "session.h"
#include "transfer.h"

#define REGION 7u
#define BASE_GPA UINT64_C(0x100000)
#define WINDOW_PAGES 64u

typedef struct {
  eb_bridge *bridge;
  eb_handshake *client_handshake, *server_handshake;
  eb_session *client, *server;
  eb_transfer *sent, *received;
  uint8_t target[WINDOW_PAGES * EB_PAGE_SIZE];
  uint8_t plain[WINDOW_PAGES * EB_PAGE_SIZE]; /* every page different */
  uint8_t records[WINDOW_PAGES * EB_RECORD_SIZE];
  size_t records_len;
} eb_pair;

/* Up to T2, with keys derived on both sides. */
void pair_derive(eb_pair *pair, eb_suite suite);
/* `ops` NULL: what the bridge chose. */
eb_pair *pair_new(eb_suite suite, const eb_gcm_ops *ops);
void pair_free(eb_pair *pair);

/* The client seals pages [first, first + n) of `plain` into `records`. */
void pair_seal(eb_pair *pair, size_t first, size_t n);
/* The server opens what is in `records`. */
eb_status pair_open(eb_pair *pair, eb_result *result);
/* True when page i arrived as it was sent. */
bool pair_arrived(const eb_pair *pair, size_t i);
/* True when the page of the target was never written. */
bool pair_untouched(const eb_pair *pair, size_t i);
/* True when every byte of the pool is zero. */
bool pool_is_zero(const eb_bridge *bridge, eb_pool_kind kind);

/* libcrypto's kernel again, but in batches and called as one that reads and writes once. */
extern const eb_gcm_ops batched_ops;

#endif
