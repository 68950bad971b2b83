#include "conv.h"

#include <algorithm>
#include <string>
#include <vector>

#include "pool.h"
#include "shapes.h"

namespace mlxhog {
namespace {

constexpr Index kPositions = 128;  // per task
constexpr Index kTaps = 4;         // computed in one pass over a row; taps are padded with zeros to a multiple

using Rows = const float* const*;

// out = base + sum_j taps[j, :] * rows[j], with j below a multiple of kTaps.
MLXHOG_CLONES void weighted_rows(Index K, Index C, const float* taps, Rows rows, const float* base, float* out) {
  for (Index j = 0; j < K; j += kTaps, taps += kTaps * C, rows += kTaps, base = out) {
    const float *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3];
#pragma omp simd
    for (Index c = 0; c < C; ++c)
      out[c] = base[c] + taps[c] * r0[c] + taps[C + c] * r1[c] + taps[2 * C + c] * r2[c] + taps[3 * C + c] * r3[c];
  }
}

// d_taps[j, :] += d_out * rows[j]
MLXHOG_CLONES void add_products(Index K, Index C, const float* d_out, Rows rows, float* d_taps) {
  for (Index j = 0; j < K; j += kTaps, d_taps += kTaps * C, rows += kTaps) {
    const float *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3];
#pragma omp simd
    for (Index c = 0; c < C; ++c) {
      const float d = d_out[c];
      d_taps[c] += d * r0[c];
      d_taps[C + c] += d * r1[c];
      d_taps[2 * C + c] += d * r2[c];
      d_taps[3 * C + c] += d * r3[c];
    }
  }
}

MLXHOG_CLONES void apply_silu(Index C, float* y) {
#pragma omp simd
  for (Index c = 0; c < C; ++c) y[c] *= sigmoid_f32(y[c]);
}

// d_pre holds the value before SiLU on entry, its gradient on return.
MLXHOG_CLONES void silu_gradient(Index C, const float* dy, float* d_pre) {
#pragma omp simd
  for (Index c = 0; c < C; ++c) {
    const float s = sigmoid_f32(d_pre[c]);
    d_pre[c] = dy[c] * s * (1.0f + d_pre[c] * (1.0f - s));
  }
}

// Common to all tasks: padded taps, and how far back each position may look.
class Reach {
 public:
  explicit Reach(const Conv& conv) : conv_(conv), K_((conv.K + kTaps - 1) / kTaps * kTaps), zeros_(conv.C) {
    const Index B = conv.B, S = conv.S, C = conv.C, K = conv.K;
    taps_.resize(K_ * C);
    ahead_.resize(K_ * C);
    for (Index j = 0; j < K; ++j)
      for (Index c = 0; c < C; ++c) taps_[j * C + c] = ahead_[(K - 1 - j) * C + c] = conv.w[c * K + j];
    back_.assign(B * S, K - 1);
    if (!conv.starts) return;
    for (Index b = 0; b < B; ++b)
      for (Index t = 0, back = K - 1; t < S; ++t) {
        back = conv.starts[b * S + t] ? 0 : std::min(back + 1, K - 1);
        back_[b * S + t] = back;
      }
  }

  Index padded() const { return K_; }
  const float* zeros() const { return zeros_.data(); }
  const float* taps() const { return taps_.data(); }    // (padded, C); the first meets the oldest input
  const float* ahead() const { return ahead_.data(); }  // in the other order
  Index back(Index b, Index t) const { return back_[b * conv_.S + t]; }

  // The input at position p of sequence b, p from -(K - 1) on.
  const float* input(Index b, Index p) const {
    if (p >= 0) return conv_.x + (b * conv_.S + p) * conv_.C;
    return conv_.state ? conv_.state + (b * (conv_.K - 1) + p + conv_.K - 1) * conv_.C : zeros();
  }

  // The inputs of the taps at position t: rows[0 .. padded), zeros where they may not look.
  void inputs(Index b, Index t, const float** rows) const {
    for (Index j = 0; j < K_; ++j) {
      const Index distance = conv_.K - 1 - j;
      rows[j] = j < conv_.K && distance <= back(b, t) ? input(b, t - distance) : zeros();
    }
  }

  // Whether the state after the last position keeps the input at position p.
  bool kept(Index b, Index p) const { return conv_.S - 1 - p <= back(b, conv_.S - 1); }

 private:
  const Conv& conv_;
  Index K_;
  std::vector<float> taps_, ahead_, zeros_;
  std::vector<Index> back_;
};

Index tasks_of(Index S) { return (S + kPositions - 1) / kPositions; }

struct ConvGradients {
  float *x, *w, *b, *state;  // state may be null
};

// Positions [first, end) of sequence b: the gradient of their inputs, and their part of those of taps and bias.
void gradients_of_positions(const Conv& conv, const Reach& reach, Index b, Index first, const float* dy,
                            const float* d_last, const ConvGradients& grad, float* part) {
  const Index S = conv.S, C = conv.C, K = conv.K, K_padded = reach.padded();
  const Index end = std::min(first + kPositions, S), seen = std::min(end + K - 1, S);
  std::vector<float> d_pre((seen - first) * C);  // also of those later positions that look at the piece
  std::vector<const float*> rows(K_padded);
  for (Index t = first; t < seen; ++t) {
    float* d_row = &d_pre[(t - first) * C];
    const float* dy_row = dy + (b * S + t) * C;
    reach.inputs(b, t, rows.data());
    if (conv.silu) {
      weighted_rows(K_padded, C, reach.taps(), rows.data(), conv.b, d_row);
      silu_gradient(C, dy_row, d_row);
    } else {
      std::copy(dy_row, dy_row + C, d_row);
    }
    if (t >= end) continue;
    add_products(K_padded, C, d_row, rows.data(), part);
    add_to(C, d_row, part + K_padded * C);
  }
  const bool of_state = first == 0 && grad.state;
  for (Index p = of_state ? 1 - K : first; p < end; ++p) {
    for (Index distance = 0; distance < K_padded; ++distance) {
      const Index t = p + distance;
      const bool met = distance < K && t >= first && t < S && distance <= reach.back(b, t);
      rows[distance] = met ? &d_pre[(t - first) * C] : reach.zeros();
    }
    float* dx = p >= 0 ? grad.x + (b * S + p) * C : grad.state + (b * (K - 1) + p + K - 1) * C;
    weighted_rows(K_padded, C, reach.ahead(), rows.data(), reach.zeros(), dx);
    const Index entry = p - S + K - 1;  // of the state after the last position
    if (d_last && entry >= 0 && reach.kept(b, p)) add_to(C, d_last + (b * (K - 1) + entry) * C, dx);
  }
}

void causal_conv_backward(const Conv& conv, const float* dy, const float* d_last, const ConvGradients& grad,
                          int threads) {
  const Index C = conv.C, K = conv.K, tasks = tasks_of(conv.S);
  const Reach reach(conv);
  const Index taps = reach.padded() * C;
  const auto sum = summed_over_tasks(conv.B * tasks, taps + C, threads, [&](Index task, float* part) {
    gradients_of_positions(conv, reach, task / tasks, task % tasks * kPositions, dy, d_last, grad, part);
  });
  for (Index j = 0; j < K; ++j)
    for (Index c = 0; c < C; ++c) grad.w[c * K + j] = sum[j * C + c];
  std::copy(sum.begin() + taps, sum.end(), grad.b);
}

Conv conv_arguments(const Sizes& sizes, bool silu, Floats x, Floats w, Floats b, MaybeFloats state,
                    Maybe<const std::uint8_t> starts) {
  sizes.expect_positive({"S", "K"});
  return {sizes["B"], sizes["S"], sizes["C"], sizes["K"], silu, x, w, b, state, starts};
}

}  // namespace

void causal_conv_forward(const Conv& conv, float* y, float* last, int threads) {
  const Index S = conv.S, C = conv.C, K = conv.K, tasks = tasks_of(S);
  const Reach reach(conv);
  parallel_for(conv.B * tasks, threads, [&](Index task) {
    const Index b = task / tasks, first = task % tasks * kPositions;
    std::vector<const float*> rows(reach.padded());
    for (Index t = first; t < std::min(first + kPositions, S); ++t) {
      float* y_row = y + (b * S + t) * C;
      reach.inputs(b, t, rows.data());
      weighted_rows(reach.padded(), C, reach.taps(), rows.data(), conv.b, y_row);
      if (conv.silu) apply_silu(C, y_row);
    }
    if (first + kPositions < S) return;
    for (Index entry = 0; entry < K - 1; ++entry) {
      const Index p = S - (K - 1) + entry;
      const float* row = reach.kept(b, p) ? reach.input(b, p) : reach.zeros();
      std::copy(row, row + C, last + (b * (K - 1) + entry) * C);
    }
  });
}

void bind_conv(nb::module_& m) {
  const std::string conv = "x: B S C, w: C 1 K, b: C, state: B K-1 C, starts: B S";
  def(m, "causal_conv", conv + ", y: B S C, last: B K-1 C",
      "y[t] = b + sum_j w[j] x[t - (K - 1) + j], then SiLU if wanted. state and last are the inputs before the first "
      "and up to the last position; starts uint8, the first token of each document.",
      [](Sizes& sizes, Floats x, Floats w, Floats b, MaybeFloats state, Maybe<const std::uint8_t> starts, Result y,
         Result last, bool silu, int threads) {
        causal_conv_forward(conv_arguments(sizes, silu, x, w, b, state, starts), y, last, threads);
      }, "silu"_a);
  def(m, "causal_conv_grad",
      conv + ", dy: B S C, d_last: B K-1 C, dx: B S C, dw: C 1 K, db: C, d_state: B K-1 C", "",
      [](Sizes& sizes, Floats x, Floats w, Floats b, MaybeFloats state, Maybe<const std::uint8_t> starts, Floats dy,
         MaybeFloats d_last, Result dx, Result dw, Result db, MaybeResult d_state, bool silu, int threads) {
        causal_conv_backward(conv_arguments(sizes, silu, x, w, b, state, starts), dy, d_last,
                             {dx, dw, db, d_state}, threads);
      }, "silu"_a);
}

}  // namespace mlxhog
