/* As tlibc has it: the integers, and formats that nothing here uses. */
#pragma once
#include <stdint.h>
