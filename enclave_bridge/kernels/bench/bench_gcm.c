/*
 * bench_gcm: seals and opens 4 KiB pages on one core, every supported kernel against OpenSSL's EVP,
 * in interleaved rounds of one run. Prints JSON.
 *
 *   bench_gcm [--rounds N] [--pages N] [--key-bits 128|256]
 *
 * Both sides do the same work: records of header (48, AAD), page and tag, as they lie in the bridge's rings: each page
 * of ciphertext at a multiple of 64 bytes. Nonces are those of consecutive sequence numbers. OpenSSL is
 * used as well as its API allows: one context with its key set once; a page sets the IV, AAD, data
 * and tag. Time is the thread's CPU time; `cycles` are that by the core frequency, which a chain of
 * dependent multiplications (3 cycles each) measures just before.
 */
#include "eb_gcm_kernel.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_ROUNDS 1001u
#define MAX_PAGES 4096u
#define MAX_CONTENDERS 8u
#define HEADER EB_GCM_PAGE_AAD_SIZE
#define RECORD (HEADER + EB_GCM_PAGE_SIZE + EB_GCM_TAG_SIZE)
#define BEFORE 16u /* the first record: 16 + HEADER is a multiple of 64, and so is RECORD */
#define SLICE_SECONDS 2e-3

typedef struct {
  size_t pages;
  unsigned key_bits;
  uint8_t key[32];
  uint8_t *plain;   /* pages * 4096 */
  uint8_t *records; /* pages * RECORD, sealed */
  uint8_t *scratch; /* pages * RECORD */
  eb_gcm_page *descriptors;
  eb_gcm_workspace *workspace;
} workload;

typedef struct {
  char name[32];
  const char *operation;
  eb_gcm_kernel kernel; /* NONE: OpenSSL */
  eb_gcm_key *key;
  EVP_CIPHER_CTX *ctx;
  size_t repeats;
  double gbps[MAX_ROUNDS];
  double cycles[MAX_ROUNDS];
  double ratio[MAX_ROUNDS]; /* to OpenSSL in the same round */
} contender;

static void fail(const char *what) {
  (void)fprintf(stderr, "bench_gcm: %s\n", what);
  exit(1);
}

/* Of this thread's time on a core, so that what else the machine does counts less. */
static double seconds(void) {
  struct timespec t;
  (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double core_hertz(void) {
  const double start = seconds();
  uint64_t loops = 20000;
  __asm__ volatile("1:\n\timul %%rax, %%rax\n\timul %%rax, %%rax\n\timul %%rax, %%rax\n\timul %%rax, %%rax\n\t"
                   "imul %%rax, %%rax\n\timul %%rax, %%rax\n\timul %%rax, %%rax\n\timul %%rax, %%rax\n\t"
                   "dec %0\n\tjnz 1b"
                   : "+r"(loops)
                   :
                   : "rax", "cc");
  return 20000.0 * 8 * 3 / (seconds() - start);
}

static void nonce_of(size_t page, uint8_t nonce[EB_GCM_NONCE_SIZE]) {
  const uint64_t sequence = __builtin_bswap64(page) ^ UINT64_C(0x5a5a5a5a5a5a5a5a);
  memset(nonce, 0x5a, EB_GCM_NONCE_SIZE);
  memcpy(nonce + EB_GCM_NONCE_SIZE - sizeof sequence, &sequence, sizeof sequence);
}

static void openssl_seal(const contender *c, const workload *w) {
  for (size_t i = 0; i < w->pages; i++) {
    uint8_t nonce[EB_GCM_NONCE_SIZE];
    uint8_t *record = w->scratch + i * RECORD;
    int n = 0;
    nonce_of(i, nonce);
    if (EVP_EncryptInit_ex(c->ctx, NULL, NULL, NULL, nonce) != 1 ||
        EVP_EncryptUpdate(c->ctx, NULL, &n, record, HEADER) != 1 ||
        EVP_EncryptUpdate(c->ctx, record + HEADER, &n, w->plain + i * EB_GCM_PAGE_SIZE, EB_GCM_PAGE_SIZE) != 1 ||
        EVP_EncryptFinal_ex(c->ctx, record + HEADER + EB_GCM_PAGE_SIZE, &n) != 1 ||
        EVP_CIPHER_CTX_ctrl(c->ctx, EVP_CTRL_AEAD_GET_TAG, EB_GCM_TAG_SIZE, record + HEADER + EB_GCM_PAGE_SIZE) != 1) {
      fail("OpenSSL cannot seal");
    }
  }
}

static void openssl_open(const contender *c, const workload *w) {
  for (size_t i = 0; i < w->pages; i++) {
    uint8_t nonce[EB_GCM_NONCE_SIZE];
    uint8_t *record = w->records + i * RECORD;
    int n = 0;
    nonce_of(i, nonce);
    if (EVP_DecryptInit_ex(c->ctx, NULL, NULL, NULL, nonce) != 1 ||
        EVP_DecryptUpdate(c->ctx, NULL, &n, record, HEADER) != 1 ||
        EVP_DecryptUpdate(c->ctx, w->scratch + i * RECORD, &n, record + HEADER, EB_GCM_PAGE_SIZE) != 1 ||
        EVP_CIPHER_CTX_ctrl(c->ctx, EVP_CTRL_AEAD_SET_TAG, EB_GCM_TAG_SIZE, record + HEADER + EB_GCM_PAGE_SIZE) != 1 ||
        EVP_DecryptFinal_ex(c->ctx, w->scratch + i * RECORD + EB_GCM_PAGE_SIZE, &n) != 1) {
      fail("OpenSSL cannot open");
    }
  }
}

static void kernel_run(const contender *c, const workload *w, int seal) {
  for (size_t i = 0; i < w->pages; i++) {
    eb_gcm_page *page = &w->descriptors[i];
    uint8_t *record = (seal ? w->scratch : w->records) + i * RECORD;
    nonce_of(i, page->nonce);
    page->aad = record;
    page->in = seal ? w->plain + i * EB_GCM_PAGE_SIZE : record + HEADER;
    page->out = w->scratch + i * RECORD + (seal ? HEADER : 0);
    page->tag = record + HEADER + EB_GCM_PAGE_SIZE;
  }
  const eb_gcm_status status = seal ? eb_gcm_pages_seal(c->key, w->workspace, w->descriptors, w->pages)
                                    : eb_gcm_pages_open(c->key, w->workspace, w->descriptors, w->pages, NULL);
  eb_gcm_workspace_wipe(w->workspace); /* as the page path does after each batch */
  if (status != EB_GCM_OK) {
    fail("the kernel refuses");
  }
}

static void run(const contender *c, const workload *w) {
  const int seal = c->operation[0] == 's';
  if (c->kernel != EB_GCM_KERNEL_NONE) {
    kernel_run(c, w, seal);
  } else if (seal) {
    openssl_seal(c, w);
  } else {
    openssl_open(c, w);
  }
}

static void set_up(contender *c, eb_gcm_kernel kernel, const char *operation, const workload *w) {
  (void)snprintf(c->name, sizeof c->name, "%s", kernel == EB_GCM_KERNEL_NONE ? "openssl" : eb_gcm_kernel_name(kernel));
  c->operation = operation;
  c->kernel = kernel;
  if (kernel == EB_GCM_KERNEL_NONE) {
    const EVP_CIPHER *cipher = w->key_bits == 128 ? EVP_aes_128_gcm() : EVP_aes_256_gcm();
    c->ctx = EVP_CIPHER_CTX_new();
    if (c->ctx == NULL || EVP_CipherInit_ex(c->ctx, cipher, NULL, w->key, NULL, operation[0] == 's') != 1) {
      fail("OpenSSL cannot set a key");
    }
  } else {
    c->key = aligned_alloc(EB_GCM_KEY_ALIGNMENT, sizeof *c->key);
    if (c->key == NULL || eb_gcm_key_init(c->key, kernel, w->key, w->key_bits / 8) != EB_GCM_OK) {
      fail("cannot set a key");
    }
  }
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a;
  const double y = *(const double *)b;
  return (x > y) - (x < y);
}

static double quantile(double *values, size_t n, double q) {
  qsort(values, n, sizeof *values, ascending);
  return values[(size_t)(q * (double)(n - 1) + 0.5)];
}

static void print_quartiles(const char *name, double *values, size_t n) {
  printf("\"%s\": {\"median\": %.4f, \"q1\": %.4f, \"q3\": %.4f}", name, quantile(values, n, 0.5),
         quantile(values, n, 0.25), quantile(values, n, 0.75));
}

/* What the AES units alone allow on the cores named in bench/README.md. */
static double bound_cycles(eb_gcm_kernel kernel, unsigned key_bits) {
  const double looked_up = kernel == EB_GCM_KERNEL_VAES256 && key_bits == 256 ? 2 : 0;
  const double rounds = (key_bits == 128 ? 10 : 14) - looked_up;
  const double blocks_a_cycle = kernel == EB_GCM_KERNEL_AESNI ? 2 : 4; /* two 128-bit, two 256-bit or one 512-bit */
  return (EB_GCM_PAGE_SIZE / 16 + 1) * rounds / blocks_a_cycle;
}

static uint8_t *records_of(size_t pages) {
  uint8_t *memory = aligned_alloc(4096, (BEFORE + pages * RECORD + 4095) / 4096 * 4096);
  return memory == NULL ? NULL : memory + BEFORE;
}

int main(int argc, char **argv) {
  static contender contenders[MAX_CONTENDERS];
  static double hertz[MAX_ROUNDS];
  workload w = {.pages = 64, .key_bits = 256};
  size_t rounds = 101;
  for (int i = 1; i + 1 < argc; i += 2) {
    const size_t value = strtoul(argv[i + 1], NULL, 10);
    if (strcmp(argv[i], "--rounds") == 0) {
      rounds = value;
    } else if (strcmp(argv[i], "--pages") == 0) {
      w.pages = value;
    } else if (strcmp(argv[i], "--key-bits") == 0) {
      w.key_bits = (unsigned)value;
    } else {
      fail("unknown option");
    }
  }
  if (rounds < 3 || rounds > MAX_ROUNDS || w.pages < 1 || w.pages > MAX_PAGES ||
      (w.key_bits != 128 && w.key_bits != 256)) {
    fail("rounds 3..1001, pages 1..4096, key bits 128 or 256");
  }
  w.plain = aligned_alloc(4096, w.pages * EB_GCM_PAGE_SIZE);
  w.records = records_of(w.pages);
  w.scratch = records_of(w.pages);
  w.descriptors = calloc(w.pages, sizeof *w.descriptors);
  w.workspace = aligned_alloc(EB_GCM_KEY_ALIGNMENT, sizeof *w.workspace);
  if (w.plain == NULL || w.records == NULL || w.scratch == NULL || w.descriptors == NULL || w.workspace == NULL) {
    fail("out of memory");
  }
  eb_gcm_workspace_wipe(w.workspace);
  memset(w.key, 0x42, sizeof w.key);
  for (size_t i = 0; i < w.pages * EB_GCM_PAGE_SIZE; i++) {
    w.plain[i] = (uint8_t)(i * 131 + (i >> 8));
  }
  memset(w.scratch, 0, w.pages * RECORD);

  size_t n = 0;
  for (int kernel = EB_GCM_KERNEL_NONE; kernel <= EB_GCM_KERNEL_AVX512; kernel++) {
    if (kernel == EB_GCM_KERNEL_NONE || eb_gcm_kernel_supported((eb_gcm_kernel)kernel)) {
      set_up(&contenders[n++], (eb_gcm_kernel)kernel, "seal", &w);
      set_up(&contenders[n++], (eb_gcm_kernel)kernel, "open", &w);
    }
  }
  run(&contenders[0], &w);
  memcpy(w.records, w.scratch, w.pages * RECORD);
  for (size_t k = 0; k < n; k++) { /* warm up, and fit the slice */
    const double start = seconds();
    for (int i = 0; i < 4; i++) {
      run(&contenders[k], &w);
    }
    contenders[k].repeats = 1 + (size_t)(SLICE_SECONDS / ((seconds() - start) / 4));
  }
  const double bytes = (double)w.pages * EB_GCM_PAGE_SIZE;
  for (size_t r = 0; r < rounds; r++) {
    for (size_t j = 0; j < n; j++) {
      contender *c = &contenders[(j + r) % n];
      hertz[r] = core_hertz();
      const double start = seconds();
      for (size_t i = 0; i < c->repeats; i++) {
        run(c, &w);
      }
      const double elapsed = seconds() - start;
      c->gbps[r] = bytes * (double)c->repeats / elapsed * 1e-9;
      c->cycles[r] = elapsed * hertz[r] / (double)c->repeats / (double)w.pages;
    }
  }

  for (size_t k = 0; k < n; k++) { /* before quantile() sorts */
    for (size_t r = 0; r < rounds; r++) {
      contenders[k].ratio[r] = contenders[k].gbps[r] / contenders[k % 2].gbps[r];
    }
  }
  printf("{\"benchmark\": \"gcm_pages\", \"page_bytes\": %u, \"aad_bytes\": %u, \"key_bits\": %u, \"pages_a_batch\": %zu, "
         "\"rounds\": %zu,\n \"openssl\": \"%s\", \"best_kernel\": \"%s\",\n ",
         EB_GCM_PAGE_SIZE, HEADER, w.key_bits, w.pages, rounds, OpenSSL_version(OPENSSL_VERSION),
         eb_gcm_kernel_name(eb_gcm_kernel_best()));
  print_quartiles("core_hertz", hertz, rounds);
  printf(",\n \"results\": [");
  for (size_t k = 0; k < n; k++) {
    contender *c = &contenders[k];
    printf("%s\n  {\"name\": \"%s\", \"operation\": \"%s\", ", k == 0 ? "" : ",", c->name, c->operation);
    if (c->kernel != EB_GCM_KERNEL_NONE) {
      print_quartiles("times_openssl", c->ratio, rounds);
      const double bound = bound_cycles(c->kernel, w.key_bits);
      printf(", \"aes_bound_cycles_a_page\": %.1f, \"of_aes_bound\": %.4f, ", bound, bound / quantile(c->cycles, rounds, 0.5));
    }
    print_quartiles("gigabytes_a_second", c->gbps, rounds);
    printf(", ");
    print_quartiles("cycles_a_page", c->cycles, rounds);
    printf(", \"cycles_a_byte\": %.4f}", quantile(c->cycles, rounds, 0.5) / EB_GCM_PAGE_SIZE);
  }
  printf("]}\n");
  return 0;
}
