/*
 * eb_gcm_kernel: AES-GCM (SP 800-38D) for batches of independent 4 KiB pages.
 *
 * A leaf of the enclave bridge: it needs a C library and nothing else, allocates nothing, keeps no
 * global state and calls no one. Which instructions are used is an argument, never the environment.
 *
 * Promises every kernel keeps
 *   - Time and memory access depend on lengths, addresses and verdicts only: no table is indexed by
 *     a secret, no branch depends on one.
 *   - Each input byte and each expected tag is read once and no output is read back, so a host that
 *     rewrites shared memory during a call cannot make a tag vouch for bytes that were not sealed,
 *     nor a verdict for bytes that were not checked. Keys, nonces, AAD and the descriptors must be
 *     in memory of the caller alone (copy a record's header before it is used as AAD).
 *   - Vector registers and the stack that was used are cleared before a call returns.
 *
 * Thread safety: functions may run at once on any keys, also on one key; eb_gcm_key_init and
 * eb_gcm_key_wipe need the key to themselves, and each call that works on pages its workspace.
 *
 * The caller owns nonces: one used twice under a key breaks GCM.
 */
#ifndef EB_GCM_KERNEL_H
#define EB_GCM_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define EB_GCM_MUST_USE __attribute__((warn_unused_result))
#else
#define EB_GCM_MUST_USE
#endif

#define EB_GCM_PAGE_SIZE 4096u
#define EB_GCM_PAGE_AAD_SIZE 48u /* the record header of PROTOCOL.md */
#define EB_GCM_NONCE_SIZE 12u
#define EB_GCM_TAG_SIZE 16u
#define EB_GCM_KEY_SIZE 3520u
#define EB_GCM_KEY_ALIGNMENT 64u
#define EB_GCM_WORKSPACE_SIZE 5056u
#define EB_GCM_MAX_MESSAGE ((UINT64_C(1) << 36) - 32) /* SP 800-38D 5.2.1.1 */

typedef enum {
  EB_GCM_OK = 0,
  EB_GCM_ERR_ARGUMENT = 1,  /* NULL, misaligned key, a length out of range */
  EB_GCM_ERR_KERNEL = 2,    /* unknown, or this CPU cannot run it */
  EB_GCM_ERR_KEY = 3,       /* the key was never initialised, or has been wiped */
  EB_GCM_ERR_TAG = 4,       /* the tag does not verify; the output was zeroed */
  EB_GCM_ERR_SELF_TEST = 5, /* a known answer came out wrong: do not use this kernel */
} eb_gcm_status;

/* In order of preference: the highest that is supported is the best. */
typedef enum {
  EB_GCM_KERNEL_NONE = 0,    /* no usable AES instructions: use libcrypto */
  EB_GCM_KERNEL_AESNI = 1,   /* 128-bit: AES-NI, PCLMULQDQ, AVX */
  EB_GCM_KERNEL_VAES256 = 2, /* 256-bit: VAES, VPCLMULQDQ, AVX2 (EPYC 7003, Alder Lake and later) */
  EB_GCM_KERNEL_AVX512 = 3,  /* 512-bit: VAES, VPCLMULQDQ, AVX-512 F/BW/DQ/VL (EPYC 9004, Ice Lake and later) */
} eb_gcm_kernel;

/* The best kernel of this CPU and operating system (CPUID and XGETBV are asked each time). */
eb_gcm_kernel eb_gcm_kernel_best(void);
/* 1 when this CPU and operating system can run it, else 0; NONE is never supported. */
int eb_gcm_kernel_supported(eb_gcm_kernel kernel);
/* "none", "aesni", "vaes256", "avx512"; "unknown" for any other value. Never NULL. */
const char *eb_gcm_kernel_name(eb_gcm_kernel kernel);
/* Power-on self-test: known answers of both key sizes through every entry point, and refusal of a
 * changed tag. EB_GCM_ERR_KERNEL, EB_GCM_ERR_SELF_TEST. Takes some tens of microseconds. */
EB_GCM_MUST_USE eb_gcm_status eb_gcm_kernel_self_test(eb_gcm_kernel kernel);

/* An expanded key: the AES schedule and powers of the hash key. As secret as the key itself, so it
 * belongs in locked memory; the caller owns it. 64-byte aligned; not to be copied or moved. */
typedef struct {
  _Alignas(64) uint8_t opaque[EB_GCM_KEY_SIZE];
} eb_gcm_key;

/* Expands `key` (16 or 32 bytes) for `kernel`. On any error *ctx is wiped. */
EB_GCM_MUST_USE eb_gcm_status eb_gcm_key_init(eb_gcm_key *ctx, eb_gcm_kernel kernel, const uint8_t *key,
                                              size_t key_len);
/* Zeroises; NULL is allowed. */
void eb_gcm_key_wipe(eb_gcm_key *ctx);

/* Where a kernel works on pages, and keeps what one call can leave to the next under the same key: batches in parts
 * cost little more than at once. As secret as the key; 64-byte aligned, of zeros at first, and the caller's to wipe.
 * Any key and any direction may follow any other: what is kept is used only for the key that it is of. One call at a
 * time has it. */
typedef struct {
  _Alignas(64) uint8_t opaque[EB_GCM_WORKSPACE_SIZE];
} eb_gcm_workspace;

/* Zeroises; NULL is allowed. */
void eb_gcm_workspace_wipe(eb_gcm_workspace *workspace);

/* One page. in and out are the same or do not overlap; any alignment. */
typedef struct {
  uint8_t nonce[EB_GCM_NONCE_SIZE];
  const uint8_t *aad; /* EB_GCM_PAGE_AAD_SIZE bytes */
  const uint8_t *in;  /* EB_GCM_PAGE_SIZE bytes */
  uint8_t *out;       /* EB_GCM_PAGE_SIZE bytes */
  uint8_t *tag;       /* EB_GCM_TAG_SIZE bytes: written by seal, only read by open */
} eb_gcm_page;

/* Seals `count` pages. count 0 is fine. Arguments are checked before anything is written. */
EB_GCM_MUST_USE eb_gcm_status eb_gcm_pages_seal(const eb_gcm_key *ctx, eb_gcm_workspace *workspace,
                                                const eb_gcm_page *pages, size_t count);
/* Opens pages in order and stops at the first whose tag does not verify: EB_GCM_ERR_TAG, that page's
 * out is zeroed, later ones are untouched. *opened (may be NULL; always written) is the number of
 * pages that verified. `out` holds unverified plaintext during the call: it must be private memory. */
EB_GCM_MUST_USE eb_gcm_status eb_gcm_pages_open(const eb_gcm_key *ctx, eb_gcm_workspace *workspace,
                                                const eb_gcm_page *pages, size_t count, size_t *opened);

/* One message of any length, for whatever is not a page. */
typedef struct {
  const uint8_t *nonce; /* nonce_len bytes, at least 1; 12 is the right length */
  size_t nonce_len;
  const uint8_t *aad; /* aad_len bytes; may be NULL when that is 0 */
  size_t aad_len;
  const uint8_t *in; /* len bytes; may be NULL when that is 0, as may out */
  uint8_t *out;      /* len bytes; in == out or no overlap */
  size_t len;        /* at most EB_GCM_MAX_MESSAGE */
  uint8_t *tag;      /* EB_GCM_TAG_SIZE bytes: written by seal, only read by open */
} eb_gcm_message;

EB_GCM_MUST_USE eb_gcm_status eb_gcm_message_seal(const eb_gcm_key *ctx, const eb_gcm_message *message);
/* EB_GCM_ERR_TAG: out is zeroed. */
EB_GCM_MUST_USE eb_gcm_status eb_gcm_message_open(const eb_gcm_key *ctx, const eb_gcm_message *message);

#ifdef __cplusplus
}
#endif
#endif
