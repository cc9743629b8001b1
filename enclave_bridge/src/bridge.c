#include "bridge.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "handshake.h"
#include "page_guard.h"
#include "session.h"

#define DEFAULT_SESSIONS 256u
#define DEFAULT_HANDSHAKES 64u
#define DEFAULT_GUARDS 64u
#define MAX_SLOTS 65536u

static eb_status choose_kernel(eb_bridge *bridge, const char *name) {
  eb_status status = EB_OK;
  uint8_t *secret = eb_arena_take(&bridge->arena, EB_POOL_SESSIONS);
  eb_lane_secret *lane = eb_arena_take(&bridge->arena, EB_POOL_LANES);
  EB_TRY(eb_gcm_choose(&bridge->gcm, name, secret, lane));
done:
  eb_arena_give(&bridge->arena, EB_POOL_LANES, lane);
  eb_arena_give(&bridge->arena, EB_POOL_SESSIONS, secret);
  return status;
}

static eb_status fetch_digests(eb_bridge *bridge) {
  for (eb_suite suite = 1; suite <= EB_SUITES; suite++) {
    bridge->digest[suite - 1] = EVP_MD_fetch(NULL, eb_suite_find(suite)->digest, NULL);
    if (bridge->digest[suite - 1] == NULL) return EB_ERR_CRYPTO;
  }
  return EB_OK;
}

eb_status eb_bridge_open(const eb_bridge_options *options, eb_bridge **bridge) {
  const eb_bridge_options defaults = {.max_sessions = DEFAULT_SESSIONS, .max_handshakes = DEFAULT_HANDSHAKES};
  eb_status status = EB_OK;
  eb_bridge *made = NULL;

  if (options == NULL) options = &defaults;
  EB_ENSURE(bridge != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(options->max_sessions >= 1 && options->max_sessions <= MAX_SLOTS, EB_ERR_ARGUMENT);
  EB_ENSURE(options->max_handshakes >= 1 && options->max_handshakes <= MAX_SLOTS, EB_ERR_ARGUMENT);
  EB_ENSURE(options->max_guards <= MAX_SLOTS, EB_ERR_ARGUMENT);
  const eb_pool_plan plan[EB_POOLS] = {
      [EB_POOL_SESSIONS] = {sizeof(eb_session_secret), options->max_sessions},
      [EB_POOL_HANDSHAKES] = {sizeof(eb_handshake_secret), options->max_handshakes},
      [EB_POOL_LANES] = {sizeof(eb_lane_secret), EB_LANES},
      [EB_POOL_STAGING] = {EB_STAGING_SIZE, EB_STAGING_SLOTS},
      [EB_POOL_GUARDS] = {sizeof(eb_guard_secret), options->max_guards > 0 ? options->max_guards : DEFAULT_GUARDS},
  };
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  atomic_init(&made->references, 1);
  EB_TRY(eb_platform_prepare());
  EB_TRY(eb_arena_open(&made->arena, plan, true));
  EB_TRY(eb_staging_open(made, options->file_io));
  EB_TRY(fetch_digests(made));
  EB_TRY(choose_kernel(made, options->gcm_kernel));
  *bridge = made;
  made = NULL;
done:
  eb_bridge_free(made);
  return status;
}

void eb_lane_give(eb_bridge *bridge, eb_lane_secret *lane, size_t pages) {
  eb_arena_give_used(&bridge->arena, EB_POOL_LANES, lane, offsetof(eb_lane_secret, pages) + pages * EB_PAGE_SIZE);
}

void eb_bridge_hold(eb_bridge *bridge) { atomic_fetch_add(&bridge->references, 1); }

void eb_bridge_free(eb_bridge *bridge) {
  if (bridge == NULL || atomic_fetch_sub(&bridge->references, 1) != 1) return;
  for (size_t i = 0; i < EB_SUITES; i++) EVP_MD_free(bridge->digest[i]);
  eb_staging_close(bridge);
  eb_arena_close(&bridge->arena);
  free(bridge);
}

bool eb_bridge_alive(const eb_bridge *bridge) { return eb_arena_alive(&bridge->arena); }

eb_status eb_bridge_get_info(eb_bridge *bridge, eb_bridge_info *info) {
  eb_status status = EB_OK;
  EB_ENSURE(bridge != NULL && info != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(eb_bridge_alive(bridge), EB_ERR_FORKED);
  memset(info, 0, sizeof *info);
  info->memory = bridge->arena.memory.kind;
  info->secret_bytes = bridge->arena.memory.bytes;
  info->sessions_live = eb_arena_live(&bridge->arena, EB_POOL_SESSIONS);
  info->handshakes_live = eb_arena_live(&bridge->arena, EB_POOL_HANDSHAKES);
  strncpy(info->gcm_kernel, bridge->gcm->name, sizeof info->gcm_kernel - 1);
  strncpy(info->file_io, eb_staging_name(bridge), sizeof info->file_io - 1);
  strncpy(info->libcrypto, OpenSSL_version(OPENSSL_VERSION), sizeof info->libcrypto - 1);
done:
  return status;
}

eb_status eb_random(eb_bridge *bridge, uint8_t *out, size_t out_len) {
  eb_status status = EB_OK;
  EB_ENSURE(bridge != NULL && (out != NULL || out_len == 0), EB_ERR_ARGUMENT);
  EB_ENSURE(out_len <= EB_MAX_MESSAGE_SIZE, EB_ERR_LENGTH);
  EB_ENSURE(eb_bridge_alive(bridge), EB_ERR_FORKED);
  if (out_len > 0) EB_TRY(eb_platform_random(out, out_len));
done:
  return status;
}
