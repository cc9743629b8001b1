/* The program itself: started, used, refused, killed. Its path is the first argument. */
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "eb_isolated.h"

static eb_isolated_options isolated = {.lanes = 2};

static eb_bridge *opened(void) {
  const eb_bridge_options options = {.max_sessions = 2, .max_handshakes = 2};
  eb_bridge *bridge = NULL;
  CHECK_OK(eb_isolated_open(&options, &isolated, &bridge));
  return bridge;
}

static void test_bridge_when_opened_serves_from_another_process(void) {
  eb_bridge *bridge = opened();
  eb_bridge_info info;
  uint8_t bytes[100];
  int fd = -1;
  CHECK_OK(eb_bridge_get_info(bridge, &info));
  CHECK(info.process > 0 && info.process != (uint32_t)getpid());
  CHECK((info.hardening & EB_HARDENED_SECCOMP) != 0 && strcmp(info.file_io, "pread") == 0);
  CHECK_OK(eb_random(bridge, bytes, sizeof bytes));
  CHECK_OK(eb_isolated_pidfd(bridge, &fd));
  fd = dup(fd);
  eb_bridge_free(bridge);
  struct pollfd ended = {.fd = fd, .events = POLLIN};
  CHECK(poll(&ended, 1, 0) == 1); /* _free waits for its end */
  close(fd);
}

static void test_options_when_refused_by_the_program_are_the_same_statuses(void) {
  eb_bridge *bridge = NULL;
  char name[64];
  memset(name, 'x', sizeof name);
  name[sizeof name - 1] = 0;
  const eb_bridge_options cases[] = {{.max_sessions = 0, .max_handshakes = 1},
                                     {.max_sessions = 1, .max_handshakes = UINT32_MAX},
                                     {.max_sessions = 1, .max_handshakes = 1, .gcm_kernel = "none"},
                                     {.max_sessions = 1, .max_handshakes = 1, .gcm_kernel = name},
                                     {.max_sessions = 1, .max_handshakes = 1, .file_io = "io_uring"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    CHECK_STATUS(EB_ERR_ARGUMENT, eb_isolated_open(&cases[i], &isolated, &bridge));
  const eb_isolated_options many = {.program = isolated.program, .lanes = 17};
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_isolated_open(NULL, &many, &bridge));
}

static void test_program_when_it_is_another_is_bridge_died(void) {
  const char *programs[] = {"/nonexistent", "/bin/true", "/bin/cat"};
  eb_bridge *bridge = NULL;
  for (size_t i = 0; i < sizeof programs / sizeof programs[0]; i++) {
    const eb_isolated_options wrong = {.program = programs[i]};
    CHECK_STATUS(EB_ERR_BRIDGE_DIED, eb_isolated_open(NULL, &wrong, &bridge));
  }
  CHECK_STATUS(EB_ERR_BRIDGE_DIED, eb_bridge_open(NULL, &bridge)); /* none is beside this test */
}

static void test_calls_when_the_program_is_killed_fail(void) {
  eb_bridge *bridge = opened();
  eb_bridge_info info;
  uint8_t byte;
  CHECK_OK(eb_bridge_get_info(bridge, &info));
  CHECK(kill((pid_t)info.process, SIGKILL) == 0);
  eb_status status = EB_OK;
  while (status == EB_OK) status = eb_random(bridge, &byte, 1);
  CHECK_STATUS(EB_ERR_BRIDGE_DIED, status);
  CHECK_STATUS(EB_ERR_BRIDGE_DIED, eb_bridge_get_info(bridge, &info));
  eb_bridge_free(bridge);
}

static void test_program_when_stopped_is_killed_by_free(void) {
  eb_bridge *bridge = opened();
  eb_bridge_info info;
  CHECK_OK(eb_bridge_get_info(bridge, &info));
  CHECK(kill((pid_t)info.process, SIGSTOP) == 0);
  eb_bridge_free(bridge); /* would wait for ever otherwise */
  CHECK(kill((pid_t)info.process, 0) != 0);
}

static void test_calls_when_made_in_a_forked_child_fail(void) {
  eb_bridge *bridge = opened();
  uint8_t byte;
  int status = 0, fd;
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK_STATUS(EB_ERR_FORKED, eb_random(bridge, &byte, 1));
    CHECK_STATUS(EB_ERR_FORKED, eb_isolated_pidfd(bridge, &fd));
    eb_bridge_free(bridge);
    exit(0);
  }
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK_OK(eb_random(bridge, &byte, 1));
  eb_bridge_free(bridge);
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  isolated.program = argv[1];
#if defined(EB_SANITIZE_ADDRESS) || defined(EB_SANITIZE_THREAD)
  printf("the sanitizers' runtime makes system calls that the filter forbids: nothing to test\n");
  return 0;
#endif
  RUN(test_bridge_when_opened_serves_from_another_process);
  RUN(test_options_when_refused_by_the_program_are_the_same_statuses);
  RUN(test_program_when_it_is_another_is_bridge_died);
  RUN(test_calls_when_the_program_is_killed_fail);
  RUN(test_program_when_stopped_is_killed_by_free);
  RUN(test_calls_when_made_in_a_forked_child_fail);
  return 0;
}
