// Rotary position embedding: elements i and DH / 2 + i of every head are turned by position * base^(-2 i / DH).
// Source: Su et al. 2021, RoFormer, arXiv:2104.09864.
#pragma once

#include <cstdint>

#include "simd.h"

namespace mlxhog {

// x, out (B, S, NH, DH), DH even; offset (B,), the position of each sequence's first element, or null: all 0.
struct RopeShape {
  Index B, S, NH, DH;
  double base;
  const std::int32_t* offset;
};

// `back` turns the other way, which is the gradient.
void rope(const RopeShape&, const float* x, bool back, float* out, int threads);

}  // namespace mlxhog
