#include "lane_rows.h"

#include <algorithm>
#include <bit>

namespace mlxhog {
namespace {

// A width of 2^n is transposed in n passes, each of which moves the lowest bit of every element's place to the top, or
// back: loads and stores stay whole vectors.
MLXHOG_CLONES void lowest_bit_to_top(Index half, const float* from, float* to) {
#pragma omp simd
  for (Index j = 0; j < half; ++j) {
    to[j] = from[2 * j];
    to[half + j] = from[2 * j + 1];
  }
}

MLXHOG_CLONES void top_bit_to_lowest(Index half, const float* from, float* to) {
#pragma omp simd
  for (Index j = 0; j < half; ++j) {
    to[2 * j] = from[j];
    to[2 * j + 1] = from[half + j];
  }
}

template <class Pass>
void in_passes(Index width, const float* from, float* to, float* spare, const Pass& pass) {
  const int passes = std::countr_zero(static_cast<std::size_t>(width));
  if (passes == 0) std::copy_n(from, kRowLanes, to);
  for (int left = passes; left > 0; --left) {
    float* next = left % 2 ? to : spare;
    pass(width * kRowLanes / 2, from, next);
    from = next;
  }
}

bool in_power(Index width) { return std::has_single_bit(static_cast<std::size_t>(width)); }

}  // namespace

void to_lanes(Index width, const float* rows, float* lanes, float* spare) {
  if (in_power(width)) return in_passes(width, rows, lanes, spare, lowest_bit_to_top);
  for (Index l = 0; l < kRowLanes; ++l)
    for (Index d = 0; d < width; ++d) lanes[d * kRowLanes + l] = rows[l * width + d];
}

void from_lanes(Index width, const float* lanes, float* rows, float* spare) {
  if (in_power(width)) return in_passes(width, lanes, rows, spare, top_bit_to_lowest);
  for (Index l = 0; l < kRowLanes; ++l)
    for (Index d = 0; d < width; ++d) rows[l * width + d] = lanes[d * kRowLanes + l];
}

}  // namespace mlxhog
