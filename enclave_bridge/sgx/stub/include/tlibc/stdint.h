/* The compiler's own, which needs no C library. */
#pragma once
#ifdef __clang__
#include_next <stdint.h>
#else
#include <stdint-gcc.h>
#endif
