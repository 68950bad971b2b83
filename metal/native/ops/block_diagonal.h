// Several block-diagonal maps of one input: slice g of y_j is slice g of x times W_j[g]^T, plus b_j.
#pragma once

#include <vector>

#include "simd.h"

namespace mlxhog {

// One map: weight (groups, out, in), sizes of a block; bias (groups * out) or null; y (rows, groups * out).
struct DiagonalForward {
  Index groups, out, in;
  const float *weight, *bias;
  float* y;
};

// Its gradients: dy in; d_weight, and d_bias unless null, written.
struct DiagonalBackward {
  Index groups, out, in;
  const float *weight, *dy;
  float *d_weight, *d_bias;
};

// groups * in is `width` in every map.
void block_diagonal_forward(Index rows, Index width, const float* x, const std::vector<DiagonalForward>& maps,
                            int threads);

// dx (rows, width), if it is not null, sums over the maps.
void block_diagonal_backward(Index rows, Index width, const float* x, const std::vector<DiagonalBackward>& maps,
                             float* dx, int threads);

}  // namespace mlxhog
