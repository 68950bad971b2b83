// A weight (out, in) of a linear map as it is stored. A frozen one may be bfloat16, or quantized as in MLX: numbers of
// `bits` in words of 32, the first in the lowest; each group of a row has a scale and an offset, w = scale * q + offset.
#pragma once

#include <cstdint>

#include "memory.h"
#include "simd.h"

namespace mlxhog {

struct Weight {
  const float* floats = nullptr;
  const std::uint16_t* bf16 = nullptr;
  const std::uint32_t* packed = nullptr;
  const float *scales = nullptr, *offsets = nullptr;
  Index bits = 0, group = 0;  // of a quantized weight

  Weight() = default;
  Weight(const float* weight) : floats(weight) {}

  // Rows [first, first + count) of `in` floats: where they lie, or converted into `scratch`, which then has at least
  // `room` floats.
  const float* rows(Index first, Index count, Index in, Buffer& scratch, Index room, int threads) const;
};

// Quantizes rows of floats to a few bits. The end of a group's range that is farther from 0 is exact, as in MLX.
void quantize(Index rows, Index in, Index group, int bits, const float* from, std::uint32_t* packed, float* scales,
              float* offsets, int threads);

}  // namespace mlxhog
