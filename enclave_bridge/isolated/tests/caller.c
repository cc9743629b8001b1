#include "caller.h"

#include <sys/socket.h>
#include <unistd.h>

#include "check.h"

static void attach(caller *made) {
  uint8_t *calls = eb_lane_at(made->server.area, 0), *replies = calls + eb_ring_stride();
  CHECK_OK(eb_ring_attach(&made->calls, EB_RING_PRODUCER, calls, eb_ring_stride()));
  CHECK_OK(eb_ring_attach(&made->replies, EB_RING_CONSUMER, replies, eb_ring_stride()));
}

void caller_open(caller *made) {
  const eb_setup setup = {.version = EB_WIRE_VERSION, .lanes = 1, .max_sessions = 4, .max_handshakes = 4};
  int ends[2];
  CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
  made->socket = ends[0];
  CHECK_OK(eb_server_open(&made->server, &setup, ends[1]));
  attach(made);
}

void caller_close(caller *made) {
  close(made->server.socket);
  eb_server_close(&made->server);
  close(made->socket);
}

static void put_behind(caller *from, const void *head, size_t head_len, const void *bulk, size_t len) {
  uint8_t *room = NULL;
  CHECK_OK(eb_ring_reserve(&from->calls, head_len + len, 0, &room));
  if (head_len > 0) memcpy(room, head, head_len);
  if (len > 0) memcpy(room + head_len, bulk, len);
  CHECK_OK(eb_ring_publish(&from->calls, head_len + len));
}

void caller_put(caller *from, const void *bytes, size_t len) { put_behind(from, NULL, 0, bytes, len); }

void caller_put_growing(caller *from, const void *bytes, size_t len, size_t told) {
  uint8_t *room = NULL;
  CHECK_OK(eb_ring_reserve(&from->calls, len, 0, &room));
  if (len > 0) memcpy(room, bytes, len);
  CHECK_OK(eb_ring_grow(&from->calls, told));
}

void caller_put_call(caller *from, eb_call call, const void *bulk, size_t len) {
  put_behind(from, &call, sizeof call, bulk, len);
}

bool caller_serve(caller *from) {
  eb_ring_close(&from->calls); /* what was published still comes */
  return eb_lane_serve(&from->server.lanes[0]);
}

void caller_renew(caller *from) {
  eb_lane *lane = &from->server.lanes[0];
  uint8_t *calls = eb_lane_at(from->server.area, 0), *replies = calls + eb_ring_stride();
  CHECK_OK(eb_ring_format(calls, eb_ring_stride()));
  CHECK_OK(eb_ring_format(replies, eb_ring_stride()));
  CHECK_OK(eb_ring_attach(&lane->calls, EB_RING_CONSUMER, calls, eb_ring_stride()));
  CHECK_OK(eb_ring_attach(&lane->replies, EB_RING_PRODUCER, replies, eb_ring_stride()));
  attach(from);
}

bool caller_reply(caller *from, eb_reply *reply, size_t *bulk_len) {
  const uint8_t *message = NULL;
  size_t len = 0;
  if (eb_ring_peek(&from->replies, 0, &message, &len) != EB_OK) return false;
  const size_t head = len < sizeof *reply ? len : sizeof *reply;
  CHECK(head >= EB_REPLY_HEADER);
  memcpy(reply, message, head);
  CHECK(reply->small_len <= head - EB_REPLY_HEADER);
  if (bulk_len != NULL) *bulk_len = len - head;
  eb_ring_consume(&from->replies);
  return true;
}

eb_reply caller_call(caller *from, eb_call call, const void *bulk, size_t len) {
  eb_reply reply = {0};
  call.bulk_len = len;
  caller_put_call(from, call, bulk, len);
  CHECK(caller_serve(from));
  do CHECK(caller_reply(from, &reply, NULL));
  while (!reply.final);
  caller_renew(from);
  return reply;
}
