// Causal depthwise convolution, then SiLU if wanted, and the gradients.
//
// state and last (B, K - 1, C) are the inputs before the first and up to the last position; null is all zeros. starts
// (B, S) is not 0 at the first token of each document, or null: no tap reaches over one, and inputs before the last one
// are zero in `last`.
//
//     y[t] = b + sum_j w[j] x[t - (K - 1) + j]
#pragma once

#include <cstdint>

#include "simd.h"

namespace mlxhog {

struct Conv {
  Index B, S, C, K;
  bool silu;
  const float *x, *w, *b, *state;
  const std::uint8_t* starts;
};

void causal_conv_forward(const Conv&, float* y, float* last, int threads);

}  // namespace mlxhog
