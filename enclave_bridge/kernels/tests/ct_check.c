/* Run under valgrind memcheck: keys, plaintext and everything made from them are marked undefined, so
 * a branch or an address that depends on them is reported (the method of ctgrind).
 * Valgrind knows neither VAES nor AVX-512: only the aesni kernel can be run so. The others are
 * instances of the same text (src/gcm_body.h), except for vaes256's pages under a 256-bit key; the
 * machine code of all of them is looked through by gcm_no_leaks.py.
 *   ct_check         must be clean
 *   ct_check leak    branches on a key byte on purpose: must be reported */
#include "eb_gcm_kernel.h"

#include <stdio.h>
#include <string.h>
#include <valgrind/memcheck.h>

#define CHECK(condition) \
  do { \
    if (!(condition)) { \
      (void)fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      return 1; \
    } \
  } while (0)

static uint8_t plain[2 * 4096];
static uint8_t sealed[2 * 4096];
static uint8_t opened[2 * 4096];
static uint8_t tags[2 * 16];
static uint8_t aad[48];
static eb_gcm_key ctx;
static eb_gcm_workspace workspace;

static int check(size_t key_len, int leak) {
  static const size_t lengths[] = {0, 1, 15, 16, 17, 127, 128, 300, 513, 4096, 5000};
  uint8_t key[32] = {0};
  VALGRIND_MAKE_MEM_UNDEFINED(key, sizeof key);
  VALGRIND_MAKE_MEM_UNDEFINED(plain, sizeof plain);
  if (leak && key[3] == 7) {
    puts("leaked");
  }
  CHECK(eb_gcm_key_init(&ctx, EB_GCM_KERNEL_AESNI, key, key_len) == EB_GCM_OK);
  eb_gcm_page pages[2];
  memset(pages, 0, sizeof pages);
  for (size_t i = 0; i < 2; i++) {
    pages[i].nonce[0] = (uint8_t)i;
    pages[i].aad = aad;
    pages[i].in = plain + i * 4096;
    pages[i].out = sealed + i * 4096;
    pages[i].tag = tags + i * 16;
  }
  CHECK(eb_gcm_pages_seal(&ctx, &workspace, pages, 2) == EB_GCM_OK);
  for (size_t i = 0; i < 2; i++) {
    pages[i].in = sealed + i * 4096;
    pages[i].out = opened + i * 4096;
  }
  CHECK(eb_gcm_pages_open(&ctx, &workspace, pages, 2, NULL) == EB_GCM_OK);
  tags[0] ^= 1;
  CHECK(eb_gcm_pages_open(&ctx, &workspace, pages, 2, NULL) == EB_GCM_ERR_TAG);
  for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
    eb_gcm_message m = {aad, 12 + i, aad, i * 4, plain, sealed, lengths[i], tags};
    CHECK(eb_gcm_message_seal(&ctx, &m) == EB_GCM_OK);
    m.in = sealed;
    m.out = opened;
    CHECK(eb_gcm_message_open(&ctx, &m) == EB_GCM_OK);
  }
  eb_gcm_key_wipe(&ctx);
  return 0;
}

int main(int argc, char **argv) {
  const int leak = argc > 1 && strcmp(argv[1], "leak") == 0;
  if (!eb_gcm_kernel_supported(EB_GCM_KERNEL_AESNI)) {
    (void)fprintf(stderr, "ct_check: skipped, no AES-NI\n");
    return 77;
  }
  const int failed = check(16, leak) | check(32, leak);
  printf("%d passed, %d failed\n", !failed, failed);
  return failed;
}
