/*
 * pagegate-bridge: holds the keys and the plaintext staging of the process that started it, and nothing else.
 * Not for use by hand: descriptor 3 is a Unix socket of that process (wire.h, spawn.c).
 */
#include <malloc.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sandbox.h"
#include "serve.h"

enum { SOCKET_FD = 3, EXIT_USAGE = 64, EXIT_REFUSED = 69, EXIT_VIOLATED = 76 };

/* Without these it does not serve. The rest depends on the kernel's configuration, and is reported. */
#define NEEDED \
  (EB_HARDENED_SECCOMP | EB_HARDENED_NO_NEW_PRIVS | EB_HARDENED_NOT_DUMPABLE | EB_HARDENED_LIMITS)

static bool answer(const eb_ready *ready, int fd) {
  union {
    struct cmsghdr header;
    uint8_t bytes[CMSG_SPACE(sizeof(int))];
  } control = {.bytes = {0}};
  struct iovec data = {(void *)(uintptr_t)ready, sizeof *ready};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
  if (fd >= 0) {
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
  }
  return sendmsg(SOCKET_FD, &message, MSG_NOSIGNAL) == sizeof *ready;
}

/* A caller that does not keep to the form is hostile or broken: no more of it. */
static void violated(eb_lane *lane) {
  (void)lane;
  _exit(EXIT_VIOLATED);
}

int main(void) {
  static eb_server server;
  eb_setup setup;
  eb_ready ready = {.version = EB_WIRE_VERSION, .hardening = eb_sandbox_begin(SOCKET_FD)};
  if (recv(SOCKET_FD, &setup, sizeof setup, 0) != sizeof setup) {
    fputs("pagegate-bridge is started by pagegate, not by hand\n", stderr);
    return EXIT_USAGE;
  }
  eb_server_violated = violated;
  /* Before it gives memory of a thread's arena back, glibc reads a file of /proc: the filter would kill the process
   * then. The first arena has no such question. */
  if (mallopt(M_ARENA_MAX, 1) != 1) return EXIT_REFUSED;
  ready.status = (int32_t)eb_server_open(&server, &setup, SOCKET_FD);
  if (ready.status == EB_OK) {
    ready.hardening |= eb_sandbox_separate();
    if (setup.memory_limit != 0 && eb_sandbox_limit_memory(setup.memory_limit) == 0)
      ready.hardening &= ~(uint32_t)EB_HARDENED_LIMITS;
    ready.status = (int32_t)eb_server_start(&server);
  }
  if (ready.status == EB_OK) {
    ready.hardening |= eb_sandbox_seal();
    server.hardening = ready.hardening;
    if ((ready.hardening & NEEDED) != NEEDED) {
      fprintf(stderr, "pagegate-bridge: refuses to run unconfined (in force: %#x, needed: %#x)\n", ready.hardening,
              (unsigned)NEEDED);
      ready.status = EB_ERR_BRIDGE_DIED;
    }
  }
  if (!answer(&ready, server.area_fd) || ready.status != EB_OK) _exit(EXIT_REFUSED);
  close(server.area_fd);
  /* Serves until the other end goes: nothing is read here, so only the hang-up is reported. */
  struct pollfd gone = {.fd = SOCKET_FD};
  while (poll(&gone, 1, -1) <= 0 || (gone.revents & (POLLHUP | POLLERR)) == 0) {
  }
  _exit(EXIT_SUCCESS);
}
