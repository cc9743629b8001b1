/* The side that has the bridge: takes calls from the lanes and makes them. */
#ifndef EB_SERVE_H
#define EB_SERVE_H

#include <pthread.h>
#include <stdatomic.h>

#include "handles.h"
#include "lanes.h"
#include "pages.h"

#ifdef EB_SERVE_APART /* a shared object of the tests */
#define EB_SERVER_API EB_API
#else
#define EB_SERVER_API
#endif

typedef struct eb_server eb_server;

typedef struct {
  eb_server *server;
  eb_ring calls, replies;
  uint8_t *gathered; /* EB_MAX_MESSAGE_SIZE of private memory */
  pthread_t thread;
  bool running;
} eb_lane;

struct eb_server {
  eb_bridge *bridge;
  eb_handles handles;
  eb_lane lanes[EB_MAX_LANES];
  uint32_t lane_count;
  atomic_uint started;
  uint8_t *area;
  size_t area_len;
  int area_fd; /* belongs to the server; -1 after eb_server_close */
  int socket;  /* the caller's; descriptors of calls come from it */
  uint32_t hardening;
};

/* One call in progress. Everything of the caller's is a copy but `part`. */
typedef struct {
  eb_lane *lane;
  eb_call call;
  void *object[EB_CALL_HANDLES];
  int fds[EB_CALL_DESCRIPTORS]; /* -1: none */
  const uint8_t *bulk; /* gathered bytes */
  const uint8_t *part; /* hostile memory: read once */
  size_t part_len;     /* what it will be; pages and records may still be on their way (eb_job_arrived) */
  size_t part_at;      /* where in the message of the ring */
  uint64_t taken;  /* bytes of bulk data of the parts so far, this one included */
  uint8_t *room;   /* reserved for the next reply */
  bool broken;     /* the caller does not keep to the form, or is gone */
  eb_used_lane used; /* to be given back after the reply */
  eb_reply reply;
} eb_job;

/* Opens the bridge and makes the lanes; nothing runs yet. The caller checks nothing of `setup` before.
 * The server must not move in memory afterwards. */
EB_MUST_USE EB_SERVER_API eb_status eb_server_open(eb_server *server, const eb_setup *setup, int socket);
/* Starts a thread a lane and returns when all of them are about to serve. */
EB_MUST_USE EB_SERVER_API eb_status eb_server_start(eb_server *server);
/* Serves one lane until it is closed. False when the caller did not keep to the form. */
bool eb_lane_serve(eb_lane *lane);
/* Ends the lanes, waits for the threads, frees every handle and the bridge. */
EB_SERVER_API void eb_server_close(eb_server *server);
/* What a lane's thread does when its caller breaks the form. The default closes the lane. */
extern void (*eb_server_violated)(eb_lane *lane);

/* The next part of a streamed call's bulk data; false when there is none, or job->broken. */
bool eb_job_next(eb_job *job);
/* Waits for at_least bytes of the part; *arrived says how many there are. EB_ERR_BRIDGE_DIED: job->broken. */
EB_MUST_USE eb_status eb_job_arrived(eb_job *job, size_t at_least, size_t *arrived);
/* Tells the caller that what was to be made of the first len bytes of the part is in their place. */
void eb_job_made(eb_job *job, size_t len);
/* Room for a reply with len bytes of bulk data behind it; NULL when the caller is gone. */
uint8_t *eb_job_room(eb_job *job, size_t len);
/* Publishes job->reply, and the len bytes that were put behind it, into the room. */
void eb_job_send(eb_job *job, size_t len, bool final);

typedef eb_status (*eb_function)(eb_job *job);
typedef struct {
  eb_function run;
  eb_kind kind[EB_CALL_HANDLES];
  uint32_t small_least, small_most;
  eb_bulk bulk;
  uint32_t descriptors;
} eb_row;
/* calls.c: one row an eb_op. */
extern const eb_row eb_rows[EB_OPS];

#endif
