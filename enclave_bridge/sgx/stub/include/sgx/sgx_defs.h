/*
 * The headers of this folder stand in for those of Intel's SGX SDK (names, types and layouts from its
 * Developer Reference) where it is not installed. They declare what the bridge's trusted and untrusted
 * parts use and nothing else, so that what an enclave lacks does not compile.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
