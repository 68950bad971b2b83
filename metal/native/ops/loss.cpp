// Cross entropy of logits, soft-capped or not, with its gradient, in one pass over the logits.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "activation.h"
#include "linear.h"
#include "rows.h"
#include "shapes.h"

namespace mlxhog {
namespace {

constexpr std::int32_t kIgnoredLabel = -100;

struct LossSum {
  double nats = 0;
  Index count = 0;
};

constexpr Index kRows = 64;
constexpr Index kTile = 14;            // rows of gemm's highest tile
constexpr Index kMinRows = 18 * kTile;   // rows that amortize one load and store of all of dW
constexpr Index kLogits = 1 << 20;     // floats of logits that a shared cache keeps

struct Partition {
  float max, sum;
};

// The largest of `least` and x. In lanes, because no compiler may reorder maxima of possible NaNs by itself.
MLXHOG_INLINE float largest(const float* x, Index count, float least) {
  constexpr Index kLanes = 16;
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, least);
  Index j = 0;
  for (; j + kLanes <= count; j += kLanes) {
#pragma omp simd
    for (Index k = 0; k < kLanes; ++k) lanes[k] = x[j + k] > lanes[k] ? x[j + k] : lanes[k];
  }
  for (; j < count; ++j) lanes[0] = x[j] > lanes[0] ? x[j] : lanes[0];
  return *std::max_element(lanes, lanes + kLanes);
}

// Leaves exp(logits - max) in `weights`; returns max and the sum of weights.
MLXHOG_CLONES Partition partition(Index V, const float* logits, float* weights) {
  const float max = largest(logits, V, -std::numeric_limits<float>::infinity());
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < V; ++j) {
    weights[j] = exp_f32(logits[j] - max);
    sum += weights[j];
  }
  return {max, sum};
}

// gradient = weights / sum * (1 - (capped / cap)^2); the weights are those of softmax - target.
MLXHOG_CLONES void capped_softmax_gradient(Index V, float cap, float sum, const float* capped, float* weights) {
  const float inverse = 1.0f / cap, normalizer = 1.0f / sum;
#pragma omp simd
  for (Index j = 0; j < V; ++j) {
    const float ratio = capped[j] * inverse;
    weights[j] *= normalizer * (1.0f - ratio * ratio);
  }
}

MLXHOG_CLONES void subtract(Index V, const float* a, const float* b, float* out) {
#pragma omp simd
  for (Index j = 0; j < V; ++j) out[j] = a[j] - b[j];
}

LossSum capped_cross_entropy(Index rows, Index V, std::optional<float> cap, const float* logits,
                             const std::int32_t* labels, const float* log_inclusion, float* gradient, int threads) {
  const Index tasks = (rows + kRows - 1) / kRows;
  std::vector<LossSum> parts(tasks);
  parallel_for(tasks, threads, [&](Index task) {
    std::vector<float> capped(cap ? V : 0), scratch(gradient ? 0 : V);
    for (Index r = task * kRows; r < std::min(rows, (task + 1) * kRows); ++r) {
      float* row = gradient ? gradient + r * V : scratch.data();
      if (labels[r] == kIgnoredLabel) {
        if (gradient) std::fill(row, row + V, 0.0f);
        continue;
      }
      const float* given = logits + r * V;
      if (cap) soft_cap_forward(V, *cap, given, capped.data(), 1);
      const float* row_logits = cap ? capped.data() : given;
      if (log_inclusion) subtract(V, row_logits, log_inclusion, row);
      const float* scores = log_inclusion ? row : row_logits;
      const float of_label = scores[labels[r]];  // before `partition` writes there, where gradient is logits
      const auto [max, sum] = partition(V, scores, row);
      parts[task].nats += std::log(static_cast<double>(sum)) + (static_cast<double>(max) - of_label);
      ++parts[task].count;
      if (!gradient) continue;
      // Before rounding anything else: a sure label's gradient is 0 in any instruction set.
      row[labels[r]] -= sum;
      if (cap) capped_softmax_gradient(V, *cap, sum, row_logits, row);
      else scale(V, 1.0f / sum, row);
    }
  });
  LossSum total;
  for (const LossSum& part : parts) {
    total.nats += part.nats;
    total.count += part.count;
  }
  return total;
}

LossSum linear_cross_entropy(Index rows, Index in, Index V, std::optional<float> cap, const float* x, const Weight& W,
                             const std::int32_t* labels, const float* log_inclusion, float* dx, float* dW,
                             bool bfloat16, int threads) {
  const Index at_once = std::max(kMinRows, kLogits / std::max<Index>(1, V) / kTile * kTile);
  const Buffer logits = uninitialized(std::min(rows, at_once) * V);
  LossSum total;
  for (Index first = 0; first == 0 || first < rows; first += at_once) {  // without rows the gradients are 0
    const Index count = std::min(at_once, rows - first);
    const float* own = x + first * in;
    linears_forward(count, in, own, {{V, W, nullptr, logits.get(), nullptr, bfloat16}}, threads);
    const LossSum part = capped_cross_entropy(count, V, cap, logits.get(), labels + first, log_inclusion,
                                              dx ? logits.get() : nullptr, threads);
    total.nats += part.nats;
    total.count += part.count;
    if (!dx) continue;
    linears_backward(count, in, own, {{V, W, logits.get(), dW, nullptr, bfloat16}}, dx + first * in, threads, first > 0);
  }
  return total;
}

void check_labels(Index n, Index V, const std::int32_t* labels) {
  for (Index r = 0; r < n; ++r)
    require(labels[r] == kIgnoredLabel || (labels[r] >= 0 && labels[r] < V), "label ", labels[r], " at position ", r,
            " is neither -100 nor in [0, ", V, ")");
}

using Loss = std::pair<double, Index>;

}  // namespace

void bind_loss(nb::module_& m) {
  def(m, "cross_entropy", "logits: N... V, labels: N, log_inclusion: V, gradient: N... V",
      "Sum of nats of the soft-capped logits (a cap of None leaves them as they are) less log_inclusion, and the count "
      "of labels other than -100; the sum's gradient with respect to the raw logits.",
      [](Sizes& sizes, Floats logits, const std::int32_t* labels, MaybeFloats log_inclusion, MaybeResult gradient,
         std::optional<float> cap, int threads) -> Loss {
        check_labels(sizes["N"], sizes["V"], labels);
        const LossSum total = capped_cross_entropy(sizes["N"], sizes["V"], cap, logits, labels, log_inclusion, gradient,
                                                   threads);
        return {total.nats, total.count};
      }, "cap"_a.none());
  def(m, "linear_cross_entropy", "x: N... IN, weight: V IN, labels: N, log_inclusion: V, dx: N... IN, d_weight: V IN",
      "As cross_entropy of the logits x weight^T, without the logits as a whole: the sum's gradients with respect to x "
      "and weight.",
      [](Sizes& sizes, Floats x, Floats weight, const std::int32_t* labels, MaybeFloats log_inclusion, MaybeResult dx,
         MaybeResult d_weight, std::optional<float> cap, bool bfloat16, int threads) -> Loss {
        check_labels(sizes["N"], sizes["V"], labels);
        require(dx || !d_weight, "d_weight: give dx, too");
        const LossSum total = linear_cross_entropy(sizes["N"], sizes["IN"], sizes["V"], cap, x, weight, labels,
                                                   log_inclusion, dx, d_weight, bfloat16, threads);
        return {total.nats, total.count};
      }, "cap"_a.none(), "bfloat16"_a = false);
  def(m, "frozen_cross_entropy", "x: N... IN, " + kFrozen + "labels: N, log_inclusion: OUT_j, dx: N... IN",
      "As linear_cross_entropy, of one frozen weight.",
      [](Sizes& sizes, Floats x, FrozenFloats floats, FrozenHalves bf16, FrozenWords packed, FrozenFloats scales,
         FrozenFloats offsets, const std::int32_t* labels, MaybeFloats log_inclusion, MaybeResult dx,
         std::optional<float> cap, bool bfloat16, int threads) -> Loss {
        const Index V = sizes.at("OUT_j", 0);
        check_labels(sizes["N"], V, labels);
        const LossSum total = linear_cross_entropy(sizes["N"], sizes["IN"], V, cap, x,
                                                   frozen(sizes, 0, floats, bf16, packed, scales, offsets), labels,
                                                   log_inclusion, dx, nullptr, bfloat16, threads);
        return {total.nats, total.count};
      }, "cap"_a.none(), "bfloat16"_a = false);
  def(m, "scale", "x: N...", "x *= factor.",
      [](Sizes& sizes, Result x, float factor, int threads) {
        in_pieces(sizes["N"], 65536, threads, [=](Index at, Index n) { scale(n, factor, x + at); });
      }, "factor"_a);
}

}  // namespace mlxhog
