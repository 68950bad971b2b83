// Matrices of 8 x 8 that a simdgroup holds together, two elements in each thread. Metal does not say which thread has
// which, so kernels only load, store and multiply them: here lane l has row l / 4, columns 2 (l % 4) and the next. All
// 32 threads take part; what fewer would do is undefined, and gives NaN.
#pragma once

#include "shim/counts.h"
#include "shim/runtime.h"
#include "shim/types.h"

namespace metal {

template <typename T, int Columns, int Rows>
struct simdgroup_matrix {
  static_assert(std::is_same_v<T, float> && Columns == 8 && Rows == 8, "matrices of 8 x 8 floats only");
  T own[2];

  T* thread_elements() { return own; }
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;

template <typename T, int Columns, int Rows>
simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  return {{value, value}};
}

#define MLXHOG_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// Where an element of this thread lies: `e` is 0 or 1.
inline ulong simdgroup_element(uint lane, uint e, ulong elements_per_row, ulong2 origin, bool transposed) {
  const ulong row = lane / 4, column = lane % 4 * 2 + e;
  return (origin.y + (transposed ? column : row)) * elements_per_row + origin.x + (transposed ? row : column);
}

inline void simdgroup_load(simdgroup_float8x8& x, const float* from, ulong elements_per_row = 8, ulong2 origin = 0,
                           bool transposed = false, MLXHOG_HERE) {
  const uint lane = metal_emulator::published(0, {"simdgroup_load", file, line}).self;
  for (uint e = 0; e < 2; ++e) x.own[e] = from[simdgroup_element(lane, e, elements_per_row, origin, transposed)];
}

inline void simdgroup_store(const simdgroup_float8x8& x, float* to, ulong elements_per_row = 8, ulong2 origin = 0,
                            bool transposed = false, MLXHOG_HERE) {
  const uint lane = metal_emulator::published(0, {"simdgroup_store", file, line}).self;
  for (uint e = 0; e < 2; ++e) to[simdgroup_element(lane, e, elements_per_row, origin, transposed)] = x.own[e];
}

// d = a b + c
inline void simdgroup_multiply_accumulate(simdgroup_float8x8& d, const simdgroup_float8x8& a,
                                          const simdgroup_float8x8& b, const simdgroup_float8x8& c, MLXHOG_HERE) {
  struct Both {
    float a[2], b[2];
  };
  metal_emulator::count(metal_emulator::kMultiplyAdd, 16);
  const Both own{{a.own[0], a.own[1]}, {b.own[0], b.own[1]}};
  const auto lanes = metal_emulator::published(own, {"simdgroup_multiply_accumulate", file, line});
  const uint row = lanes.self / 4, column = lanes.self % 4 * 2;
  float sum[2] = {c.own[0], c.own[1]};
  for (uint k = 0; k < 8; ++k) {
    const float left = lanes.at(4 * row + k / 2).a[k % 2];
    const Both right = lanes.at(4 * k + column / 2);
    for (uint e = 0; e < 2; ++e) sum[e] += left * right.b[e];
  }
  d.own[0] = sum[0];
  d.own[1] = sum[1];
}

#undef MLXHOG_HERE

}  // namespace metal
