#include "sealing.h"

#include <stdlib.h>

#include "guard.h"

eb_status eb_sealing_from(eb_bridge *bridge, eb_sealing_source source, void *context, eb_sealing **sealing) {
  eb_status status = EB_OK;
  eb_sealing *made = NULL;
  uint8_t *room = NULL;
  EB_ENSURE(bridge != NULL && sealing != NULL, EB_ERR_ARGUMENT);
  EB_ENSURE(eb_bridge_alive(bridge), EB_ERR_FORKED);
  made = calloc(1, sizeof *made);
  EB_ENSURE(made != NULL, EB_ERR_MEMORY);
  atomic_init(&made->references, 1);
  eb_bridge_hold(bridge);
  made->bridge = bridge;
  made->key = eb_arena_take(&bridge->arena, EB_POOL_GUARDS);
  room = eb_arena_take(&bridge->arena, EB_POOL_GUARDS);
  EB_ENSURE(made->key != NULL && room != NULL, EB_ERR_LIMIT);
  EB_TRY(source(context, made->key, room));
  *sealing = made;
  made = NULL;
done:
  if (bridge != NULL) eb_arena_give(&bridge->arena, EB_POOL_GUARDS, room);
  eb_sealing_free(made);
  return status;
}

void eb_sealing_hold(eb_sealing *sealing) { atomic_fetch_add(&sealing->references, 1); }

void eb_sealing_free(eb_sealing *sealing) {
  if (sealing == NULL || atomic_fetch_sub(&sealing->references, 1) != 1) return;
  if (eb_bridge_alive(sealing->bridge)) eb_arena_give(&sealing->bridge->arena, EB_POOL_GUARDS, sealing->key);
  eb_bridge_free(sealing->bridge);
  free(sealing);
}
