#include "linear_loss.h"

#include <algorithm>

#include "buffer.h"
#include "linear.h"

namespace mlxhog {
namespace {

constexpr Index kTile = 14;            // rows of gemm's register tile
constexpr Index kLeast = 18 * kTile;   // with fewer rows at once, each would load and store all of dW for little
constexpr Index kLogits = 1 << 20;     // floats of logits that a shared cache keeps

}  // namespace

LossSum linear_cross_entropy(Index rows, Index in, Index V, std::optional<float> cap, const float* x, const float* W,
                             const std::int32_t* labels, float* dx, float* dW, int threads) {
  const Index at_once = std::max(kLeast, kLogits / std::max<Index>(1, V) / kTile * kTile);
  const Buffer logits = uninitialised(std::min(rows, at_once) * V);
  LossSum total;
  for (Index first = 0; first == 0 || first < rows; first += at_once) {  // without rows the gradients are 0
    const Index count = std::min(at_once, rows - first);
    const float* own = x + first * in;
    linears_forward(count, in, own, {{V, W, nullptr, logits.get()}}, threads);
    const LossSum part = capped_cross_entropy(count, V, cap, logits.get(), labels + first,
                                              dx ? logits.get() : nullptr, threads);
    total.nats += part.nats;
    total.count += part.count;
    if (dx) linears_backward(count, in, own, {{V, W, logits.get(), dW, nullptr}}, dx + first * in, threads, first > 0);
  }
  return total;
}

}  // namespace mlxhog
