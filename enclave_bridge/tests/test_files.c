/* Files: sealing from a source. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pair.h"
#include "source.h"

#define SIZE (WINDOW_PAGES * EB_PAGE_SIZE)

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
  CHECK(pwrite(fd, content, len, 0) == (ssize_t)len);
  return fd;
}

static eb_files files_new(const eb_gcm_ops *ops, uint64_t len) {
  eb_files files = {.pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, ops)};
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
  eb_pair *pair = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
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
  eb_pair *pair = files.pair, *other = pair_new(EB_SUITE_P384_SHA384_AES256GCM, NULL);
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

int main(void) {
  RUN(test_seal_from_when_opened_is_what_the_file_has);
  RUN(test_seal_from_when_more_than_a_slot_holds_reads_on);
  RUN(test_seal_from_when_the_last_page_is_partial_pads_it_with_zeros);
  RUN(test_source_when_it_starts_inside_the_file_is_that_part);
  RUN(test_source_when_it_is_no_readable_file_is_refused);
  RUN(test_seal_from_when_arguments_are_bad_uses_no_number);
  RUN(test_seal_from_when_the_file_was_cut_leaves_nothing_and_uses_the_numbers);
  return 0;
}
