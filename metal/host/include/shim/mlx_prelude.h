// The text that MLX puts before every custom kernel, as far as kernels see it.
#pragma once

#include <metal_stdlib>

using namespace metal;
typedef half float16_t;
typedef bfloat bfloat16_t;
