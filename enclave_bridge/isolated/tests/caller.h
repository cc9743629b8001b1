/* A hostile caller: puts any bytes into a lane, with the bridge in the same thread. */
#ifndef CALLER_H
#define CALLER_H

#include "serve.h"

typedef struct {
  eb_server server;
  eb_ring calls, replies; /* the caller's ends of the lane in use */
  int socket;             /* the caller's */
} caller;

/* One lane. The server's threads are not started. */
void caller_open(caller *made);
void caller_close(caller *made);
/* Puts a message into the lane: also a further part of a call's bulk data. */
void caller_put(caller *from, const void *bytes, size_t len);
/* Puts a message that grows, and tells of the first `told` bytes. */
void caller_put_growing(caller *from, const void *bytes, size_t len, size_t told);
/* A call with bulk data of its own length behind it. */
void caller_put_call(caller *from, eb_call call, const void *bulk, size_t len);
/* Serves what is in the lane and closes it: what is unfinished fails. True when the form was kept. */
bool caller_serve(caller *from);
/* Serves one whole call, of which nothing may be missing, and returns its last reply. */
eb_reply caller_call(caller *from, eb_call call, const void *bulk, size_t len);
/* The next reply, false when there is none. */
bool caller_reply(caller *from, eb_reply *reply, size_t *bulk_len);
/* A fresh, empty lane in place of one that was closed. */
void caller_renew(caller *from);

#endif
