// Metal's mathematical functions on float and half. Compiler builtins instead of <cmath>, whose
// functions of double in the global namespace a kernel could call by mistake.
#pragma once

#include "shim/types.h"

namespace metal {

// `half` is computed as float and rounded once. Metal's `fast` and `precise` variants differ in
// accuracy; here all three are the C library's.
#define MLXHOG_UNARY(NAME, VALUE)                                  \
  inline float NAME(float x) { return VALUE; }                     \
  inline half NAME(half h) {                                       \
    float x = h;                                                   \
    return static_cast<half>(VALUE);                               \
  }                                                                \
  namespace precise {                                              \
  inline float NAME(float x) { return VALUE; }                     \
  }                                                                \
  namespace fast {                                                 \
  inline float NAME(float x) { return VALUE; }                     \
  }
MLXHOG_UNARY(exp, __builtin_expf(x))
MLXHOG_UNARY(exp2, __builtin_exp2f(x))
MLXHOG_UNARY(log, __builtin_logf(x))
MLXHOG_UNARY(log2, __builtin_log2f(x))
MLXHOG_UNARY(sqrt, __builtin_sqrtf(x))
MLXHOG_UNARY(rsqrt, 1.0f / __builtin_sqrtf(x))
MLXHOG_UNARY(sin, __builtin_sinf(x))
MLXHOG_UNARY(cos, __builtin_cosf(x))
MLXHOG_UNARY(tanh, __builtin_tanhf(x))
MLXHOG_UNARY(fabs, __builtin_fabsf(x))
MLXHOG_UNARY(floor, __builtin_floorf(x))
MLXHOG_UNARY(ceil, __builtin_ceilf(x))
MLXHOG_UNARY(trunc, __builtin_truncf(x))
MLXHOG_UNARY(rint, __builtin_rintf(x))
MLXHOG_UNARY(round, __builtin_roundf(x))
MLXHOG_UNARY(sign, x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : (x == x ? x : 0.0f)))
#undef MLXHOG_UNARY

inline float abs(float x) { return __builtin_fabsf(x); }
inline half abs(half x) { return static_cast<half>(__builtin_fabsf(x)); }
inline int abs(int x) { return x < 0 ? -x : x; }

#define MLXHOG_FLOATS(NAME, PARAMETERS, HALF_PARAMETERS, VALUE)                  \
  inline float NAME PARAMETERS { return VALUE; }                                 \
  inline half NAME HALF_PARAMETERS { return static_cast<half>(VALUE); }          \
  namespace precise {                                                            \
  inline float NAME PARAMETERS { return VALUE; }                                 \
  }                                                                              \
  namespace fast {                                                               \
  inline float NAME PARAMETERS { return VALUE; }                                 \
  }
// A NaN operand yields the other one, as in Metal.
MLXHOG_FLOATS(fmin, (float a, float b), (half a, half b), __builtin_fminf(a, b))
MLXHOG_FLOATS(fmax, (float a, float b), (half a, half b), __builtin_fmaxf(a, b))
MLXHOG_FLOATS(min, (float a, float b), (half a, half b), __builtin_fminf(a, b))
MLXHOG_FLOATS(max, (float a, float b), (half a, half b), __builtin_fmaxf(a, b))
MLXHOG_FLOATS(clamp, (float x, float low, float high), (half x, half low, half high),
              __builtin_fminf(__builtin_fmaxf(x, low), high))
MLXHOG_FLOATS(pow, (float x, float y), (half x, half y), __builtin_powf(x, y))
MLXHOG_FLOATS(copysign, (float x, float y), (half x, half y), __builtin_copysignf(x, y))
MLXHOG_FLOATS(fma, (float a, float b, float c), (half a, half b, half c), __builtin_fmaf(a, b, c))
#undef MLXHOG_FLOATS

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
template <typename T>
  requires std::is_integral_v<T>
constexpr T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}

// b where the condition holds, else a: Metal's order.
template <typename T>
constexpr T select(T a, T b, bool condition) {
  return condition ? b : a;
}

inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline uint popcount(uint x) { return static_cast<uint>(__builtin_popcount(x)); }

}  // namespace metal
