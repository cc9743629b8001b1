/* Of tlibc's <string.h>; it has no strcpy and no strcat. */
#pragma once
#include <stddef.h>
void *memcpy(void *restrict to, const void *restrict from, size_t len);
void *memmove(void *to, const void *from, size_t len);
void *memset(void *to, int value, size_t len);
int memcmp(const void *a, const void *b, size_t len);
size_t strlen(const char *text);
int strcmp(const char *a, const char *b);
char *strncpy(char *restrict to, const char *restrict from, size_t len);
