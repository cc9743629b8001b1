/*
 * Two rings in one file: the client's to the server first. A message is its payload, then a trailer of
 * number (8 bytes) and kind (4 bytes), little-endian. The trailer is behind so that ciphertext stays
 * aligned to 64 bytes, and for records it costs nothing: it fits in what rounding up leaves.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guard.h"
#include "lent.h"
#include "ring.h"

#define TRAILER ((size_t)12)
#define NAMED_NAP_NS UINT64_C(50000)
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct eb_channel {
  uint8_t *ours; /* a page that is zero in a child after fork: two processes must not be one end */
  uint8_t *mapping;
  size_t bytes;
  eb_lent *lent; /* the mapping, to the session's bridge; NULL: not needed, or nobody's */
  pthread_mutex_t send_lock, receive_lock; /* taken before any lock of a session or transfer */
  eb_ring out, in;
  const uint8_t *message; /* hostile; NULL: none was looked at */
  eb_channel_message facts;
};

size_t eb_channel_bytes(size_t capacity) { return 2 * eb_ring_bytes(capacity); }

size_t eb_channel_max_message(size_t capacity) {
  return eb_ring_bytes(capacity) == 0 ? 0 : eb_ring_max_message(capacity) - TRAILER;
}

/* ---- set-up ------------------------------------------------------------------------------- */

static void *map(int fd, size_t bytes) {
  void *mapping = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return mapping == MAP_FAILED ? NULL : mapping;
}

static bool long_enough(int fd, size_t bytes) {
  struct stat facts;
  return fstat(fd, &facts) == 0 && (S_ISCHR(facts.st_mode) || (uint64_t)facts.st_size >= bytes);
}

eb_status eb_channel_format(int fd, size_t capacity) {
  const size_t bytes = eb_channel_bytes(capacity);
  eb_status status = EB_OK;
  uint8_t *mapping = NULL;
  EB_ENSURE(bytes != 0, EB_ERR_ARGUMENT);
  EB_ENSURE(long_enough(fd, bytes), EB_ERR_RING_MEMORY);
  mapping = map(fd, bytes);
  EB_ENSURE(mapping != NULL, EB_ERR_RING_MEMORY);
  EB_TRY(eb_ring_format(mapping, bytes / 2));
  EB_TRY(eb_ring_format(mapping + bytes / 2, bytes / 2));
done:
  if (mapping != NULL) munmap(mapping, bytes);
  return status;
}

eb_status eb_channel_create(size_t capacity, int *fd) {
  const size_t bytes = eb_channel_bytes(capacity);
  eb_status status = EB_OK;
  int made = -1;
  EB_ENSURE(fd != NULL && bytes != 0, EB_ERR_ARGUMENT);
  made = memfd_create("pagegate:ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EB_ENSURE(made >= 0 && ftruncate(made, (off_t)bytes) == 0, EB_ERR_RING_MEMORY);
  EB_ENSURE(fcntl(made, F_ADD_SEALS, SEALS) == 0, EB_ERR_RING_MEMORY);
  EB_TRY(eb_channel_format(made, capacity));
  *fd = made;
  made = -1;
done:
  if (made >= 0) close(made);
  return status;
}

static bool acceptable(int fd, eb_channel_memory memory) {
  if (memory == EB_CHANNEL_NAMED) return true;
  const int seals = fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & F_SEAL_SHRINK) != 0;
}

static bool is_ours(const eb_channel *channel) { return channel->ours != NULL && *channel->ours != 0; }

static bool mark_ours(eb_channel *channel) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  void *made = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (made == MAP_FAILED) return false;
  channel->ours = made;
  *channel->ours = 1;
  return madvise(made, page, MADV_WIPEONFORK) == 0;
}

eb_status eb_channel_attach(eb_session *session, eb_role role, int fd, size_t capacity, eb_channel_memory memory,
                            eb_channel **channel) {
  eb_status status = EB_OK;
  eb_channel *made = NULL;
  EB_ENSURE(channel != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(role == EB_ROLE_CLIENT || role == EB_ROLE_SERVER, EB_ERR_ARGUMENT);
  EB_ENSURE(memory == EB_CHANNEL_SEALED || memory == EB_CHANNEL_NAMED, EB_ERR_ARGUMENT);
  EB_ENSURE(eb_channel_bytes(capacity) != 0, EB_ERR_ARGUMENT);
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  pthread_mutex_init(&made->send_lock, NULL);
  pthread_mutex_init(&made->receive_lock, NULL);
  made->bytes = eb_channel_bytes(capacity);
  EB_ENSURE(mark_ours(made), EB_ERR_MEMORY);
  EB_ENSURE(acceptable(fd, memory) && long_enough(fd, made->bytes), EB_ERR_RING_MEMORY);
  made->mapping = map(fd, made->bytes);
  EB_ENSURE(made->mapping != NULL, EB_ERR_RING_MEMORY);

  const size_t half = made->bytes / 2;
  uint8_t *from_client = made->mapping, *from_server = from_client + half;
  EB_TRY(eb_ring_attach(&made->out, EB_RING_PRODUCER, role == EB_ROLE_CLIENT ? from_client : from_server, half));
  EB_TRY(eb_ring_attach(&made->in, EB_RING_CONSUMER, role == EB_ROLE_CLIENT ? from_server : from_client, half));
  if (memory == EB_CHANNEL_NAMED) made->out.nap_ns = made->in.nap_ns = NAMED_NAP_NS;
  if (memory == EB_CHANNEL_SEALED && session != NULL)
    EB_TRY(eb_lent_new(session, fd, made->mapping, made->bytes, &made->lent));
  *channel = made;
  made = NULL;
done:
  eb_channel_free(made);
  return status;
}

static eb_status usable(const eb_channel *channel) {
  if (channel == NULL) return EB_ERR_ARGUMENT;
  return is_ours(channel) ? EB_OK : EB_ERR_FORKED;
}

eb_status eb_channel_close(eb_channel *channel) {
  eb_status status = EB_OK;
  EB_TRY(usable(channel));
  eb_ring_close(&channel->out);
  eb_ring_close(&channel->in);
done:
  return status;
}

void eb_channel_free(eb_channel *channel) {
  if (channel == NULL) return;
  if (is_ours(channel)) { /* in a child the other end is still the parent's */
    (void)!eb_channel_close(channel);
    eb_lent_free(channel->lent);
    pthread_mutex_destroy(&channel->send_lock);
    pthread_mutex_destroy(&channel->receive_lock);
  }
  if (channel->mapping != NULL) munmap(channel->mapping, channel->bytes);
  if (channel->ours != NULL) munmap(channel->ours, (size_t)sysconf(_SC_PAGESIZE));
  free(channel);
}

/* ---- send ----------------------------------------------------------------------------------- */

static void write_trailer(uint8_t *out, uint32_t kind, uint64_t number) {
  for (int i = 0; i < 8; i++) out[i] = (uint8_t)(number >> (8 * i));
  for (int i = 0; i < 4; i++) out[8 + i] = (uint8_t)(kind >> (8 * i));
}

/* With send_lock held. EB_ERR_LENGTH when it fits in no message. */
static eb_status reserve(eb_channel *channel, size_t len, uint64_t deadline_ns, uint8_t **room) {
  if (len > eb_channel_max_message(channel->out.capacity)) return EB_ERR_LENGTH;
  return eb_ring_reserve(&channel->out, len + TRAILER, deadline_ns, room);
}

eb_status eb_channel_seal(eb_channel *channel, eb_session *session, eb_transfer *transfer, uint32_t region,
                          uint64_t first_gpa, const uint8_t *plain, size_t len, uint64_t number, uint64_t deadline_ns,
                          eb_result *result) {
  const size_t size = len / EB_PAGE_SIZE * EB_RECORD_SIZE;
  eb_status status = EB_OK;
  uint8_t *room = NULL;
  EB_TRY(usable(channel));
  pthread_mutex_lock(&channel->send_lock);
  status = len / EB_PAGE_SIZE > SIZE_MAX / EB_RECORD_SIZE ? EB_ERR_LENGTH : reserve(channel, size, deadline_ns, &room);
  if (status == EB_OK)
    status = eb_lent_seal(channel->lent, session, transfer, region, first_gpa, plain, len, room, size, result);
  if (status == EB_OK) {
    write_trailer(room + size, EB_CHANNEL_RECORDS, number);
    status = eb_ring_publish(&channel->out, size + TRAILER);
  }
  pthread_mutex_unlock(&channel->send_lock);
done:
  return status;
}

eb_status eb_channel_put(eb_channel *channel, uint32_t kind, uint64_t number, const uint8_t *message, size_t len,
                         uint64_t deadline_ns) {
  eb_status status = EB_OK;
  uint8_t *room = NULL;
  EB_TRY(usable(channel));
  EB_ENSURE(message != NULL || len == 0, EB_ERR_ARGUMENT);
  pthread_mutex_lock(&channel->send_lock);
  status = reserve(channel, len, deadline_ns, &room);
  if (status == EB_OK) {
    if (len > 0) memcpy(room, message, len);
    write_trailer(room + len, kind, number);
    status = eb_ring_publish(&channel->out, len + TRAILER);
  }
  pthread_mutex_unlock(&channel->send_lock);
done:
  return status;
}

/* ---- receive ---------------------------------------------------------------------------------- */

/* Each byte once: the peer may write them meanwhile. */
static uint64_t load_once(const volatile uint8_t *in, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; i++) value |= (uint64_t)in[i] << (8 * i);
  return value;
}

/* With receive_lock held. */
static eb_status look(eb_channel *channel, uint64_t deadline_ns) {
  const uint8_t *message = NULL;
  eb_status status = EB_OK;
  size_t len = 0;
  if (channel->message != NULL) return EB_OK;
  EB_TRY(eb_ring_peek(&channel->in, deadline_ns, &message, &len));
  if (len < TRAILER) { /* no sender of ours makes that */
    eb_ring_close(&channel->in);
    return EB_ERR_RING_CORRUPT;
  }
  channel->facts.len = len - TRAILER;
  channel->facts.number = load_once(message + channel->facts.len, 8);
  channel->facts.kind = (uint32_t)load_once(message + channel->facts.len + 8, 4);
  channel->message = message;
done:
  return status;
}

static void consume(eb_channel *channel) {
  channel->message = NULL;
  eb_ring_consume(&channel->in);
}

eb_status eb_channel_next(eb_channel *channel, uint64_t deadline_ns, eb_channel_message *message) {
  eb_status status = EB_OK;
  EB_TRY(usable(channel));
  EB_ENSURE(message != NULL, EB_ERR_ARGUMENT);
  pthread_mutex_lock(&channel->receive_lock);
  status = look(channel, deadline_ns);
  if (status == EB_OK) *message = channel->facts;
  pthread_mutex_unlock(&channel->receive_lock);
done:
  return status;
}

eb_status eb_channel_open(eb_channel *channel, eb_session *session, eb_transfer *transfer, eb_result *result) {
  eb_status status = EB_OK;
  EB_TRY(usable(channel));
  EB_ENSURE(result != NULL, EB_ERR_ARGUMENT);
  *result = (eb_result){.bad_index = UINT64_MAX};
  pthread_mutex_lock(&channel->receive_lock);
  if (channel->message == NULL || channel->facts.kind != EB_CHANNEL_RECORDS) {
    status = EB_ERR_STATE;
  } else {
    status = eb_lent_open(channel->lent, session, transfer, channel->message, channel->facts.len, result);
    consume(channel);
  }
  pthread_mutex_unlock(&channel->receive_lock);
done:
  return status;
}

eb_status eb_channel_take(eb_channel *channel, uint8_t *out, size_t out_cap, size_t *out_len) {
  eb_status status = EB_OK;
  EB_TRY(usable(channel));
  EB_ENSURE(out_len != NULL && (out != NULL || out_cap == 0), EB_ERR_ARGUMENT);
  pthread_mutex_lock(&channel->receive_lock);
  if (channel->message == NULL) {
    status = EB_ERR_STATE;
  } else if (channel->facts.len > out_cap) {
    status = EB_ERR_BUFFER;
  } else {
    *out_len = channel->facts.len;
    if (*out_len > 0) memcpy(out, channel->message, *out_len);
    consume(channel);
  }
  pthread_mutex_unlock(&channel->receive_lock);
done:
  return status;
}
