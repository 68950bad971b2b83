#include "rope.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"

namespace mlxhog {
namespace {

constexpr Index kPositions = 32;  // per task

// Cosines, then sines, of one position's angles, `half` of each. In double: an angle may be thousands of turns.
void turns(const RopeShape& s, double position, bool back, float* table) {
  const Index half = s.DH / 2;
  for (Index i = 0; i < half; ++i) {
    const double angle = position * std::pow(s.base, -static_cast<double>(i) / static_cast<double>(half));
    table[i] = static_cast<float>(std::cos(angle));
    table[half + i] = static_cast<float>(back ? -std::sin(angle) : std::sin(angle));
  }
}

template <int Half>
MLXHOG_INLINE void turn_heads(Index NH, Index given, const float* table, const float* x, float* out) {
  const Index half = Half ? Half : given;  // a constant for the usual heads
  for (Index head = 0; head < NH; ++head, x += 2 * half, out += 2 * half) {
#pragma omp simd
    for (Index i = 0; i < half; ++i) {
      const float left = x[i], right = x[half + i];
      out[i] = left * table[i] - right * table[half + i];
      out[half + i] = left * table[half + i] + right * table[i];
    }
  }
}

MLXHOG_CLONES void turn_row(Index NH, Index half, const float* table, const float* x, float* out) {
  switch (half) {
    case 4: return turn_heads<4>(NH, half, table, x, out);
    case 8: return turn_heads<8>(NH, half, table, x, out);
    case 16: return turn_heads<16>(NH, half, table, x, out);
    case 32: return turn_heads<32>(NH, half, table, x, out);
    default: return turn_heads<0>(NH, half, table, x, out);
  }
}

}  // namespace

void rope(const RopeShape& s, const float* x, bool back, float* out, int threads) {
  const Index row = s.NH * s.DH, tasks = (s.S + kPositions - 1) / kPositions;
  std::vector<float> shared(s.offset ? 0 : s.S * s.DH);
  if (!s.offset)
    for (Index t = 0; t < s.S; ++t) turns(s, static_cast<double>(t), back, &shared[t * s.DH]);
  parallel_for(s.B * tasks, threads, [&](Index task) {
    const Index b = task / tasks, first = task % tasks * kPositions;
    std::vector<float> own(s.offset ? s.DH : 0);
    for (Index t = first; t < std::min(first + kPositions, s.S); ++t) {
      const float* table = own.data();
      if (s.offset) turns(s, static_cast<double>(s.offset[b]) + static_cast<double>(t), back, own.data());
      else table = &shared[t * s.DH];
      turn_row(s.NH, s.DH / 2, table, x + (b * s.S + t) * row, out + (b * s.S + t) * row);
    }
  });
}

}  // namespace mlxhog
