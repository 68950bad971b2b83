// Cross entropy of logits x W^T that never exist as a whole.
#pragma once

#include "loss.h"

namespace mlxhog {

// As `capped_cross_entropy` of the logits of x (rows, in) and W (V, in). Writes the sum's gradients with respect to x
// and W unless `dx` and `dW` are null. Logits are computed, and their gradient used, for a few rows at a time: for a
// large vocabulary they would not fit any cache, and passes through memory would cost as much as the products.
LossSum linear_cross_entropy(Index rows, Index in, Index V, std::optional<float> cap, const float* x, const float* W,
                             const std::int32_t* labels, float* dx, float* dW, int threads);

}  // namespace mlxhog
