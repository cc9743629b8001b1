/* The counter blocks of a page, nonce left out: 2, 3, ... 257, big-endian, in the last four bytes.
 * One XOR with (nonce, first round key) makes the cipher's state of each: no adding, no byte swap. */
#include "gcm_internal.h"

#define ONE(n) {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ((n) + 2) >> 8, ((n) + 2) & 0xff}
#define FOUR(n) ONE(n), ONE((n) + 1), ONE((n) + 2), ONE((n) + 3)
#define SIXTEEN(n) FOUR(n), FOUR((n) + 4), FOUR((n) + 8), FOUR((n) + 12)
#define SIXTY_FOUR(n) SIXTEEN(n), SIXTEEN((n) + 16), SIXTEEN((n) + 32), SIXTEEN((n) + 48)

_Alignas(64) const uint8_t gcm_page_counters[EB_GCM_PAGE_SIZE / GCM_BLOCK][GCM_BLOCK] = {
    SIXTY_FOUR(0), SIXTY_FOUR(64), SIXTY_FOUR(128), SIXTY_FOUR(192)};
