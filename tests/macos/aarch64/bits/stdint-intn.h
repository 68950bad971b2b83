// int64_t is `long long` on macOS and `long` on Linux: code that mixes it with `long` compiles on one only.
#pragma once
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
