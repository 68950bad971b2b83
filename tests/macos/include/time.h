// Stand-in for what macOS's <time.h> has beyond the others'.
#pragma once

#include_next <time.h>
#include <stdint.h>

#define CLOCK_UPTIME_RAW 8

extern "C" uint64_t clock_gettime_nsec_np(int clock);
