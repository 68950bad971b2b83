// Skinny GEMM, linear layers of a few rows: the products of decoding, which read every weight once per token.
#pragma once

#include <vector>

#include "simd.h"

namespace mlxhog {

// y[r] (+)= W x[r] + b of every row: W (out, in), b (out) or null, y rows `out` long.
struct SkinnyLinear {
  Index out;
  const float *weight, *bias;
  float* y;
  bool add = false;
};

// The maps of x (rows, in). Each result is one dot product, summed in the same order whatever the number of
// rows, maps or threads: a sequence decodes to the same bits alone and in a batch. Threads are used only where
// a product is large enough to gain.
void skinny_linears(Index rows, Index in, const float* x, const std::vector<SkinnyLinear>& maps, int threads);

}  // namespace mlxhog
