/*
 * bench_rivals: sealing 4 KiB pages (AES-256-GCM, 48 bytes of AAD, a nonce a page, one core), this
 * library's kernels against other people's, in interleaved rounds of one run. Prints JSON.
 * Not part of the product; bench/README.md says where the rivals come from.
 *
 *   bench_rivals [NAME=LIBCRYPTO.so ...]
 *
 * Each LIBCRYPTO is loaded at run time (OpenSSL 3 or 4, AWS-LC) and used through EVP with one context whose
 * key is set once, and, where it has it, through EVP_AEAD. Intel's ipsec-mb is linked.
 */
#define _GNU_SOURCE
#include "eb_gcm_kernel.h"

#include <dlfcn.h>
#include <intel-ipsec-mb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGES 64u
#define ROUNDS 101u
#define MAX_RIVALS 24u
#define RECORD (48u + 4096u + 16u)

typedef struct {
  int (*init)(void *, const void *, void *, const uint8_t *, const uint8_t *);
  int (*update)(void *, uint8_t *, int *, const uint8_t *, int);
  int (*final)(void *, uint8_t *, int *);
  int (*ctrl)(void *, int, int, void *);
  int (*scatter)(const void *, uint8_t *, uint8_t *, size_t *, size_t, const uint8_t *, size_t, const uint8_t *,
                 size_t, const uint8_t *, size_t, const uint8_t *, size_t);
} evp;

typedef struct rival {
  char name[64];
  void (*seal)(const struct rival *);
  evp api;
  void *ctx;
  IMB_MGR *manager;
  eb_gcm_key *key;
  size_t repeats;
  double gbps[ROUNDS];
} rival;

static uint8_t *plain;
static uint8_t *records;
static uint8_t *reference;
static eb_gcm_workspace workspace;
static const uint8_t key[32] = {1, 2, 3};

static void fail(const char *what) {
  (void)fprintf(stderr, "bench_rivals: %s\n", what);
  exit(1);
}

static double seconds(void) {
  struct timespec t;
  (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void nonce_of(size_t page, uint8_t nonce[12]) {
  memset(nonce, 0, 12);
  memcpy(nonce + 4, &page, 8);
}

static void seal_evp(const rival *r) {
  for (size_t i = 0; i < PAGES; i++) {
    uint8_t nonce[12];
    uint8_t *record = records + i * RECORD;
    int n = 0;
    nonce_of(i, nonce);
    if (r->api.init(r->ctx, NULL, NULL, NULL, nonce) != 1 || r->api.update(r->ctx, NULL, &n, record, 48) != 1 ||
        r->api.update(r->ctx, record + 48, &n, plain + i * 4096, 4096) != 1 ||
        r->api.final(r->ctx, record + 48 + 4096, &n) != 1 || r->api.ctrl(r->ctx, 0x10, 16, record + 48 + 4096) != 1) {
      fail("EVP failed");
    }
  }
}

static void seal_aead(const rival *r) {
  for (size_t i = 0; i < PAGES; i++) {
    uint8_t nonce[12];
    uint8_t *record = records + i * RECORD;
    size_t n = 0;
    nonce_of(i, nonce);
    if (r->api.scatter(r->ctx, record + 48, record + 48 + 4096, &n, 16, nonce, 12, plain + i * 4096, 4096, NULL, 0,
                       record, 48) != 1) {
      fail("EVP_AEAD failed");
    }
  }
}

static void seal_ipsec(const rival *r) {
  for (size_t i = 0; i < PAGES; i++) {
    struct gcm_context_data state;
    uint8_t nonce[12];
    uint8_t *record = records + i * RECORD;
    nonce_of(i, nonce);
    IMB_AES256_GCM_ENC(r->manager, r->ctx, &state, record + 48, plain + i * 4096, 4096, nonce, record, 48,
                       record + 48 + 4096, 16);
  }
}

static void seal_ours(const rival *r) {
  eb_gcm_page pages[PAGES];
  for (size_t i = 0; i < PAGES; i++) {
    uint8_t *record = records + i * RECORD;
    nonce_of(i, pages[i].nonce);
    pages[i].aad = record;
    pages[i].in = plain + i * 4096;
    pages[i].out = record + 48;
    pages[i].tag = record + 48 + 4096;
  }
  if (eb_gcm_pages_seal(r->key, &workspace, pages, PAGES) != EB_GCM_OK) {
    fail("our kernel failed");
  }
  eb_gcm_workspace_wipe(&workspace); /* as the page path does after each batch */
}

static size_t add_library(rival *r, const char *argument) {
  char name[32];
  const char *path = strchr(argument, '=');
  if (path == NULL || (size_t)(path - argument) >= sizeof name) {
    fail("expected NAME=LIBCRYPTO.so");
  }
  (void)snprintf(name, sizeof name, "%.*s", (int)(path - argument), argument);
  void *library = dlopen(path + 1, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
  if (library == NULL) {
    fail(dlerror());
  }
  void *(*new_ctx)(void) = (void *(*)(void))dlsym(library, "EVP_CIPHER_CTX_new");
  const void *(*cipher)(void) = (const void *(*)(void))dlsym(library, "EVP_aes_256_gcm");
  *(void **)&r[0].api.init = dlsym(library, "EVP_EncryptInit_ex");
  *(void **)&r[0].api.update = dlsym(library, "EVP_EncryptUpdate");
  *(void **)&r[0].api.final = dlsym(library, "EVP_EncryptFinal_ex");
  *(void **)&r[0].api.ctrl = dlsym(library, "EVP_CIPHER_CTX_ctrl");
  r[0].ctx = new_ctx();
  if (r[0].api.init(r[0].ctx, cipher(), NULL, key, NULL) != 1) {
    fail("EVP cannot set a key");
  }
  (void)snprintf(r[0].name, sizeof r[0].name, "%s EVP", name);
  r[0].seal = seal_evp;
  const void *(*aead)(void) = (const void *(*)(void))dlsym(library, "EVP_aead_aes_256_gcm");
  if (aead == NULL) {
    return 1;
  }
  void *(*aead_new)(const void *, const uint8_t *, size_t, size_t) =
      (void *(*)(const void *, const uint8_t *, size_t, size_t))dlsym(library, "EVP_AEAD_CTX_new");
  *(void **)&r[1].api.scatter = dlsym(library, "EVP_AEAD_CTX_seal_scatter");
  r[1].ctx = aead_new(aead(), key, 32, 16);
  (void)snprintf(r[1].name, sizeof r[1].name, "%s EVP_AEAD", name);
  r[1].seal = seal_aead;
  return 2;
}

static size_t add_ipsec(rival *r, const char *name, void (*init)(IMB_MGR *), uint64_t flags) {
  r->manager = alloc_mb_mgr(flags);
  r->ctx = aligned_alloc(64, (sizeof(struct gcm_key_data) + 63) / 64 * 64);
  if (r->manager == NULL || r->ctx == NULL) {
    fail("out of memory");
  }
  init(r->manager);
  if (imb_get_errno(r->manager) != 0) {
    return 0;
  }
  IMB_AES256_GCM_PRE(r->manager, key, r->ctx);
  (void)snprintf(r->name, sizeof r->name, "%s", name);
  r->seal = seal_ipsec;
  return 1;
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a;
  const double y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  static rival rivals[MAX_RIVALS];
  size_t n = 0;
  plain = aligned_alloc(4096, PAGES * 4096u);
  records = aligned_alloc(4096, PAGES * 4096u * 2);
  reference = malloc(PAGES * RECORD);
  if (plain == NULL || records == NULL || reference == NULL) {
    fail("out of memory");
  }
  memset(plain, 0x3c, PAGES * 4096u);
  memset(records, 0, PAGES * 4096u * 2);
  for (int kernel = EB_GCM_KERNEL_AESNI; kernel <= EB_GCM_KERNEL_AVX512; kernel++) {
    rival *r = &rivals[n];
    r->key = aligned_alloc(64, sizeof *r->key);
    if (eb_gcm_key_init(r->key, (eb_gcm_kernel)kernel, key, 32) == EB_GCM_OK) {
      (void)snprintf(r->name, sizeof r->name, "pagegate %s", eb_gcm_kernel_name((eb_gcm_kernel)kernel));
      r->seal = seal_ours;
      n++;
    }
  }
  n += add_ipsec(&rivals[n], "ipsec-mb AVX-512 VAES", init_mb_mgr_avx512, 0);
  n += add_ipsec(&rivals[n], "ipsec-mb AVX2", init_mb_mgr_avx2, 0);
  for (int i = 1; i < argc && n + 2 <= MAX_RIVALS; i++) {
    n += add_library(&rivals[n], argv[i]);
  }
  for (size_t k = 0; k < n; k++) {
    rivals[k].seal(&rivals[k]);
    if (k == 0) {
      memcpy(reference, records, PAGES * RECORD);
    } else if (memcmp(reference, records, PAGES * RECORD) != 0) {
      fail(rivals[k].name);
    }
    memset(records, 0, PAGES * RECORD);
    const double start = seconds();
    rivals[k].seal(&rivals[k]);
    rivals[k].repeats = 1 + (size_t)(2e-3 / (seconds() - start));
  }
  for (size_t round = 0; round < ROUNDS; round++) {
    for (size_t j = 0; j < n; j++) {
      rival *r = &rivals[(j + round) % n];
      const double start = seconds();
      for (size_t i = 0; i < r->repeats; i++) {
        r->seal(r);
      }
      r->gbps[round] = (double)r->repeats * PAGES * 4096 / (seconds() - start) * 1e-9;
    }
  }
  printf("{\"benchmark\": \"gcm_rivals\", \"pages_a_batch\": %u, \"rounds\": %u, \"gigabytes_a_second\": [", PAGES, ROUNDS);
  for (size_t k = 0; k < n; k++) {
    double *g = rivals[k].gbps;
    qsort(g, ROUNDS, sizeof *g, ascending);
    printf("%s\n  {\"name\": \"%s\", \"median\": %.3f, \"q1\": %.3f, \"q3\": %.3f}", k ? "," : "", rivals[k].name,
           g[ROUNDS / 2], g[ROUNDS / 4], g[ROUNDS * 3 / 4]);
  }
  printf("]}\n");
  return 0;
}
