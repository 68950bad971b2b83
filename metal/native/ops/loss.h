// Cross entropy of logits, soft-capped or not, with its gradient, in one pass over the logits.
#pragma once

#include <cstdint>
#include <optional>

#include "simd.h"

namespace mlxhog {

constexpr std::int32_t kIgnoredLabel = -100;

struct LossSum {
  double nats = 0;
  Index count = 0;
};

// logits (rows, V) raw; l = cap * tanh(logits / cap), or l = logits without a cap. Sums -log softmax(l)[label] over
// rows whose label is not kIgnoredLabel, and writes the sum's gradient with respect to the raw logits (zero rows where
// ignored) unless `gradient` is null. Labels must lie in [0, V) or be kIgnoredLabel.
// `gradient` may be `logits`.
LossSum capped_cross_entropy(Index rows, Index V, std::optional<float> cap, const float* logits,
                             const std::int32_t* labels, float* gradient, int threads);

// As `capped_cross_entropy` of the logits of x (rows, in) and W (V, in). Writes the sum's gradients with respect to x
// and W unless `dx` and `dW` are null. Logits are computed, and their gradient used, for a few rows at a time: for a
// large vocabulary they would not fit any cache, and passes through memory would cost as much as the products.
LossSum linear_cross_entropy(Index rows, Index in, Index V, std::optional<float> cap, const float* x, const float* W,
                             const std::int32_t* labels, float* dx, float* dW, int threads);

// x *= factor
void scale(Index count, float factor, float* x, int threads);

}  // namespace mlxhog
