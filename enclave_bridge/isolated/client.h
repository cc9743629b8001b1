/* The side that wants the bridge: lanes of the shared memory, and how a call crosses one. */
#ifndef EB_CLIENT_H
#define EB_CLIENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "eb_isolated.h"
#include "lanes.h"

typedef struct {
  eb_ring calls, replies;
} eb_client_lane;

struct eb_bridge {
  atomic_uint references;
  atomic_bool dead;          /* the program has ended, or does not keep to the form */
  volatile uint64_t *canary; /* wiped by the kernel in a forked child */
  int socket;                /* -1: none */
  uint8_t *area;
  size_t area_len;
  uint32_t lane_count;

  pthread_mutex_t lock; /* guards what follows */
  pthread_cond_t lane_given;
  eb_client_lane lanes[EB_MAX_LANES];
  uint32_t free_lanes[EB_MAX_LANES], free_count;
  bool attached;

  pthread_mutex_t socket_lock; /* from sending a descriptor until its call is published */
  pthread_t watcher;           /* the thread that is the program's parent */
  bool watched;
  pid_t process;
  int pidfd;
};

/* One call on its way. */
typedef struct {
  eb_call call; /* all but bulk_len */
  const uint8_t *in;
  size_t in_len, in_unit;       /* bytes; 1, or the size of a page or a record */
  bool in_place;                /* `in` is pages, which become the records in `out` */
  uint8_t *out;
  size_t out_cap, out_len;
  int fds[EB_CALL_DESCRIPTORS]; /* go along with the call */
  uint32_t fd_count;
  uint64_t *gpas; /* of each record of `in`, as it was sent; NULL: not wanted */
  eb_reply reply;
} eb_crossing;

/* A client without lanes. Freed by eb_client_free. */
eb_status eb_client_new(eb_bridge **bridge);
/* Maps the lanes' memory, whose descriptor stays the caller's. */
eb_status eb_client_attach(eb_bridge *bridge, int area_fd, uint32_t lanes);
void eb_client_free(eb_bridge *bridge);
/* Ends every call in progress and to come with EB_ERR_BRIDGE_DIED. Any thread, any number of times. */
void eb_client_end(eb_bridge *bridge);
/* EB_ERR_ARGUMENT, EB_ERR_FORKED. */
eb_status eb_client_usable(const eb_bridge *bridge);
/* Makes the call and returns its status; crossing->reply and ->out_len are set. EB_ERR_BRIDGE_DIED. */
eb_status eb_cross(eb_bridge *bridge, eb_crossing *crossing);
/* spawn.c: ends the program and waits for its parent thread. */
void eb_client_stop(eb_bridge *bridge);

#endif
