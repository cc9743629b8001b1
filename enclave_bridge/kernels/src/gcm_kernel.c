/* Which kernel this machine can run, the checked entry points, and the power-on self-test. */
#include "gcm_internal.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

#include "gcm_cpu.h"
#endif

/* Twice the largest frame of a kernel, where spilled AES state and a message's tail live. */
enum { PAGES_FRAME = 2048, MESSAGE_FRAME = 4096 };

static void wipe(void *memory, size_t len) {
  memset(memory, 0, len);
  __asm__ volatile("" : : "r"(memory) : "memory");
}

/* Overwrites the stack below the caller, where the kernel that has just returned kept its frame. A page's is shorter, and
 * it is done as often as there are parts of a batch. */
__attribute__((noinline)) static void scrub_stack_of_pages(void) {
  uint8_t frame[PAGES_FRAME];
  wipe(frame, sizeof frame);
}

__attribute__((noinline)) static void scrub_stack(void) {
  uint8_t frame[MESSAGE_FRAME];
  wipe(frame, sizeof frame);
}

/* ---- detection ------------------------------------------------------------------------------- */

#if defined(__x86_64__)

enum { /* what XCR0 must show: the operating system saves these registers */
  STATE_YMM = 0x06,    /* XMM, upper halves of YMM */
  STATE_ZMM = 0xe6     /* and opmask, upper halves of ZMM 0-15, ZMM 16-31 */
};

static uint32_t enabled_states(uint32_t leaf1_ecx) {
  if ((leaf1_ecx & bit_OSXSAVE) == 0) {
    return 0;
  }
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

static int has_all(uint32_t value, uint32_t bits) { return (value & bits) == bits; }

int eb_gcm_kernel_supported(eb_gcm_kernel kernel) {
  uint32_t leaf1[GCM_REGISTERS] = {0};
  uint32_t leaf7[GCM_REGISTERS] = {0};
  if (!gcm_cpuid(1, 0, leaf1)) {
    return 0;
  }
  (void)gcm_cpuid(7, 0, leaf7);
  const uint32_t c1 = leaf1[GCM_ECX];
  const uint32_t b7 = leaf7[GCM_EBX];
  const uint32_t c7 = leaf7[GCM_ECX];
  const uint32_t states = enabled_states(c1);
  const int aesni = has_all(c1, bit_AES | bit_PCLMUL | bit_SSSE3 | bit_SSE4_1 | bit_AVX) && has_all(states, STATE_YMM);
  const int vaes = aesni && has_all(b7, bit_AVX2) && has_all(c7, bit_VAES | bit_VPCLMULQDQ);
  switch (kernel) {
  case EB_GCM_KERNEL_AESNI:
    return aesni;
  case EB_GCM_KERNEL_VAES256:
    return vaes;
  case EB_GCM_KERNEL_AVX512:
    return vaes && has_all(b7, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL) && has_all(states, STATE_ZMM);
  case EB_GCM_KERNEL_NONE:
    break;
  }
  return 0;
}

static const gcm_kernel_ops *find_ops(uint32_t kernel) {
  switch (kernel) {
  case EB_GCM_KERNEL_AESNI:
    return &gcm_aesni_ops;
  case EB_GCM_KERNEL_VAES256:
    return &gcm_vaes256_ops;
  case EB_GCM_KERNEL_AVX512:
    return &gcm_avx512_ops;
  default:
    return NULL;
  }
}

#else /* no kernel for this processor: the bridge uses libcrypto */

int eb_gcm_kernel_supported(eb_gcm_kernel kernel) {
  (void)kernel;
  return 0;
}

static const gcm_kernel_ops *find_ops(uint32_t kernel) {
  (void)kernel;
  return NULL;
}

void gcm_key_expand(gcm_key *key, const uint8_t *bytes, size_t len) {
  (void)key;
  (void)bytes;
  (void)len;
}

#endif

eb_gcm_kernel eb_gcm_kernel_best(void) {
  if (eb_gcm_kernel_supported(EB_GCM_KERNEL_AVX512)) {
    return EB_GCM_KERNEL_AVX512;
  }
  if (eb_gcm_kernel_supported(EB_GCM_KERNEL_VAES256)) {
    return EB_GCM_KERNEL_VAES256;
  }
  return eb_gcm_kernel_supported(EB_GCM_KERNEL_AESNI) ? EB_GCM_KERNEL_AESNI : EB_GCM_KERNEL_NONE;
}

const char *eb_gcm_kernel_name(eb_gcm_kernel kernel) {
  switch (kernel) {
  case EB_GCM_KERNEL_NONE:
    return "none";
  case EB_GCM_KERNEL_AESNI:
    return "aesni";
  case EB_GCM_KERNEL_VAES256:
    return "vaes256";
  case EB_GCM_KERNEL_AVX512:
    return "avx512";
  }
  return "unknown";
}

/* ---- keys -------------------------------------------------------------------------------------- */

static int misaligned(const void *pointer) { return (uintptr_t)pointer % EB_GCM_KEY_ALIGNMENT != 0; }

eb_gcm_status eb_gcm_key_init(eb_gcm_key *ctx, eb_gcm_kernel kernel, const uint8_t *key, size_t key_len) {
  if (ctx == NULL || misaligned(ctx)) {
    return EB_GCM_ERR_ARGUMENT;
  }
  eb_gcm_key_wipe(ctx);
  if (key == NULL || (key_len != 16 && key_len != 32)) {
    return EB_GCM_ERR_ARGUMENT;
  }
  if (!eb_gcm_kernel_supported(kernel)) {
    return EB_GCM_ERR_KERNEL;
  }
  gcm_key *expanded = (gcm_key *)(void *)ctx->opaque;
  expanded->kernel = kernel;
  gcm_key_expand(expanded, key, key_len);
  scrub_stack();
  return EB_GCM_OK;
}

void eb_gcm_key_wipe(eb_gcm_key *ctx) {
  if (ctx != NULL) {
    wipe(ctx, sizeof *ctx);
  }
}

void eb_gcm_workspace_wipe(eb_gcm_workspace *workspace) {
  if (workspace != NULL) {
    wipe(workspace, sizeof *workspace);
  }
}

/* The key's kernel, or NULL when there is no key in it. */
static const gcm_kernel_ops *ops_of(const eb_gcm_key *ctx) {
  const gcm_key *key = (const gcm_key *)(const void *)ctx->opaque;
  return key->rounds == 10 || key->rounds == 14 ? find_ops(key->kernel) : NULL;
}

/* ---- pages --------------------------------------------------------------------------------------- */

static eb_gcm_status check_pages(const eb_gcm_key *ctx, const eb_gcm_workspace *workspace, const eb_gcm_page *pages,
                                 size_t count) {
  if (ctx == NULL || misaligned(ctx) || workspace == NULL || misaligned(workspace) || (pages == NULL && count != 0)) {
    return EB_GCM_ERR_ARGUMENT;
  }
  for (size_t i = 0; i < count; i++) {
    if (pages[i].aad == NULL || pages[i].in == NULL || pages[i].out == NULL || pages[i].tag == NULL) {
      return EB_GCM_ERR_ARGUMENT;
    }
  }
  return ops_of(ctx) == NULL ? EB_GCM_ERR_KEY : EB_GCM_OK;
}

eb_gcm_status eb_gcm_pages_seal(const eb_gcm_key *ctx, eb_gcm_workspace *workspace, const eb_gcm_page *pages,
                                size_t count) {
  const eb_gcm_status status = check_pages(ctx, workspace, pages, count);
  if (status != EB_GCM_OK) {
    return status;
  }
  ops_of(ctx)->pages_seal((const gcm_key *)(const void *)ctx->opaque, workspace->opaque, pages, count);
  scrub_stack_of_pages();
  return EB_GCM_OK;
}

eb_gcm_status eb_gcm_pages_open(const eb_gcm_key *ctx, eb_gcm_workspace *workspace, const eb_gcm_page *pages,
                                size_t count, size_t *opened) {
  if (opened != NULL) {
    *opened = 0;
  }
  const eb_gcm_status status = check_pages(ctx, workspace, pages, count);
  if (status != EB_GCM_OK) {
    return status;
  }
  const gcm_key *key = (const gcm_key *)(const void *)ctx->opaque;
  const size_t verified = ops_of(ctx)->pages_open(key, workspace->opaque, pages, count);
  scrub_stack_of_pages();
  if (opened != NULL) {
    *opened = verified;
  }
  if (verified != count) {
    wipe(pages[verified].out, EB_GCM_PAGE_SIZE);
    return EB_GCM_ERR_TAG;
  }
  return EB_GCM_OK;
}

/* ---- messages -------------------------------------------------------------------------------------- */

static eb_gcm_status check_message(const eb_gcm_key *ctx, const eb_gcm_message *m) {
  if (ctx == NULL || misaligned(ctx) || m == NULL || m->nonce == NULL || m->nonce_len == 0 || m->tag == NULL ||
      (m->aad == NULL && m->aad_len != 0) || ((m->in == NULL || m->out == NULL) && m->len != 0) ||
      m->len > EB_GCM_MAX_MESSAGE || m->nonce_len > UINT64_MAX / 8 || m->aad_len > UINT64_MAX / 8) {
    return EB_GCM_ERR_ARGUMENT;
  }
  return ops_of(ctx) == NULL ? EB_GCM_ERR_KEY : EB_GCM_OK;
}

eb_gcm_status eb_gcm_message_seal(const eb_gcm_key *ctx, const eb_gcm_message *message) {
  const eb_gcm_status status = check_message(ctx, message);
  if (status != EB_GCM_OK) {
    return status;
  }
  ops_of(ctx)->message_seal((const gcm_key *)(const void *)ctx->opaque, message);
  scrub_stack();
  return EB_GCM_OK;
}

eb_gcm_status eb_gcm_message_open(const eb_gcm_key *ctx, const eb_gcm_message *message) {
  const eb_gcm_status status = check_message(ctx, message);
  if (status != EB_GCM_OK) {
    return status;
  }
  const int verified = ops_of(ctx)->message_open((const gcm_key *)(const void *)ctx->opaque, message);
  scrub_stack();
  if (!verified) {
    if (message->len != 0) {
      wipe(message->out, message->len);
    }
    return EB_GCM_ERR_TAG;
  }
  return EB_GCM_OK;
}
