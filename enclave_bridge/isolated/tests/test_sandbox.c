/* The filter really kills: each forbidden call in a child of its own. */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "enclave_bridge.h"

typedef long (*action)(void);

static int spare;

static long do_socket(void) { return syscall(SYS_socket, AF_INET, SOCK_STREAM, 0); }
static long do_connect(void) { return syscall(SYS_connect, spare, NULL, 0); }
static long do_execve(void) { return syscall(SYS_execve, "/bin/true", NULL, NULL); }
static long do_ptrace(void) { return syscall(SYS_ptrace, PTRACE_TRACEME, 0, NULL, NULL); }
static long do_openat(void) { return syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY); }
static long do_clone(void) { return syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0); }
static long do_kill(void) { return syscall(SYS_kill, getppid(), 0); }
static long do_read_other(void) { return syscall(SYS_process_vm_readv, getppid(), NULL, 0, NULL, 0, 0); }
static long do_write(void) { return syscall(SYS_write, 2, "x", 1); }
static long do_prctl(void) { return syscall(SYS_prctl, 0, 0, 0, 0, 0); }
static long do_uring_enter(void) { return syscall(SYS_io_uring_enter, spare, 0, 0, 0, NULL, 0); }
static long do_mmap_exec(void) {
  return syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
static long do_mprotect_exec(void) { return syscall(SYS_mprotect, NULL, 0, PROT_EXEC); }
static long do_stat_path(void) {
  struct stat facts;
  return syscall(SYS_newfstatat, AT_FDCWD, "/etc/passwd", &facts, 0);
}
static long do_x32(void) { return syscall(0x40000000 + SYS_close, spare); }

static long do_nothing(void) { return 0; }
static long do_mmap(void) {
  return syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) < 0;
}
static long do_fstat(void) {
  struct stat facts;
  return fstat(spare, &facts);
}
static long do_pread(void) {
  char byte;
  return syscall(SYS_pread64, spare, &byte, 0, 0);
}
/* Refused, and the caller goes on without. */
static long do_uring_setup(void) { return syscall(SYS_io_uring_setup, 1, NULL) == -1 && errno == ENOSYS ? 0 : 1; }

/* How a child ends that confines itself and then does this: 0, an exit status or minus a signal. */
static int confined(action act) {
  int status = 0;
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    (void)!eb_sandbox_begin(-1);
    if (eb_sandbox_seal() == 0) _exit(99);
    _exit(act() == 0 ? 0 : 1);
  }
  CHECK(waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void test_call_when_not_on_the_list_kills(void) {
  const struct {
    const char *name;
    action act;
  } cases[] = {
      {"socket", do_socket},       {"connect", do_connect},         {"execve", do_execve},
      {"ptrace", do_ptrace},       {"openat", do_openat},           {"clone", do_clone},
      {"kill", do_kill},           {"process_vm_readv", do_read_other}, {"write", do_write},
      {"prctl", do_prctl},         {"io_uring_enter", do_uring_enter}, {"mmap executable", do_mmap_exec},
      {"mprotect executable", do_mprotect_exec}, {"stat of a path", do_stat_path}, {"x32 call", do_x32},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const int how = confined(cases[i].act);
    if (how != -SIGSYS) fprintf(stderr, "%s ended with %d\n", cases[i].name, how);
    CHECK(how == -SIGSYS);
  }
}

static void test_call_when_on_the_list_passes(void) {
  const action cases[] = {do_nothing, do_mmap, do_fstat, do_pread, do_uring_setup};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) CHECK(confined(cases[i]) == 0);
}

static void *wait_then_socket(void *go) {
  while (!__atomic_load_n((int *)go, __ATOMIC_ACQUIRE)) syscall(SYS_sched_yield);
  (void)do_socket();
  return NULL;
}

static void test_thread_when_started_before_the_filter_is_under_it(void) {
  int status = 0;
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    static int go;
    pthread_t thread;
    if (pthread_create(&thread, NULL, wait_then_socket, &go) != 0) _exit(98);
    usleep(50000);
    (void)!eb_sandbox_begin(-1);
    if (eb_sandbox_seal() == 0) _exit(99);
    __atomic_store_n(&go, 1, __ATOMIC_RELEASE);
    for (;;) syscall(SYS_sched_yield);
  }
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

/* exit, not _exit, so that line counts are kept. */
static void test_process_when_begun_is_limited(void) {
  int status = 0;
  const int kept = dup(0), other = fcntl(0, F_DUPFD, kept + 10);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    struct rlimit core, data;
    const uint32_t in_force = eb_sandbox_begin(kept);
    CHECK(in_force == (EB_HARDENED_PARENT_DEATH | EB_HARDENED_NOT_DUMPABLE | EB_HARDENED_NO_NEW_PRIVS |
                       EB_HARDENED_LIMITS));
    CHECK(fcntl(kept, F_GETFD) >= 0 && fcntl(other, F_GETFD) < 0);
    CHECK(getrlimit(RLIMIT_CORE, &core) == 0 && core.rlim_max == 0);
    CHECK(eb_sandbox_limit_memory(UINT64_C(1) << 60) == EB_HARDENED_LIMITS);
    CHECK(getrlimit(RLIMIT_DATA, &data) == 0 && data.rlim_max == UINT64_C(1) << 60);
    CHECK(eb_sandbox_limit_memory(UINT64_C(1) << 61) == 0 || geteuid() == 0); /* not raised again */
    CHECK((eb_sandbox_separate() & EB_HARDENED_NO_CAPABILITIES) != 0);
    exit(0);
  }
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

#if defined(EB_SANITIZE_THREAD) || defined(EB_SANITIZE_ADDRESS) /* their runtime makes calls of its own */
enum { FILTERED = 0 };
#else
enum { FILTERED = 1 };
#endif

int main(void) {
  spare = dup(0);
  CHECK(spare >= 0);
  RUN(test_process_when_begun_is_limited);
  if (FILTERED) RUN(test_call_when_on_the_list_passes);
  if (FILTERED) RUN(test_call_when_not_on_the_list_kills);
  if (FILTERED) RUN(test_thread_when_started_before_the_filter_is_under_it);
  return 0;
}
