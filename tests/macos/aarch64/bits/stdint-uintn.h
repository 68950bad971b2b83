// uint64_t is `unsigned long long` on macOS and `unsigned long`, as size_t, on Linux.
#pragma once
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
