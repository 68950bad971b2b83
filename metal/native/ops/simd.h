// Elementary functions in plain C for the model operators. Each is branch-free (selects only), so a loop around it
// vectorizes under `MLXHOG_CLONES`, which compiles a function for AVX-512, AVX2 and the base instruction set and picks
// one at load time. NaN in gives NaN out: the worker's test for non-finite gradients relies on it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && defined(__linux__) && defined(__clang__)
#define MLXHOG_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#elif defined(__x86_64__) && defined(__linux__)  // levels bring fused multiply-add along
#define MLXHOG_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MLXHOG_CLONES  // ARM64 always has NEON with fused multiply-add
#endif
#define MLXHOG_ALWAYS __attribute__((always_inline))  // of a lambda, which `inline` cannot stand before
#define MLXHOG_INLINE MLXHOG_ALWAYS inline

namespace mlxhog {

using Index = std::ptrdiff_t;

// Sixteen floats as one value, for kernels that keep rows of a state in registers: one AVX-512 register, two of AVX,
// four of NEON. Only for functions that are inlined into one with MLXHOG_CLONES.
inline constexpr Index kLaneCount = 16;
using Lanes = float __attribute__((vector_size(sizeof(float) * kLaneCount)));

// Sixteen floats in memory, at any address: `lanes(p)` is a value to read or assign.
using UnalignedLanes = float __attribute__((vector_size(sizeof(Lanes)), aligned(sizeof(float)), may_alias));
MLXHOG_INLINE const UnalignedLanes& lanes(const float* at) { return *reinterpret_cast<const UnalignedLanes*>(at); }
MLXHOG_INLINE UnalignedLanes& lanes(float* at) { return *reinterpret_cast<UnalignedLanes*>(at); }

inline Index whole_lanes(Index count) { return (count + kLaneCount - 1) / kLaneCount * kLaneCount; }

template <class Vector>
MLXHOG_INLINE void load(const float* from, Vector& to) {
  __builtin_memcpy(&to, from, sizeof(Vector));
}
template <class Vector>
MLXHOG_INLINE void store(const Vector& from, float* to) {
  __builtin_memcpy(to, &from, sizeof(Vector));
}

// The first `count` numbers, if the vector has more; the others are zero.
template <class Vector>
MLXHOG_INLINE void load(const float* from, Vector& to, Index count) {
  if (count * sizeof(float) >= sizeof(Vector)) return load(from, to);
  to = Vector{};
  __builtin_memcpy(&to, from, static_cast<std::size_t>(count) * sizeof(float));
}
template <class Vector>
MLXHOG_INLINE void store(const Vector& from, float* to, Index count) {
  if (count * sizeof(float) >= sizeof(Vector)) return store(from, to);
  __builtin_memcpy(to, &from, static_cast<std::size_t>(count) * sizeof(float));
}

// e^x, 1.1 ulp over the normal range, gradual underflow, inf above 88.73 (Cody-Waite, degree 6).
MLXHOG_INLINE float exp_f32(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float k = shifted - kRound;
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^k in two factors: k reaches 128 and -150, neither of which is a normal exponent.
  const std::int32_t n = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRound);
  const std::int32_t half = n >> 1;
  const float first = std::bit_cast<float>((half + 127) << 23);
  const float second = std::bit_cast<float>((n - half + 127) << 23);
  return p * first * second;
}

// log(x) for finite positive normal x (Cephes logf); NaN for NaN.
MLXHOG_INLINE float log_f32(float x) {
  const std::int32_t bits = std::bit_cast<std::int32_t>(x);
  // Exponent chosen so that the mantissa lies in [sqrt(1/2), sqrt(2)).
  const std::int32_t e = (bits - 0x3f3504f3) >> 23;
  const float f = std::bit_cast<float>(bits - (e << 23)) - 1.0f;
  const float k = static_cast<float>(e);
  const float z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float tail = f * z * p - k * 2.12194440e-4f - 0.5f * z;
  return x == x ? f + tail + k * 0.693359375f : x;
}

// 1 / (1 + e^-x), exact limits 0 and 1.
MLXHOG_INLINE float sigmoid_f32(float x) { return 1.0f / (1.0f + exp_f32(-x)); }

// log(sigmoid(x)) without overflow or cancellation: min(x, 0) - log1p(e^-|x|).
MLXHOG_INLINE float log_sigmoid_f32(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  const float z = exp_f32(-magnitude);
  const float u = 1.0f + z;
  const float log1p = log_f32(u) + (z - (u - 1.0f)) / u;
  return (x < 0.0f ? x : 0.0f) - log1p;
}

// tanh(x): odd polynomial below 0.625, where 1 - 2/(e^2x + 1) would cancel (Cephes tanhf).
MLXHOG_INLINE float tanh_f32(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = p * z * x + x;
  const float large = 1.0f - 2.0f / (exp_f32(2.0f * magnitude) + 1.0f);
  const float signed_large = x < 0.0f ? -large : large;
  return magnitude < 0.625f ? small : signed_large;
}

}  // namespace mlxhog
