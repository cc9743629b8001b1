/*
 * The seam between the page path and an AES-GCM implementation ("kernel").
 *
 * An eb_gcm is one key in one direction. Its `secret` points at EB_GCM_SECRET_SIZE bytes of
 * zeroed secret memory, aligned to 64: an implementation of ours keeps its key schedule and hash
 * key powers there and nowhere else, and what it works with in `work`: a lane's EB_GCM_WORK_SIZE
 * bytes, zeros at first, which keys may have in turn. `state` is for what an implementation must keep elsewhere
 * (libcrypto's context). IVs are 12 bytes, tags 16.
 */
#ifndef EB_GCM_H
#define EB_GCM_H

#include <stdbool.h>

#include "enclave_bridge.h"

#define EB_GCM_SECRET_SIZE 3520u
#define EB_GCM_WORK_SIZE 5056u
#define EB_GCM_IV_SIZE 12u
#define EB_LANE_PAGES 16u /* the largest batch an implementation is given */

/* What one call of the page path has in secret memory. */
typedef struct {
  _Alignas(64) uint8_t work[EB_GCM_WORK_SIZE];
  uint8_t pages[EB_LANE_PAGES * EB_PAGE_SIZE];
} eb_lane_secret;

typedef struct eb_gcm_ops eb_gcm_ops;

typedef struct {
  const eb_gcm_ops *ops; /* NULL: not set up */
  uint8_t *secret;
  void *state;
} eb_gcm;

/* One message of a batch. `in` may equal `out`, and may not overlap it otherwise. */
typedef struct {
  const uint8_t *iv, *aad, *in;
  uint8_t *out, *tag; /* tag: written by seal, read by open */
} eb_gcm_item;

struct eb_gcm_ops {
  const char *name; /* at most 31 characters; shown as eb_bridge_info.gcm_kernel */
  size_t batch;     /* messages it likes at once, 1..EB_LANE_PAGES */
  /* True when it reads each input byte exactly once and never reads its output back. The page
   * path then works straight on memory that a hostile process may write; otherwise it goes
   * through private memory, since a ciphertext that changes between hash and decryption would
   * verify as one page and decrypt as another. */
  bool single_pass;
  bool (*usable)(void); /* what the CPU has */

  /* Makes room for a key of 16 or 32 bytes. The only call that may allocate. */
  eb_status (*setup)(eb_gcm *gcm, size_t key_size, bool seal);
  /* Sets the key, or replaces it. The key is the caller's to wipe. */
  eb_status (*set_key)(eb_gcm *gcm, const uint8_t *key, size_t key_size);
  /* n messages 1..EB_LANE_PAGES, each with aad_len and len bytes. Only pages want `work`; else it may be NULL. */
  eb_status (*seal)(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len, size_t len);
  /* EB_OK with *verified = how many messages from the start have a good tag, up to the first bad
   * one. Tags are compared in constant time. What a bad message leaves in its `out` is the
   * caller's to wipe. */
  eb_status (*open)(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len, size_t len,
                    size_t *verified);
  /* Zeroises the key. gcm->secret is NULL in a forked child. */
  void (*release)(eb_gcm *gcm);
};

/* Ours are of no use on a CPU that lacks their instructions, or is no x86-64. */
extern const eb_gcm_ops eb_gcm_avx512, eb_gcm_vaes256, eb_gcm_aesni, eb_gcm_openssl;

/* Known answers for one implementation: page-sized messages with both key sizes, a full batch,
 * and a refused tag. `secret` is EB_GCM_SECRET_SIZE bytes of secret memory; the caller
 * wipes it and the lane. EB_ERR_SELF_TEST. */
eb_status eb_gcm_self_test(const eb_gcm_ops *ops, uint8_t *secret, eb_lane_secret *lane);
/* The first implementation of the table in gcm.c that the CPU can run, or the one of that name
 * (NULL: any). It must pass the self-test: one that fails is an error, not a reason to try the
 * next. EB_ERR_ARGUMENT when the name is unknown or the CPU cannot run it, EB_ERR_SELF_TEST. */
eb_status eb_gcm_choose(const eb_gcm_ops **ops, const char *name, uint8_t *secret, eb_lane_secret *lane);

/* Releases the key and forgets the implementation; one that was never set up is allowed. */
void eb_gcm_release(eb_gcm *gcm);

#endif
