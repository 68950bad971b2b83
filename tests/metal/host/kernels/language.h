// Types and functions of the language, each on its own.
#ifndef MLXHOG_TEST_LANGUAGE_H
#define MLXHOG_TEST_LANGUAGE_H

#include <metal_stdlib>
using namespace metal;

namespace mlxhog {

// y = x * x + x in T, rounded after each operation; and the bits of T(x).
template <typename T>
inline void arithmetic(const device float* x, device float* y, device uint* bits, uint i) {
  T t = T(x[i]);
  T square = T(t * t);
  y[i] = float(T(square + t));
  bits[i] = as_type<ushort>(t);
}

// 20 functions of x and its neighbour.
inline void functions(const device float* x, device float* y, uint i, uint n) {
  float a = x[i];
  float b = x[(i + 1) % n];
  device float* out = y + 20 * i;
  out[0] = exp(a);
  out[1] = metal::log(a);
  out[2] = metal::precise::tanh(a);
  out[3] = rsqrt(a);
  out[4] = metal::fast::sqrt(a);
  out[5] = fma(a, b, 1.0f);
  out[6] = min(a, b);
  out[7] = max(a, b);
  out[8] = clamp(a, 0.5f, 1.5f);
  out[9] = select(a, b, a < b);
  out[10] = floor(a);
  out[11] = rint(a);
  out[12] = fabs(a);
  out[13] = sign(a);
  out[14] = pow(a, b);
  out[15] = float(isnan(a)) + 2.0f * float(isinf(a)) + 4.0f * float(isfinite(a));
  out[16] = float(min(uint(3), uint(5)) + max(int(-3), int(-5)));
  out[17] = as_type<float>(as_type<uint>(a) ^ 0x80000000u);
  float2 pair = 2.0f * float2(a, b) - float2(b);
  out[18] = pair.x + pair.y;
  out[19] = float(popcount(as_type<uint>(a)));
}

}  // namespace mlxhog

#endif
