/* Files: sealing from a source, and verified pages into a file; by io_uring and without it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pair.h"
#include "source.h"

#define SIZE (WINDOW_PAGES * EB_PAGE_SIZE)

static bool without_io_uring; /* what the tests run with now */

static eb_pair *new_pair(const eb_gcm_ops *ops) {
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, ops);
  if (without_io_uring) eb_staging_close(pair->bridge);
  return pair;
}

/* A pair, a file with the pair's plaintext, and a source over it. */
typedef struct {
  eb_pair *pair;
  int fd;
  eb_source *source;
} eb_files;

static int new_file(const uint8_t *content, size_t len) {
  char path[] = "/tmp/test_files.XXXXXX";
  int fd = mkstemp(path);
  CHECK(fd >= 0 && unlink(path) == 0);
  CHECK(len == 0 || pwrite(fd, content, len, 0) == (ssize_t)len);
  return fd;
}

static eb_files files_new(const eb_gcm_ops *ops, uint64_t len) {
  eb_files files = {.pair = new_pair(ops)};
  files.fd = new_file(files.pair->plain, sizeof files.pair->plain);
  CHECK_OK(eb_source_open(files.pair->bridge, files.fd, 0, len, &files.source));
  return files;
}

static void files_free(eb_files *files) {
  CHECK(pool_is_zero(files->pair->bridge, EB_POOL_STAGING));
  CHECK(eb_arena_live(&files->pair->bridge->arena, EB_POOL_STAGING) == 0);
  CHECK(eb_arena_live(&files->pair->bridge->arena, EB_POOL_LANES) == 0);
  close(files->fd);
  pair_free(files->pair);
  eb_source_free(files->source); /* last: it keeps the bridge alive */
}

static eb_status seal_from(eb_files *files, size_t first, uint64_t offset, size_t len) {
  eb_pair *pair = files->pair;
  return eb_pages_seal_from(pair->client, pair->sent, REGION, BASE_GPA + first * EB_PAGE_SIZE, files->source, offset,
                            len, pair->records, sizeof pair->records, &pair->records_len, NULL);
}

static void test_seal_from_when_opened_is_what_the_file_has(void) {
  const eb_gcm_ops *kernels[] = {NULL, &eb_gcm_openssl, &batched_ops};
  const size_t counts[] = {1, 15, 16, 17, 63, WINDOW_PAGES};
  for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++) {
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
      eb_files files = files_new(kernels[k], SIZE);
      eb_result result;
      const size_t first = WINDOW_PAGES - counts[c];
      CHECK_OK(seal_from(&files, first, first * EB_PAGE_SIZE, counts[c] * EB_PAGE_SIZE));
      CHECK(files.pair->records_len == counts[c] * EB_RECORD_SIZE);
      CHECK_OK(pair_open(files.pair, &result));
      CHECK(result.pages == counts[c]);
      for (size_t i = first; i < WINDOW_PAGES; i++) CHECK(pair_arrived(files.pair, i));
      files_free(&files);
    }
  }
}

static void test_seal_from_when_more_than_a_slot_holds_reads_on(void) {
  enum { PAGES = 5 * EB_STAGING_SIZE / EB_PAGE_SIZE + 3 };
  eb_files files = files_new(NULL, SIZE);
  const eb_window window = {REGION, BASE_GPA, PAGES};
  const size_t room = (size_t)PAGES * EB_RECORD_SIZE;
  uint8_t *plain = malloc((size_t)PAGES * EB_PAGE_SIZE), *target = malloc((size_t)PAGES * EB_PAGE_SIZE);
  uint8_t *records = malloc(room);
  eb_transfer *received = NULL;
  eb_source *source = NULL;
  eb_result result;
  size_t len = 0;
  CHECK(plain != NULL && target != NULL && records != NULL);
  for (size_t i = 0; i < (size_t)PAGES * EB_PAGE_SIZE; i++) plain[i] = (uint8_t)(i * 7 + i / EB_PAGE_SIZE);
  int fd = new_file(plain, (size_t)PAGES * EB_PAGE_SIZE);
  CHECK_OK(eb_source_open(files.pair->bridge, fd, 0, (uint64_t)PAGES * EB_PAGE_SIZE, &source));
  close(fd); /* the source has its own */
  CHECK_OK(eb_transfer_new(files.pair->bridge, (const uint8_t *)"0123456789abcdef", &window, &received));
  CHECK_OK(eb_transfer_set_target_memory(received, target, (size_t)PAGES * EB_PAGE_SIZE));
  CHECK_OK(eb_pages_seal_from(files.pair->client, NULL, REGION, BASE_GPA, source, 0, (size_t)PAGES * EB_PAGE_SIZE,
                              records, room, &len, &result));
  CHECK(result.pages == PAGES && result.sequence == PAGES - 1);
  CHECK_OK(eb_pages_open(files.pair->server, received, records, len, &result));
  CHECK(memcmp(plain, target, (size_t)PAGES * EB_PAGE_SIZE) == 0);
  eb_transfer_free(received);
  eb_source_free(source);
  free(plain);
  free(target);
  free(records);
  files_free(&files);
}

static void test_seal_from_when_the_last_page_is_partial_pads_it_with_zeros(void) {
  static const uint8_t zero[EB_PAGE_SIZE];
  eb_files files = files_new(&eb_gcm_openssl, 3 * EB_PAGE_SIZE + 100);
  eb_result result;
  /* the staging slot held other pages before */
  CHECK_OK(seal_from(&files, 0, 0, 3 * EB_PAGE_SIZE));
  CHECK_OK(pair_open(files.pair, &result));
  CHECK_OK(seal_from(&files, 3, 3 * EB_PAGE_SIZE, EB_PAGE_SIZE));
  CHECK_OK(pair_open(files.pair, &result));
  const uint8_t *page = files.pair->target + 3 * EB_PAGE_SIZE;
  CHECK(memcmp(page, files.pair->plain + 3 * EB_PAGE_SIZE, 100) == 0);
  CHECK(memcmp(page + 100, zero, EB_PAGE_SIZE - 100) == 0);
  files_free(&files);
}

static void test_source_when_it_starts_inside_the_file_is_that_part(void) {
  eb_files files = files_new(NULL, SIZE);
  eb_source *part = NULL;
  eb_result result;
  CHECK_OK(eb_source_open(files.pair->bridge, files.fd, 10 * EB_PAGE_SIZE + 5, 2 * EB_PAGE_SIZE, &part));
  eb_source_free(files.source);
  files.source = part;
  CHECK_OK(seal_from(&files, 0, EB_PAGE_SIZE, EB_PAGE_SIZE));
  CHECK_OK(pair_open(files.pair, &result));
  CHECK(memcmp(files.pair->target, files.pair->plain + 11 * EB_PAGE_SIZE + 5, EB_PAGE_SIZE) == 0);
  files_free(&files);
}

static void test_source_when_it_is_no_readable_file_is_refused(void) {
  eb_pair *pair = new_pair(NULL);
  eb_source *source = NULL;
  int pipes[2], fd = new_file(pair->plain, EB_PAGE_SIZE);
  char path[64];
  CHECK(pipe(pipes) == 0);
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  const int write_only = open(path, O_WRONLY | O_CLOEXEC), no_access = open(path, O_PATH | O_CLOEXEC);
  const int directory = open("/tmp", O_RDONLY | O_CLOEXEC), device = open("/dev/zero", O_RDONLY | O_CLOEXEC);
  const int refused[] = {-1, pipes[0], write_only, no_access, directory, device};
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
    CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE, eb_source_open(pair->bridge, refused[i], 0, 1, &source));
  CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE, eb_source_open(pair->bridge, fd, 0, EB_PAGE_SIZE + 1, &source));
  CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE, eb_source_open(pair->bridge, fd, 1, EB_PAGE_SIZE, &source));
  CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE, eb_source_open(pair->bridge, fd, UINT64_MAX, 2, &source));
  CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE, eb_source_open(pair->bridge, fd, 1, UINT64_MAX, &source));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_source_open(pair->bridge, fd, 0, 0, &source));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_source_open(NULL, fd, 0, 1, &source));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_source_open(pair->bridge, fd, 0, 1, NULL));
  CHECK(source == NULL);
  for (size_t i = 1; i < sizeof refused / sizeof *refused; i++) close(refused[i]);
  close(pipes[1]);
  close(fd);
  eb_source_free(NULL);
  pair_free(pair);
}

static void test_seal_from_when_arguments_are_bad_uses_no_number(void) {
  eb_files files = files_new(NULL, 2 * EB_PAGE_SIZE + 1);
  eb_pair *pair = files.pair, *other = new_pair(NULL);
  const uint64_t gpa = BASE_GPA;
  const size_t room = sizeof pair->records;
  size_t len = 0;
  CHECK_STATUS(EB_ERR_LENGTH, seal_from(&files, 0, 0, EB_PAGE_SIZE - 1));
  CHECK_STATUS(EB_ERR_LENGTH, seal_from(&files, 0, 0, 0));
  CHECK_STATUS(EB_ERR_LENGTH, seal_from(&files, 0, 0, 4 * EB_PAGE_SIZE)); /* a whole page beyond the end */
  CHECK_STATUS(EB_ERR_LENGTH, seal_from(&files, 0, 2 * EB_PAGE_SIZE + 1, EB_PAGE_SIZE));
  CHECK_STATUS(EB_ERR_LENGTH, seal_from(&files, 0, UINT64_MAX, EB_PAGE_SIZE));
  CHECK_STATUS(EB_ERR_OUT_OF_RANGE, seal_from(&files, WINDOW_PAGES, 0, EB_PAGE_SIZE));
#define SEAL(session, transfer, region, at, source, cap, out_len) \
  eb_pages_seal_from(session, transfer, region, at, source, 0, EB_PAGE_SIZE, pair->records, cap, out_len, NULL)
  CHECK_STATUS(EB_ERR_ARGUMENT, SEAL(NULL, pair->sent, REGION, gpa, files.source, room, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, SEAL(pair->client, pair->sent, REGION, gpa, NULL, room, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, SEAL(pair->client, pair->sent, REGION, gpa, files.source, room, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, SEAL(pair->client, other->sent, REGION, gpa, files.source, room, &len));
  CHECK_STATUS(EB_ERR_ARGUMENT, SEAL(other->client, NULL, REGION, gpa, files.source, room, &len));
  CHECK_STATUS(EB_ERR_BUFFER, SEAL(pair->client, pair->sent, REGION, gpa, files.source, EB_RECORD_SIZE - 1, &len));
  CHECK_STATUS(EB_ERR_UNALIGNED, SEAL(pair->client, pair->sent, REGION, gpa + 1, files.source, room, &len));
  CHECK_STATUS(EB_ERR_WRONG_REGION, SEAL(pair->client, pair->sent, REGION + 1, gpa, files.source, room, &len));
  CHECK(pair->client->send_sequence == 0);
  CHECK_OK(eb_session_close(pair->client));
  CHECK_STATUS(EB_ERR_SESSION_CLOSED, seal_from(&files, 0, 0, EB_PAGE_SIZE));
  pair_free(other);
  files_free(&files);
}

static void test_seal_from_when_the_file_was_cut_leaves_nothing_and_uses_the_numbers(void) {
  const size_t cuts[] = {0, EB_PAGE_SIZE + 7, 17 * EB_PAGE_SIZE, SIZE - 1};
  for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
    eb_files files = files_new(NULL, SIZE);
    eb_pair *pair = files.pair;
    uint64_t pages = 1;
    CHECK(ftruncate(files.fd, (off_t)cuts[c]) == 0);
    CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE, seal_from(&files, 0, 0, SIZE));
    for (size_t i = 0; i < sizeof pair->records; i++) CHECK(pair->records[i] == 0);
    CHECK_OK(eb_transfer_pages(pair->sent, &pages));
    CHECK(pages == 0 && pair->client->sent_pages == 0 && pair->client->send_sequence == WINDOW_PAGES);
    CHECK(ftruncate(files.fd, SIZE) == 0); /* it goes on where it is whole again */
    CHECK_OK(seal_from(&files, 0, 0, EB_PAGE_SIZE));
    CHECK(pair->client->send_sequence == WINDOW_PAGES + 1);
    files_free(&files);
  }
}

static void test_seal_from_when_reading_fails_is_an_error(void) {
  eb_files files = files_new(NULL, SIZE);
  const int fd = files.source->fd;
  files.source->fd = 1 << 20; /* never open */
  CHECK_STATUS(EB_ERR_SOURCE_UNREADABLE, seal_from(&files, 0, 0, SIZE));
  files.source->fd = fd;
  CHECK_OK(seal_from(&files, 0, 0, SIZE));
  files_free(&files);
}

/* ---- how files are read --------------------------------------------------------------------- */

static void test_file_io_when_named_is_that_or_refused(void) {
  eb_bridge_options options = {.max_sessions = 1, .max_handshakes = 1, .file_io = "pread"};
  eb_bridge *bridge = NULL;
  eb_bridge_info info;
  CHECK_OK(eb_bridge_open(&options, &bridge));
  CHECK_OK(eb_bridge_get_info(bridge, &info));
  CHECK(strcmp(info.file_io, "pread") == 0);
  eb_bridge_free(bridge);
  options.file_io = "mmap";
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_bridge_open(&options, &bridge));
}

/* Makes the calling thread, and no other, get `error` for a system call. */
static void deny(unsigned call, unsigned error) {
  struct sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void *open_denied(void *call) {
  eb_bridge_options options = {.max_sessions = 1, .max_handshakes = 1};
  eb_bridge *bridge = NULL;
  eb_bridge_info info;
  deny(*(const unsigned *)call, EPERM);
  CHECK_OK(eb_bridge_open(&options, &bridge));
  CHECK_OK(eb_bridge_get_info(bridge, &info));
  CHECK(strcmp(info.file_io, "pread") == 0);
  eb_bridge_free(bridge);
  options.file_io = "io_uring";
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_bridge_open(&options, &bridge));
  return NULL;
}

static void test_bridge_when_io_uring_is_denied_reads_by_pread(void) {
  static const unsigned calls[] = {__NR_io_uring_setup, __NR_io_uring_register};
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, open_denied, (void *)(uintptr_t)&calls[i]) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
  }
}

static void *seal_denied(void *files) {
  deny(__NR_io_uring_enter, EPERM);
  CHECK_OK(seal_from(files, 0, 0, SIZE));
  return NULL;
}

static void test_seal_from_when_the_ring_is_denied_later_goes_on_by_pread(void) {
  eb_files files = files_new(NULL, SIZE);
  eb_result result;
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, seal_denied, &files) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK_OK(pair_open(files.pair, &result));
  for (size_t i = 0; i < WINDOW_PAGES; i++) CHECK(pair_arrived(files.pair, i));
  files_free(&files);
}

static void test_ring_when_its_memory_can_be_pinned_registers_it_and_reads(void) {
  enum { READS = 3 * EB_URING_DEPTH };
  uint8_t *memory = mmap(NULL, EB_STAGING_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uint8_t content[READS];
  eb_uring ring;
  CHECK(memory != MAP_FAILED);
  if (!eb_uring_open(&ring, memory, EB_STAGING_SIZE)) return;
  CHECK(ring.registered);
  for (size_t i = 0; i < READS; i++) content[i] = (uint8_t)(i + 1);
  const int fd = new_file(content, sizeof content);
  for (uint32_t i = 0; i < READS; i += EB_URING_DEPTH) { /* round the queues more than once */
    uint32_t seen = 0, id = 0, unseen = 0;
    int result = 0;
    for (uint32_t j = 0; j < EB_URING_DEPTH; j++) eb_uring_queue(&ring, j, fd, i + j, memory + j, 1);
    while (seen < EB_URING_DEPTH) {
      eb_uring_enter(&ring, true);
      CHECK(!eb_uring_withdraw(&ring, &unseen));
      for (; eb_uring_reap(&ring, &id, &result); seen++) CHECK(id < EB_URING_DEPTH && result == 1);
    }
    CHECK(memcmp(memory, content + i, EB_URING_DEPTH) == 0);
  }
  close(fd);
  eb_uring_close(&ring, false);
  eb_uring_close(&ring, false); /* harmless */
  munmap(memory, EB_STAGING_SIZE);
}

static void test_ring_when_asked_to_write_refuses(void) {
  uint8_t memory[EB_PAGE_SIZE] = {1};
  uint32_t id = 0;
  int result = 0;
  eb_uring ring;
  if (!eb_uring_open(&ring, memory, sizeof memory)) return;
  const int fd = new_file(memory, 1);
  eb_uring_queue(&ring, 3, fd, 1, memory, 1);
  memset(ring.requests, IORING_OP_WRITE, 1); /* as whoever breaks in would */
  eb_uring_enter(&ring, true);
  CHECK(eb_uring_reap(&ring, &id, &result) && id == 3 && result == -EACCES);
  CHECK(lseek(fd, 0, SEEK_END) == 1);
  close(fd);
  eb_uring_close(&ring, false);
}

static bool seals_nothing(eb_files *files) {
  eb_source *source = NULL;
  const bool refused = seal_from(files, 0, 0, SIZE) == EB_ERR_FORKED &&
                       eb_source_open(files->pair->bridge, files->fd, 0, 1, &source) == EB_ERR_FORKED;
  eb_source_free(files->source);
  pair_free(files->pair);
  return refused;
}

static void test_source_when_forked_is_refused_and_the_parent_s_ring_works_on(void) {
  eb_files files = files_new(NULL, SIZE);
  int how = 0;
  fflush(NULL);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) _exit(seals_nothing(&files) ? 0 : 1);
  CHECK(waitpid(child, &how, 0) == child && WIFEXITED(how) && WEXITSTATUS(how) == 0);
  CHECK_OK(seal_from(&files, 0, 0, SIZE));
  files_free(&files);
}

/* ---- a target that is a file ------------------------------------------------------------------ */

/* A transfer of the pair's window into fd. */
static eb_transfer *into(eb_pair *pair, int fd, uint64_t offset) {
  const eb_window window = {REGION, BASE_GPA, WINDOW_PAGES};
  eb_transfer *transfer = NULL;
  CHECK_OK(eb_transfer_new(pair->bridge, (const uint8_t *)"0123456789abcdef", &window, &transfer));
  CHECK_OK(eb_transfer_set_target_fd(transfer, fd, offset));
  return transfer;
}

static bool file_has(int fd, size_t page, const uint8_t *content) {
  uint8_t found[EB_PAGE_SIZE];
  return pread(fd, found, sizeof found, (off_t)(page * EB_PAGE_SIZE)) == sizeof found &&
         memcmp(found, content, sizeof found) == 0;
}

static uint64_t pages_of(eb_transfer *transfer) {
  uint64_t pages = UINT64_MAX;
  CHECK_OK(eb_transfer_pages(transfer, &pages));
  return pages;
}

static int empty_file(void) {
  const int fd = new_file(NULL, 0);
  CHECK(ftruncate(fd, SIZE + EB_PAGE_SIZE) == 0);
  return fd;
}

static void test_target_when_it_is_a_file_is_written_and_not_mapped(void) {
  const eb_gcm_ops *kernels[] = {NULL, &eb_gcm_openssl};
  for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++) {
    eb_pair *pair = new_pair(kernels[k]);
    const int fd = empty_file();
    eb_transfer *transfer = into(pair, fd, EB_PAGE_SIZE);
    eb_result result;
    CHECK(transfer->mapping == NULL && transfer->target == NULL);
    CHECK_STATUS(EB_ERR_STATE, eb_transfer_set_target_fd(transfer, fd, 0));
    CHECK_STATUS(EB_ERR_STATE, eb_transfer_set_target_memory(transfer, pair->target, sizeof pair->target));
    pair_seal(pair, 0, WINDOW_PAGES);
    CHECK_OK(eb_pages_open(pair->server, transfer, pair->records, pair->records_len, &result));
    CHECK(result.pages == WINDOW_PAGES && pages_of(transfer) == WINDOW_PAGES);
    for (size_t i = 0; i < WINDOW_PAGES; i++) CHECK(file_has(fd, i + 1, pair->plain + i * EB_PAGE_SIZE));
    CHECK(pool_is_zero(pair->bridge, EB_POOL_LANES));
    eb_transfer_free(transfer);
    close(fd);
    pair_free(pair);
  }
}

static void test_target_file_when_pages_come_in_any_order_has_the_newest_of_each(void) {
  static const size_t order[] = {5, 6, 7, 2, 2, 3, 60, 7, 6, 5, 0};
  static const uint8_t zero[EB_PAGE_SIZE];
  eb_pair *pair = new_pair(NULL);
  const int fd = empty_file();
  eb_transfer *transfer = into(pair, fd, 0);
  eb_result result;
  size_t used = 0, len = 0;
  for (size_t i = 0; i < sizeof order / sizeof *order; i++) { /* each time another content */
    memset(pair->plain + order[i] * EB_PAGE_SIZE, (int)(i + 1), EB_PAGE_SIZE);
    CHECK_OK(eb_pages_seal(pair->client, NULL, REGION, BASE_GPA + order[i] * EB_PAGE_SIZE,
                           pair->plain + order[i] * EB_PAGE_SIZE, EB_PAGE_SIZE, pair->records + used, EB_RECORD_SIZE,
                           &len, NULL));
    used += len;
  }
  CHECK_OK(eb_pages_open(pair->server, transfer, pair->records, used, &result));
  CHECK(result.pages == sizeof order / sizeof *order && pages_of(transfer) == 7);
  for (size_t i = 0; i < sizeof order / sizeof *order; i++)
    CHECK(file_has(fd, order[i], pair->plain + order[i] * EB_PAGE_SIZE));
  CHECK(file_has(fd, 1, zero) && file_has(fd, 4, zero));
  eb_transfer_free(transfer);
  close(fd);
  pair_free(pair);
}

static void test_target_file_when_a_record_is_tampered_has_those_before_it(void) {
  static const uint8_t zero[EB_PAGE_SIZE];
  eb_pair *pair = new_pair(NULL);
  const int fd = empty_file();
  eb_transfer *transfer = into(pair, fd, 0);
  eb_result result;
  pair_seal(pair, 0, 20);
  pair->records[18 * EB_RECORD_SIZE + 1000] ^= 1;
  CHECK_STATUS(EB_ERR_TAMPERED, eb_pages_open(pair->server, transfer, pair->records, pair->records_len, &result));
  CHECK(result.pages == 18 && result.bad_index == 18 && pages_of(transfer) == 18);
  CHECK(file_has(fd, 17, pair->plain + 17 * EB_PAGE_SIZE) && file_has(fd, 18, zero) && file_has(fd, 19, zero));
  eb_transfer_free(transfer);
  close(fd);
  pair_free(pair);
}

static void test_target_file_when_it_cannot_be_written_to_is_refused(void) {
  const eb_window window = {REGION, BASE_GPA, WINDOW_PAGES};
  eb_pair *pair = new_pair(NULL);
  eb_transfer *transfer = NULL;
  const int fd = empty_file();
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  const int modes[] = {O_RDONLY, O_PATH, O_RDWR | O_APPEND};
  CHECK_OK(eb_transfer_new(pair->bridge, (const uint8_t *)"0123456789abcdef", &window, &transfer));
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
    const int refused = open(path, modes[i] | O_CLOEXEC);
    CHECK(refused >= 0);
    CHECK_STATUS(EB_ERR_TARGET, eb_transfer_set_target_fd(transfer, refused, 0));
    close(refused);
  }
  CHECK_STATUS(EB_ERR_TARGET, eb_transfer_set_target_fd(transfer, fd, 2 * EB_PAGE_SIZE)); /* one page short */
  const int device = open("/dev/null", O_RDWR | O_CLOEXEC);
  CHECK_STATUS(EB_ERR_TARGET, eb_transfer_set_target_fd(transfer, device, 0));
  close(device);
  close(fd);
  eb_transfer_free(transfer);
  pair_free(pair);
}

/* Only `room` bytes of the file can be written: what then comes of a whole window. */
static void check_full(eb_pair *pair, eb_transfer *transfer, int fd, size_t room) {
  eb_result result;
  eb_session_stats stats;
  pair_seal(pair, 0, WINDOW_PAGES);
  CHECK_STATUS(EB_ERR_TARGET_FULL, eb_pages_open(pair->server, transfer, pair->records, pair->records_len, &result));
  CHECK(result.pages <= room / EB_PAGE_SIZE && result.bad_index == UINT64_MAX);
  CHECK(pages_of(transfer) == result.pages);
  for (size_t i = 0; i < result.pages; i++) CHECK(file_has(fd, i, pair->plain + i * EB_PAGE_SIZE));
  CHECK_OK(eb_session_get_stats(pair->server, &stats));
  CHECK(stats.opened_pages == result.pages && stats.tampered == 0 && stats.refused == 0 && !stats.closed);
  CHECK(pool_is_zero(pair->bridge, EB_POOL_LANES));
  /* Records that were taken are not taken again, whether they were written or not. */
  CHECK_STATUS(EB_ERR_REPLAYED, eb_pages_open(pair->server, transfer, pair->records, EB_RECORD_SIZE, &result));
}

static void check_goes_on(eb_pair *pair, eb_transfer *transfer, int fd) {
  eb_result result;
  pair_seal(pair, 0, WINDOW_PAGES);
  CHECK_OK(eb_pages_open(pair->server, transfer, pair->records, pair->records_len, &result));
  CHECK(pages_of(transfer) == WINDOW_PAGES && file_has(fd, WINDOW_PAGES - 1, pair->plain + SIZE - EB_PAGE_SIZE));
}

static void test_target_file_when_over_the_size_limit_is_full_and_goes_on_later(void) {
  const struct sigaction ignore = {.sa_handler = SIG_IGN};
  struct sigaction former;
  struct rlimit limit, less;
  eb_pair *pair = new_pair(NULL);
  const int fd = empty_file();
  eb_transfer *transfer = into(pair, fd, 0);
  CHECK(sigaction(SIGXFSZ, &ignore, &former) == 0 && getrlimit(RLIMIT_FSIZE, &limit) == 0);
  less = limit;
  less.rlim_cur = 21 * EB_PAGE_SIZE + 100; /* the write that crosses it is short first */
  CHECK(setrlimit(RLIMIT_FSIZE, &less) == 0);
  check_full(pair, transfer, fd, less.rlim_cur);
  CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0 && sigaction(SIGXFSZ, &former, NULL) == 0);
  check_goes_on(pair, transfer, fd);
  eb_transfer_free(transfer);
  close(fd);
  pair_free(pair);
}

static void touch_all(int fd) {
  volatile uint8_t *mapping = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  signal(SIGBUS, SIG_DFL);
  for (size_t i = 0; i < SIZE; i += EB_PAGE_SIZE) mapping[i] = 1;
}

static void test_target_file_when_the_disk_is_full_is_an_error_and_no_signal(void) {
  char directory[] = "/tmp/test_files.XXXXXX", path[64];
  if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
    printf("not root: a full disk is not tried, a size limit is\n");
    return;
  }
  CHECK(mkdtemp(directory) != NULL && mount("none", directory, "tmpfs", 0, "size=128k") == 0);
  snprintf(path, sizeof path, "%s/region", directory);
  const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
  eb_pair *pair = new_pair(NULL);
  eb_transfer *transfer = into(pair, fd, 0);
  int how = 0;
  fflush(NULL);
  const pid_t child = fork(); /* what a mapping would do */
  CHECK(child >= 0);
  if (child == 0) {
    touch_all(fd);
    _exit(0);
  }
  CHECK(waitpid(child, &how, 0) == child && WIFSIGNALED(how) && WTERMSIG(how) == SIGBUS);
  CHECK(ftruncate(fd, 0) == 0 && ftruncate(fd, SIZE) == 0);
  check_full(pair, transfer, fd, 128 * 1024);
  CHECK(mount(NULL, directory, NULL, MS_REMOUNT, "size=1m") == 0); /* somebody made room */
  check_goes_on(pair, transfer, fd);
  eb_transfer_free(transfer);
  close(fd);
  pair_free(pair);
  CHECK(umount2(directory, MNT_DETACH) == 0 && rmdir(directory) == 0);
}

static void test_target_file_when_writing_fails_forgets_what_was_there(void) {
  eb_pair *pair = new_pair(NULL);
  const int fd = empty_file();
  eb_transfer *transfer = into(pair, fd, 0);
  eb_result result;
  pair_seal(pair, 0, 4);
  CHECK_OK(eb_pages_open(pair->server, transfer, pair->records, pair->records_len, &result));
  close(transfer->file.fd);
  transfer->file.fd = 1 << 20; /* never open */
  pair_seal(pair, 2, 4);
  CHECK_STATUS(EB_ERR_TARGET_IO, eb_pages_open(pair->server, transfer, pair->records, pair->records_len, &result));
  CHECK(result.pages == 0 && pages_of(transfer) == 2); /* pages 2 and 3 may be half written */
  transfer->file.fd = -1;
  eb_transfer_free(transfer);
  close(fd);
  pair_free(pair);
}

static void test_target_file_when_written_in_order_is_sent_to_the_disk_by_the_way(void) {
  enum { PAGES = 600 };
  const eb_window window = {REGION, BASE_GPA, PAGES};
  eb_pair *pair = new_pair(NULL);
  eb_transfer *transfer = NULL;
  const int fd = new_file(NULL, 0);
  eb_result result;
  size_t len = 0;
  CHECK(ftruncate(fd, PAGES * EB_PAGE_SIZE) == 0);
  CHECK_OK(eb_transfer_new(pair->bridge, (const uint8_t *)"0123456789abcdef", &window, &transfer));
  CHECK_OK(eb_transfer_set_target_fd(transfer, fd, 0));
  for (size_t i = 0; i < PAGES; i += 50) {
    CHECK_OK(eb_pages_seal(pair->client, NULL, REGION, BASE_GPA + i * EB_PAGE_SIZE, pair->plain, 50 * EB_PAGE_SIZE,
                           pair->records, sizeof pair->records, &len, NULL));
    CHECK_OK(eb_pages_open(pair->server, transfer, pair->records, len, &result));
  }
  CHECK(transfer->file.behind_first >= 512 * EB_PAGE_SIZE && transfer->file.behind_end == PAGES * EB_PAGE_SIZE);
  for (size_t i = 0; i < PAGES; i++) CHECK(file_has(fd, i, pair->plain + i % 50 * EB_PAGE_SIZE));
  eb_transfer_free(transfer);
  close(fd);
  pair_free(pair);
}

int main(void) {
  for (int turn = 1; turn >= 0; turn--) {
    without_io_uring = turn == 1;
    eb_pair *pair = new_pair(NULL);
    printf("with %s\n", eb_staging_name(pair->bridge));
    pair_free(pair);
    RUN(test_seal_from_when_opened_is_what_the_file_has);
    RUN(test_seal_from_when_more_than_a_slot_holds_reads_on);
    RUN(test_seal_from_when_the_last_page_is_partial_pads_it_with_zeros);
    RUN(test_source_when_it_starts_inside_the_file_is_that_part);
    RUN(test_source_when_it_is_no_readable_file_is_refused);
    RUN(test_seal_from_when_arguments_are_bad_uses_no_number);
    RUN(test_seal_from_when_the_file_was_cut_leaves_nothing_and_uses_the_numbers);
    RUN(test_seal_from_when_reading_fails_is_an_error);
    RUN(test_source_when_forked_is_refused_and_the_parent_s_ring_works_on);
  }
  RUN(test_seal_from_when_the_ring_is_denied_later_goes_on_by_pread);
  RUN(test_ring_when_its_memory_can_be_pinned_registers_it_and_reads);
  RUN(test_ring_when_asked_to_write_refuses);
  RUN(test_file_io_when_named_is_that_or_refused);
  RUN(test_bridge_when_io_uring_is_denied_reads_by_pread);
  RUN(test_target_when_it_is_a_file_is_written_and_not_mapped);
  RUN(test_target_file_when_pages_come_in_any_order_has_the_newest_of_each);
  RUN(test_target_file_when_a_record_is_tampered_has_those_before_it);
  RUN(test_target_file_when_it_cannot_be_written_to_is_refused);
  RUN(test_target_file_when_over_the_size_limit_is_full_and_goes_on_later);
  RUN(test_target_file_when_the_disk_is_full_is_an_error_and_no_signal);
  RUN(test_target_file_when_writing_fails_forgets_what_was_there);
  RUN(test_target_file_when_written_in_order_is_sent_to_the_disk_by_the_way);
  return 0;
}
