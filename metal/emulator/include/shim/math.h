// Metal's mathematical functions that our kernels use. Compiler builtins instead of <cmath>, whose functions of double
// in the global namespace a kernel could call by mistake.
#pragma once

#include "shim/counts.h"

namespace metal {

// Metal's `precise` variants differ in accuracy from the others; here both are the C library's.
#define MLXHOG_FUNCTION(NAME, PARAMETERS, VALUE)        \
  inline float NAME PARAMETERS { return VALUE; }        \
  namespace precise {                                   \
  inline float NAME PARAMETERS { return VALUE; }        \
  }
MLXHOG_FUNCTION(exp, (float x), (metal_emulator::count(metal_emulator::kExponential), __builtin_expf(x)))
MLXHOG_FUNCTION(log, (float x), __builtin_logf(x))
MLXHOG_FUNCTION(sqrt, (float x), __builtin_sqrtf(x))
MLXHOG_FUNCTION(rsqrt, (float x), 1.0f / __builtin_sqrtf(x))
MLXHOG_FUNCTION(tanh, (float x), __builtin_tanhf(x))
MLXHOG_FUNCTION(fabs, (float x), __builtin_fabsf(x))
MLXHOG_FUNCTION(copysign, (float x, float y), __builtin_copysignf(x, y))
// A NaN operand yields the other one, as in Metal.
MLXHOG_FUNCTION(min, (float a, float b), __builtin_fminf(a, b))
MLXHOG_FUNCTION(max, (float a, float b), __builtin_fmaxf(a, b))
#undef MLXHOG_FUNCTION

template <typename T>
  requires std::is_integral_v<T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
  requires std::is_integral_v<T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

inline bool isnan(float x) { return __builtin_isnan(x); }

}  // namespace metal
