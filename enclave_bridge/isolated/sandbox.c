#include "sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "enclave_bridge.h"

#define DESCRIPTORS 1024 /* beside its own: a source, and a target that is a file, keep one each */

static bool limit(int what, rlim_t value) {
  const struct rlimit both = {value, value};
  return setrlimit((__rlimit_resource_t)what, &both) == 0;
}

uint32_t eb_sandbox_begin(int keep_fd) {
  uint32_t in_force = 0;
  if (keep_fd >= 0) (void)!syscall(SYS_close_range, (unsigned)keep_fd + 1, ~0u, 0);
  signal(SIGXFSZ, SIG_IGN); /* a file over its limit is an error of the call, not the end */
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) == 0) in_force |= EB_HARDENED_PARENT_DEATH;
  if (prctl(PR_SET_DUMPABLE, 0) == 0) in_force |= EB_HARDENED_NOT_DUMPABLE;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0) in_force |= EB_HARDENED_NO_NEW_PRIVS;
  if (limit(RLIMIT_CORE, 0) && limit(RLIMIT_NOFILE, DESCRIPTORS)) in_force |= EB_HARDENED_LIMITS;
  return in_force;
}

/* Private memory: what is shared (regions, lanes, secret memory) is bounded by what others made. */
uint32_t eb_sandbox_limit_memory(uint64_t bytes) { return limit(RLIMIT_DATA, bytes) ? EB_HARDENED_LIMITS : 0; }

static bool drop_capabilities(void) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  const struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
  return syscall(SYS_capset, &header, none) == 0;
}

uint32_t eb_sandbox_separate(void) {
  const int other = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS;
  uint32_t in_force = 0;
  if (unshare(CLONE_NEWUSER | other) == 0)
    in_force |= EB_HARDENED_USER_NAMESPACE | EB_HARDENED_NETWORK_NAMESPACE;
  else if (unshare(other) == 0) /* root, where user namespaces are off */
    in_force |= EB_HARDENED_NETWORK_NAMESPACE;
  if (drop_capabilities()) in_force |= EB_HARDENED_NO_CAPABILITIES;
  return in_force;
}

/* ---- the filter ------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "the system call filter knows x86-64 and arm64"
#endif

#define FIELD(name) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, name))
#define LOW_HALF(n) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(offsetof(struct seccomp_data, args) + 8 * (n)))
#define VERDICT(action) BPF_STMT(BPF_RET | BPF_K, (action))
#define ALLOW(call)                                  \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 1), \
      VERDICT(SECCOMP_RET_ALLOW)
#define REFUSE(call)                                 \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 1), \
      VERDICT(SECCOMP_RET_ERRNO | ENOSYS)
/* Allowed without PROT_EXEC in argument 2. */
#define ALLOW_NOT_EXECUTABLE(call)                            \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 4),          \
      LOW_HALF(2),                                            \
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 0, 1),  \
      VERDICT(SECCOMP_RET_KILL_PROCESS), VERDICT(SECCOMP_RET_ALLOW)
/* Allowed of a descriptor only: AT_EMPTY_PATH in argument 3. */
#define ALLOW_OF_DESCRIPTOR(call)                                \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 4),             \
      LOW_HALF(3),                                               \
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x1000, 0, 1),         \
      VERDICT(SECCOMP_RET_ALLOW), VERDICT(SECCOMP_RET_KILL_PROCESS)

/* Allowed with this value in argument 1. */
#define ALLOW_REQUEST(call, value)                              \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 4),            \
      LOW_HALF(1),                                              \
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, 1),       \
      VERDICT(SECCOMP_RET_ALLOW), VERDICT(SECCOMP_RET_KILL_PROCESS)
#define SNP_GET_DERIVED_KEY 0xc0205301u /* _IOWR('S', 1, 32 bytes), as in sealing_linux.c */

uint32_t eb_sandbox_seal(void) {
  struct sock_filter rules[] = {
      FIELD(arch),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),
      VERDICT(SECCOMP_RET_KILL_PROCESS),
      FIELD(nr), /* the x32 numbers are above all of these */
      ALLOW(SYS_futex),
      ALLOW(SYS_recvmsg), /* of the one socket: descriptors of calls */
      ALLOW(SYS_sendmsg), /* the answer to the set-up */
      ALLOW(SYS_close),
      ALLOW(SYS_fstat),
      ALLOW_OF_DESCRIPTOR(SYS_newfstatat),
      ALLOW(SYS_pread64), /* sources, and targets that are files */
      ALLOW(SYS_preadv),
      ALLOW(SYS_pwrite64),
      ALLOW(SYS_pwritev),
      ALLOW(SYS_sync_file_range),
      ALLOW(SYS_fsync), /* tables of page MACs, and the key of a file */
      ALLOW(SYS_fdatasync),
      ALLOW(SYS_ftruncate),
      ALLOW(SYS_geteuid),
      ALLOW(SYS_clock_nanosleep), /* the SNP firmware is asked for its key again while the host is busy */
      ALLOW_REQUEST(SYS_ioctl, SNP_GET_DERIVED_KEY),
      ALLOW(SYS_fstatfs),
      ALLOW(SYS_fcntl), /* dup, flags */
      ALLOW_NOT_EXECUTABLE(SYS_mmap),
      ALLOW_NOT_EXECUTABLE(SYS_mprotect),
      ALLOW(SYS_munmap),
      ALLOW(SYS_mremap),
      ALLOW(SYS_madvise),
      ALLOW(SYS_brk),
      ALLOW(SYS_getrandom), /* libcrypto reseeds */
      ALLOW(SYS_getpid),
      ALLOW(SYS_gettid),
      ALLOW(SYS_clock_gettime), /* where the vDSO has no clock */
      ALLOW(SYS_sched_yield),
      ALLOW(SYS_getrusage), /* has another thread had the core? */
      ALLOW(SYS_ppoll),
#ifdef SYS_poll
      ALLOW(SYS_poll),
#endif
      ALLOW(SYS_restart_syscall),
      ALLOW(SYS_rt_sigreturn),
      ALLOW(SYS_rt_sigprocmask),
      ALLOW(SYS_exit),
      ALLOW(SYS_exit_group),
      /* io_uring's requests would pass this filter by; who asks for it is told that there is none. */
      REFUSE(SYS_io_uring_setup),
      VERDICT(SECCOMP_RET_KILL_PROCESS),
  };
  const struct sock_fprog program = {sizeof rules / sizeof rules[0], rules};
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0
             ? EB_HARDENED_SECCOMP
             : 0;
}
