/* The self-test must notice a kernel that is broken. The linker puts these wrappers between the
 * self-test and the entry points (-Wl,--wrap); each breaks one thing that a faulty CPU or build might. */
#include "eb_gcm_kernel.h"

#include <stdio.h>
#include <string.h>

static enum {
  NOTHING,
  WRONG_PAGE_TAG,
  WRONG_PAGE_STORE,
  PAGE_OPEN_ALWAYS_OK,
  PAGE_OPEN_ALWAYS_REFUSES,
  PAGE_NOT_ZEROED,
  WRONG_MESSAGE_TAG,
  WRONG_MESSAGE_STORE,
  MESSAGE_OPEN_ALWAYS_OK,
  MESSAGE_OPEN_ALWAYS_REFUSES,
  NO_KEY,
  FAULTS
} fault;

#define REAL(name) __real_##name
#define WRAP(name) __wrap_##name

eb_gcm_status REAL(eb_gcm_key_init)(eb_gcm_key *, eb_gcm_kernel, const uint8_t *, size_t);
eb_gcm_status REAL(eb_gcm_pages_seal)(const eb_gcm_key *, eb_gcm_workspace *, const eb_gcm_page *, size_t);
eb_gcm_status REAL(eb_gcm_pages_open)(const eb_gcm_key *, eb_gcm_workspace *, const eb_gcm_page *, size_t, size_t *);
eb_gcm_status REAL(eb_gcm_message_seal)(const eb_gcm_key *, const eb_gcm_message *);
eb_gcm_status REAL(eb_gcm_message_open)(const eb_gcm_key *, const eb_gcm_message *);
eb_gcm_status WRAP(eb_gcm_key_init)(eb_gcm_key *, eb_gcm_kernel, const uint8_t *, size_t);
eb_gcm_status WRAP(eb_gcm_pages_seal)(const eb_gcm_key *, eb_gcm_workspace *, const eb_gcm_page *, size_t);
eb_gcm_status WRAP(eb_gcm_pages_open)(const eb_gcm_key *, eb_gcm_workspace *, const eb_gcm_page *, size_t, size_t *);
eb_gcm_status WRAP(eb_gcm_message_seal)(const eb_gcm_key *, const eb_gcm_message *);
eb_gcm_status WRAP(eb_gcm_message_open)(const eb_gcm_key *, const eb_gcm_message *);

eb_gcm_status WRAP(eb_gcm_key_init)(eb_gcm_key *ctx, eb_gcm_kernel kernel, const uint8_t *key, size_t len) {
  const eb_gcm_status status = REAL(eb_gcm_key_init)(ctx, kernel, key, len);
  return fault == NO_KEY ? EB_GCM_ERR_ARGUMENT : status;
}

eb_gcm_status WRAP(eb_gcm_pages_seal)(const eb_gcm_key *ctx, eb_gcm_workspace *workspace, const eb_gcm_page *pages,
                                      size_t count) {
  const eb_gcm_status status = REAL(eb_gcm_pages_seal)(ctx, workspace, pages, count);
  pages[0].tag[7] ^= fault == WRONG_PAGE_TAG;
  pages[0].out[4095] ^= fault == WRONG_PAGE_STORE;
  return status;
}

eb_gcm_status WRAP(eb_gcm_pages_open)(const eb_gcm_key *ctx, eb_gcm_workspace *workspace, const eb_gcm_page *pages,
                                      size_t count, size_t *opened) {
  const eb_gcm_status status = REAL(eb_gcm_pages_open)(ctx, workspace, pages, count, opened);
  if (fault == PAGE_OPEN_ALWAYS_OK) {
    return EB_GCM_OK;
  }
  pages[0].out[0] ^= fault == PAGE_NOT_ZEROED && status == EB_GCM_ERR_TAG;
  return fault == PAGE_OPEN_ALWAYS_REFUSES ? EB_GCM_ERR_TAG : status;
}

eb_gcm_status WRAP(eb_gcm_message_seal)(const eb_gcm_key *ctx, const eb_gcm_message *m) {
  const eb_gcm_status status = REAL(eb_gcm_message_seal)(ctx, m);
  m->tag[0] ^= fault == WRONG_MESSAGE_TAG;
  m->out[999] ^= fault == WRONG_MESSAGE_STORE;
  return status;
}

eb_gcm_status WRAP(eb_gcm_message_open)(const eb_gcm_key *ctx, const eb_gcm_message *m) {
  const eb_gcm_status status = REAL(eb_gcm_message_open)(ctx, m);
  if (fault == MESSAGE_OPEN_ALWAYS_OK) {
    return EB_GCM_OK;
  }
  return fault == MESSAGE_OPEN_ALWAYS_REFUSES ? EB_GCM_ERR_TAG : status;
}

int main(void) {
  int passed = 0;
  int failed = 0;
  for (int kernel = EB_GCM_KERNEL_AESNI; kernel <= EB_GCM_KERNEL_AVX512; kernel++) {
    for (int f = NOTHING; f < FAULTS && eb_gcm_kernel_supported((eb_gcm_kernel)kernel); f++) {
      fault = f;
      const eb_gcm_status expected = f == NOTHING ? EB_GCM_OK : EB_GCM_ERR_SELF_TEST;
      if (eb_gcm_kernel_self_test((eb_gcm_kernel)kernel) == expected) {
        passed++;
      } else {
        failed++;
        (void)fprintf(stderr, "%s: fault %d was not handled\n", eb_gcm_kernel_name((eb_gcm_kernel)kernel), f);
      }
    }
  }
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
