/* The one way a function of the bridge fails: set the status, go to the clean-up. */
#ifndef EB_GUARD_H
#define EB_GUARD_H

#include "enclave_bridge.h"

/* Needs a local `eb_status status` and a label `done`. */
#define EB_ENSURE(condition, error) \
  do {                              \
    if (!(condition)) {             \
      status = (error);             \
      goto done;                    \
    }                               \
  } while (0)

#define EB_TRY(call)               \
  do {                             \
    status = (call);               \
    if (status != EB_OK) goto done; \
  } while (0)

#endif
