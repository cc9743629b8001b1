/* A test is a function; a failed check says where and ends the program. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "enclave_bridge.h"

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) {                                                               \
      fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, #condition); \
      exit(1);                                                                        \
    }                                                                                 \
  } while (0)

#define CHECK_STATUS(expected, call)                                                         \
  do {                                                                                       \
    const int got_ = (int)(call), expected_ = (int)(expected);                               \
    if (got_ != expected_) {                                                                 \
      fprintf(stderr, "%s:%d: %s: %s: expected %s, got %s\n", __FILE__, __LINE__, __func__, #call, \
              eb_status_name(expected_), eb_status_name(got_));                               \
      exit(1);                                                                               \
    }                                                                                        \
  } while (0)

#define CHECK_OK(call) CHECK_STATUS(EB_OK, call)

#define RUN(test)            \
  do {                       \
    test();                  \
    printf("ok %s\n", #test); \
  } while (0)

#endif
