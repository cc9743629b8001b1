/* Starts the program and notices its end. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"
#include "guard.h"

#define PROGRAM "pagegate-bridge"
#define SOCKET_FD 3 /* the program's only descriptor beside the standard ones */
#define START_MS 10000
#define END_MS 2000
#define DEFAULT_LANES 4u
#define DEFAULT_MEMORY (UINT64_C(1) << 30)

/* ---- the parent thread -------------------------------------------------------------------------
 *
 * The program is killed by the kernel when the thread that started it ends (PR_SET_PDEATHSIG). So a thread
 * does nothing but start it and wait for its end: it ends with the process, and not before. */

typedef struct {
  eb_bridge *bridge;
  const char *program;
  int socket; /* the program's end */
  bool done, started;
} launch;

static bool start(launch *l) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  sigset_t none, all;
  char *const argv[] = {(char *)(uintptr_t)PROGRAM, NULL}, *const environment[] = {NULL};
  sigemptyset(&none);
  sigfillset(&all);
  if (posix_spawn_file_actions_init(&actions) != 0) return false;
  if (posix_spawnattr_init(&attributes) != 0) {
    posix_spawn_file_actions_destroy(&actions);
    return false;
  }
  bool ok = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF) == 0 &&
            posix_spawnattr_setsigmask(&attributes, &none) == 0 && posix_spawnattr_setsigdefault(&attributes, &all) == 0 &&
            posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0) == 0 &&
            posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0) == 0 &&
            posix_spawn_file_actions_adddup2(&actions, l->socket, SOCKET_FD) == 0 &&
            posix_spawn(&l->bridge->process, l->program, &actions, &attributes, argv, environment) == 0;
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (ok) l->bridge->pidfd = (int)syscall(SYS_pidfd_open, l->bridge->process, 0);
  return ok;
}

static void *parent(void *argument) {
  launch *l = argument;
  eb_bridge *bridge = l->bridge;
  const bool started = start(l);
  close(l->socket);
  pthread_mutex_lock(&bridge->lock);
  l->started = started;
  l->done = true;
  pthread_cond_broadcast(&bridge->lane_given); /* `l` is gone from here on */
  pthread_mutex_unlock(&bridge->lock);
  if (!started) return NULL;
  siginfo_t how;
  while (waitid(P_PID, (id_t)bridge->process, &how, WEXITED) != 0 && errno == EINTR) continue;
  eb_client_end(bridge);
  return NULL;
}

static eb_status launch_program(eb_bridge *bridge, const char *program, int program_socket) {
  eb_status status = EB_OK;
  launch l = {.bridge = bridge, .program = program, .socket = program_socket};
  sigset_t all, former;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &former); /* the process's signals are not for this thread */
  const int failed = pthread_create(&bridge->watcher, NULL, parent, &l);
  pthread_sigmask(SIG_SETMASK, &former, NULL);
  if (failed) close(program_socket);
  EB_ENSURE(!failed, EB_ERR_MEMORY);
  bridge->watched = true;
  pthread_mutex_lock(&bridge->lock);
  while (!l.done) pthread_cond_wait(&bridge->lane_given, &bridge->lock);
  pthread_mutex_unlock(&bridge->lock);
  EB_ENSURE(l.started, EB_ERR_BRIDGE_DIED);
done:
  return status;
}

void eb_client_stop(eb_bridge *bridge) {
  if (!bridge->watched) return;
  if (bridge->socket >= 0) shutdown(bridge->socket, SHUT_RDWR); /* a forked child may hold it open */
  struct pollfd ended = {.fd = bridge->pidfd, .events = POLLIN};
  if (bridge->pidfd >= 0 && poll(&ended, 1, END_MS) <= 0) syscall(SYS_pidfd_send_signal, bridge->pidfd, SIGKILL, NULL, 0);
  pthread_join(bridge->watcher, NULL);
  bridge->watched = false;
}

/* ---- set-up ---------------------------------------------------------------------------------------- */

static bool wait_readable(int fd, int ms) {
  struct pollfd readable = {.fd = fd, .events = POLLIN};
  int found = 0;
  while ((found = poll(&readable, 1, ms)) < 0 && errno == EINTR) continue;
  return found > 0;
}

/* The program's answer, and the descriptor of the lanes' memory. */
static eb_status receive_ready(int socket, eb_ready *ready, int *area_fd) {
  union {
    struct cmsghdr header;
    uint8_t bytes[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec data = {ready, sizeof *ready};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_LEN(sizeof(int))};
  eb_status status = EB_OK;
  EB_ENSURE(wait_readable(socket, START_MS), EB_ERR_BRIDGE_DIED);
  EB_ENSURE(recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == sizeof *ready, EB_ERR_BRIDGE_DIED);
  const struct cmsghdr *found = CMSG_FIRSTHDR(&message);
  if (found != NULL && found->cmsg_type == SCM_RIGHTS && found->cmsg_len == CMSG_LEN(sizeof *area_fd))
    memcpy(area_fd, CMSG_DATA(found), sizeof *area_fd);
  EB_ENSURE(ready->version == EB_WIRE_VERSION, EB_ERR_BRIDGE_DIED);
  EB_ENSURE(ready->status == EB_OK, (eb_status)ready->status);
  EB_ENSURE(*area_fd >= 0, EB_ERR_BRIDGE_DIED);
done:
  return status;
}

static eb_status agree(eb_bridge *bridge, const eb_setup *setup) {
  eb_status status = EB_OK;
  eb_ready ready = {0};
  int area_fd = -1;
  EB_ENSURE(send(bridge->socket, setup, sizeof *setup, MSG_NOSIGNAL) == sizeof *setup, EB_ERR_BRIDGE_DIED);
  EB_TRY(receive_ready(bridge->socket, &ready, &area_fd));
  EB_TRY(eb_client_attach(bridge, area_fd, setup->lanes));
done:
  if (area_fd >= 0) close(area_fd);
  return status;
}

/* The program beside the file that this code is in. */
static eb_status beside(char path[PATH_MAX]) {
  Dl_info facts;
  eb_status status = EB_OK;
  EB_ENSURE(dladdr((const void *)(uintptr_t)&eb_isolated_open, &facts) != 0 && facts.dli_fname != NULL,
            EB_ERR_BRIDGE_DIED);
  const char *slash = strrchr(facts.dli_fname, '/');
  const int folder = slash != NULL ? (int)(slash - facts.dli_fname) : 1;
  const int len = snprintf(path, PATH_MAX, "%.*s/" PROGRAM, folder, slash != NULL ? facts.dli_fname : ".");
  EB_ENSURE(len > 0 && len < PATH_MAX, EB_ERR_BRIDGE_DIED);
done:
  return status;
}

eb_status eb_isolated_open(const eb_bridge_options *options, const eb_isolated_options *isolated, eb_bridge **bridge) {
  static const eb_bridge_options defaults = {.max_sessions = 256, .max_handshakes = 64};
  static const eb_isolated_options isolated_defaults = {0};
  eb_status status = EB_OK;
  eb_bridge *made = NULL;
  int ends[2] = {-1, -1};
  char path[PATH_MAX];

  EB_ENSURE(bridge != NULL, EB_ERR_ARGUMENT);
  if (options == NULL) options = &defaults;
  if (isolated == NULL) isolated = &isolated_defaults;
  eb_setup setup = {.version = EB_WIRE_VERSION,
                    .lanes = isolated->lanes != 0 ? isolated->lanes : DEFAULT_LANES,
                    .max_sessions = options->max_sessions,
                    .max_handshakes = options->max_handshakes,
                    .max_guards = options->max_guards,
                    .memory_limit = isolated->memory_limit != 0 ? isolated->memory_limit : DEFAULT_MEMORY};
  if (options->gcm_kernel != NULL) {
    EB_ENSURE(strlen(options->gcm_kernel) < sizeof setup.gcm_kernel, EB_ERR_ARGUMENT);
    strcpy(setup.gcm_kernel, options->gcm_kernel);
  }
  EB_ENSURE(options->file_io == NULL || strcmp(options->file_io, "pread") == 0, EB_ERR_ARGUMENT);
  if (isolated->program == NULL) EB_TRY(beside(path));
  EB_TRY(eb_client_new(&made));
  EB_ENSURE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0, EB_ERR_MEMORY);
  made->socket = ends[0];
  EB_TRY(launch_program(made, isolated->program != NULL ? isolated->program : path, ends[1])); /* closes its end */
  EB_TRY(agree(made, &setup));
  *bridge = made;
  made = NULL;
done:
  if (made != NULL) eb_client_free(made);
  return status;
}

eb_status eb_isolated_pidfd(eb_bridge *bridge, int *fd) {
  eb_status status = EB_OK;
  EB_TRY(eb_client_usable(bridge));
  EB_ENSURE(fd != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(bridge->pidfd >= 0, EB_ERR_STATE);
  *fd = bridge->pidfd;
done:
  return status;
}
