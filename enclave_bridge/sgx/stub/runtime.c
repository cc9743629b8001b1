/*
 * Simulates what the border test needs of the SGX runtime: an enclave is a shared object with a heap of
 * its own, and "inside" is the addresses of both. Nothing is protected from anything. One enclave at a
 * time; its stack is the caller's, so addresses of its local variables count as outside.
 */
#include "runtime.h"

#include <cpuid.h>
#include <dlfcn.h>
#include <link.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <sgx_cpuid.h>
#include <sgx_edger8r.h>
#include <sgx_thread.h>
#include <sgx_trts.h>
#include <sgx_utils.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))
#define HEAP_SIZE ((size_t)64 << 20)
#define CLASSES 27u /* powers of two from 32 bytes */

typedef struct {
  size_t nr_ecall;
  struct {
    sgx_status_t (*call)(void *);
    uint8_t is_priv, is_switchless;
  } ecall_table[];
} ecall_table;

typedef struct block {
  size_t class;
  struct block *next; /* while it is free */
} block;

static struct {
  pthread_mutex_t lock;
  void *image; /* NULL: there is no enclave */
  const ecall_table *ecalls;
  uintptr_t image_start, image_end;
  uint8_t *heap, *heap_next;
  block *free_blocks[CLASSES];
  size_t used;
} enclave = {.lock = PTHREAD_MUTEX_INITIALIZER};

sgx_report_t stub_self = {.body = {.attributes = {.flags = SGX_FLAGS_INITTED}}};

/* ---- the heap ------------------------------------------------------------------------------ */

EXPORT void *__wrap_malloc(size_t size) {
  size_t class = 0;
  block *found = NULL;
  while (class < CLASSES && ((size_t)32 << class) < size) class++;
  const size_t room = sizeof(block) + ((size_t)32 << class);
  if (class == CLASSES) return NULL;
  pthread_mutex_lock(&enclave.lock);
  found = enclave.free_blocks[class];
  if (found != NULL) {
    enclave.free_blocks[class] = found->next;
  } else if (room <= (size_t)(enclave.heap + HEAP_SIZE - enclave.heap_next)) {
    found = (block *)(void *)enclave.heap_next;
    enclave.heap_next += room;
  }
  if (found != NULL) {
    *found = (block){class, NULL};
    enclave.used += (size_t)32 << class;
  }
  pthread_mutex_unlock(&enclave.lock);
  return found != NULL ? found + 1 : NULL;
}

EXPORT void *__wrap_calloc(size_t count, size_t size) {
  if (size != 0 && count > SIZE_MAX / size) return NULL;
  void *memory = __wrap_malloc(count * size);
  return memory != NULL ? memset(memory, 0, count * size) : NULL;
}

EXPORT void __wrap_free(void *memory) {
  if (memory == NULL) return;
  block *freed = (block *)memory - 1;
  pthread_mutex_lock(&enclave.lock);
  freed->next = enclave.free_blocks[freed->class];
  enclave.free_blocks[freed->class] = freed;
  enclave.used -= (size_t)32 << freed->class;
  pthread_mutex_unlock(&enclave.lock);
}

void *stub_address_inside(void) { return enclave.heap + 4096; }
size_t stub_heap_used(void) { return enclave.used; }

/* ---- inside and outside -------------------------------------------------------------------- */

static bool overlaps(uintptr_t at, size_t size, uintptr_t start, uintptr_t end) { return at < end && start < at + size; }

EXPORT int sgx_is_outside_enclave(const void *address, size_t size) {
  const uintptr_t at = (uintptr_t)address, heap = (uintptr_t)enclave.heap;
  if (size == 0) size = 1;
  return at <= UINTPTR_MAX - size && !overlaps(at, size, heap, heap + HEAP_SIZE) &&
         !overlaps(at, size, enclave.image_start, enclave.image_end);
}

EXPORT int sgx_is_within_enclave(const void *address, size_t size) {
  const uintptr_t at = (uintptr_t)address, heap = (uintptr_t)enclave.heap;
  return at <= UINTPTR_MAX - size && ((at >= heap && at + size <= heap + HEAP_SIZE) ||
                                      (at >= enclave.image_start && at + size <= enclave.image_end));
}

/* ---- creation and entry -------------------------------------------------------------------- */

static int find_image(struct dl_phdr_info *info, size_t size, void *base) {
  (void)size;
  if (info->dlpi_addr != (uintptr_t)base) return 0;
  enclave.image_start = info->dlpi_addr;
  for (int i = 0; i < info->dlpi_phnum; i++)
    if (info->dlpi_phdr[i].p_type == PT_LOAD)
      enclave.image_end = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
  return 1;
}

sgx_status_t sgx_create_enclave(const char *file_name, const int debug, sgx_launch_token_t *token, int *updated,
                                sgx_enclave_id_t *eid, sgx_misc_attribute_t *attributes) {
  (void)token, (void)updated, (void)attributes;
  if (enclave.image != NULL) return SGX_ERROR_UNEXPECTED;
  void *image = dlopen(file_name, RTLD_NOW | RTLD_LOCAL);
  if (image == NULL) return SGX_ERROR_ENCLAVE_FILE_ACCESS;
  struct link_map *map = NULL;
  enclave.ecalls = dlsym(image, "g_ecall_table");
  void *heap = mmap(NULL, HEAP_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (enclave.ecalls == NULL || heap == MAP_FAILED || dlinfo(image, RTLD_DI_LINKMAP, &map) != 0) return SGX_ERROR_UNEXPECTED;
  enclave.heap = enclave.heap_next = heap;
  memset(enclave.free_blocks, 0, sizeof enclave.free_blocks);
  enclave.used = 0;
  dl_iterate_phdr(find_image, (void *)map->l_addr);
  stub_self.body.attributes.flags = SGX_FLAGS_INITTED | (debug ? SGX_FLAGS_DEBUG : 0);
  enclave.image = image;
  *eid = 1;
  return SGX_SUCCESS;
}

sgx_status_t sgx_destroy_enclave(const sgx_enclave_id_t eid) {
  if (eid != 1 || enclave.image == NULL) return SGX_ERROR_INVALID_ENCLAVE_ID;
  dlclose(enclave.image);
  munmap(enclave.heap, HEAP_SIZE);
  enclave.image = NULL;
  enclave.image_start = enclave.image_end = 0;
  return SGX_SUCCESS;
}

sgx_status_t sgx_ecall(const sgx_enclave_id_t eid, const int index, const void *ocall_table, void *ms) {
  (void)ocall_table;
  if (eid != 1 || enclave.image == NULL) return SGX_ERROR_INVALID_ENCLAVE_ID;
  if (index < 0 || (size_t)index >= enclave.ecalls->nr_ecall) return SGX_ERROR_INVALID_FUNCTION;
  return enclave.ecalls->ecall_table[index].call(ms);
}

/* ---- what the trusted part calls ----------------------------------------------------------- */

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(sgx_thread_mutex_t), "and zero is PTHREAD_MUTEX_INITIALIZER");
_Static_assert(sizeof(pthread_cond_t) <= sizeof(sgx_thread_cond_t), "likewise");

static pthread_mutex_t *mutex_in(sgx_thread_mutex_t *mutex) { return (pthread_mutex_t *)(void *)mutex; }
static pthread_cond_t *cond_in(sgx_thread_cond_t *cond) { return (pthread_cond_t *)(void *)cond; }

EXPORT int sgx_thread_mutex_init(sgx_thread_mutex_t *mutex, const sgx_thread_mutexattr_t *unused) {
  (void)unused;
  return pthread_mutex_init(mutex_in(mutex), NULL);
}
EXPORT int sgx_thread_mutex_destroy(sgx_thread_mutex_t *mutex) { return pthread_mutex_destroy(mutex_in(mutex)); }
EXPORT int sgx_thread_mutex_lock(sgx_thread_mutex_t *mutex) { return pthread_mutex_lock(mutex_in(mutex)); }
EXPORT int sgx_thread_mutex_unlock(sgx_thread_mutex_t *mutex) { return pthread_mutex_unlock(mutex_in(mutex)); }
EXPORT int sgx_thread_cond_init(sgx_thread_cond_t *cond, const sgx_thread_condattr_t *unused) {
  (void)unused;
  return pthread_cond_init(cond_in(cond), NULL);
}
EXPORT int sgx_thread_cond_destroy(sgx_thread_cond_t *cond) { return pthread_cond_destroy(cond_in(cond)); }
EXPORT int sgx_thread_cond_wait(sgx_thread_cond_t *cond, sgx_thread_mutex_t *mutex) {
  return pthread_cond_wait(cond_in(cond), mutex_in(mutex));
}
EXPORT int sgx_thread_cond_signal(sgx_thread_cond_t *cond) { return pthread_cond_signal(cond_in(cond)); }

EXPORT sgx_status_t sgx_read_rand(unsigned char *out, size_t length) {
  return RAND_bytes(out, (int)length) == 1 ? SGX_SUCCESS : SGX_ERROR_UNEXPECTED;
}

EXPORT sgx_status_t sgx_cpuidex(int cpuinfo[4], int leaf, int subleaf) {
  __cpuid_count(leaf, subleaf, cpuinfo[0], cpuinfo[1], cpuinfo[2], cpuinfo[3]);
  return SGX_SUCCESS;
}

EXPORT const sgx_report_t *sgx_self_report(void) { return &stub_self; }

EXPORT sgx_status_t sgx_create_report(const sgx_target_info_t *target, const sgx_report_data_t *data,
                                      sgx_report_t *report) {
  (void)target; /* no MAC: there is no key that the target could check it with */
  *report = stub_self;
  report->body.report_data = *data;
  return SGX_SUCCESS;
}

/* As EGETKEY derives: from what the policy names, and from SVNs that are at most the own ones. */
EXPORT sgx_status_t sgx_get_key(const sgx_key_request_t *request, sgx_key_128bit_t *key) {
  const sgx_report_body_t *self = &stub_self.body;
  struct {
    uint8_t fuses[16];
    sgx_key_request_t request;
    sgx_measurement_t enclave, signer;
    uint16_t product;
    uint64_t flags;
  } input;
  uint8_t digest[32];
  size_t len = 0;
  if (memcmp(request->cpu_svn.svn, self->cpu_svn.svn, sizeof self->cpu_svn) > 0) return SGX_ERROR_INVALID_CPUSVN;
  if (request->isv_svn > self->isv_svn) return SGX_ERROR_INVALID_ISVSVN;
  memset(&input, 0, sizeof input);
  memcpy(input.fuses, "simulated fuses", sizeof input.fuses);
  input.request = *request;
  if (request->key_policy & SGX_KEYPOLICY_MRENCLAVE) input.enclave = self->mr_enclave;
  if (request->key_policy & SGX_KEYPOLICY_MRSIGNER) input.signer = self->mr_signer;
  input.product = self->isv_prod_id;
  input.flags = self->attributes.flags & request->attribute_mask.flags;
  if (EVP_Q_digest(NULL, "SHA256", NULL, &input, sizeof input, digest, &len) != 1) return SGX_ERROR_UNEXPECTED;
  memcpy(*key, digest, sizeof *key);
  return SGX_SUCCESS;
}
