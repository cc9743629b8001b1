/* What Intel's tlibc has of <stdlib.h>, as far as the trusted part and OpenSSL's headers use it. */
#pragma once
#include <stddef.h>
void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void free(void *memory);
