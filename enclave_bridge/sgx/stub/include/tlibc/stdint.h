/* The compiler's own, which needs no C library. */
#pragma once
#include <stdint-gcc.h>
