// Causal convolution of every channel with a filter as long as the sequence, directly:
// y[b, t, c] = sum over j <= t of f[c, j] x[b, t - j, c].
//
// S^2 / 2 products a channel, sixteen channels at once: faster than transforms up to about 1,000 positions, and each
// entry's error is relative to its own terms.
#include <algorithm>

#include "gemm.h"
#include "memory.h"
#include "pool.h"
#include "shapes.h"

namespace mlxhog {
namespace {

// Positions up to which transforms are slower.
inline constexpr Index kLongConvDirect = 1024;

struct LongConv {
  Index B, S, C, J;
};

constexpr Index kTile = 4;  // outputs, and inputs, of a tile: 16 products for 11 loads

// Sixteen channels of a sequence: rows of lanes, zeros around it so that tiles need not ask where it begins or ends.
class Sequence {
 public:
  explicit Sequence(Index S)
      : rows_((S + kTile - 1) / kTile * kTile), data_(uninitialized((rows_ + kTile) * kLaneCount)) {
    clear();
  }

  Index rows() const { return rows_; }
  float* row(Index t) const { return &data_[(t + kTile) * kLaneCount]; }  // t from -kTile on
  void clear() { std::fill_n(data_.get(), (rows_ + kTile) * kLaneCount, 0.0f); }

  // Channels [c, c + 16) of from (S, C), forwards or backwards in time.
  void load_positions(const LongConv& s, Index c, const float* from, bool backwards) {
    const Index width = std::min(kLaneCount, s.C - c);
    for (Index t = 0; t < s.S; ++t)
      std::copy_n(from + (backwards ? s.S - 1 - t : t) * s.C + c, width, row(t));
  }

  void store_positions(const LongConv& s, Index c, bool backwards, float* to) const {
    const Index width = std::min(kLaneCount, s.C - c);
    for (Index t = 0; t < s.S; ++t)
      std::copy_n(row(t), width, to + (backwards ? s.S - 1 - t : t) * s.C + c);
  }

  // The first S taps of filters [c, c + 16) of f (C, J).
  void load_taps(const LongConv& s, Index c, const float* f) {
    transpose(f + c * s.J, s.J, std::min(kLaneCount, s.C - c), s.S, row(0), kLaneCount);
  }

 private:
  Index rows_;
  Buffer data_;
};

// y[t] (+)= sum over s <= t of f[t - s] x[s]
MLXHOG_CLONES void convolve(const Sequence& f, const Sequence& x, const Sequence& y, bool accumulate) {
  for (Index t = 0; t < y.rows(); t += kTile) {
    Lanes sums[kTile] = {};
    if (accumulate)
      for (Index i = 0; i < kTile; ++i) sums[i] = lanes(y.row(t + i));
    for (Index s = 0; s <= t; s += kTile) {
      Lanes taps[2 * kTile - 1], inputs[kTile];
      for (Index i = 0; i < 2 * kTile - 1; ++i) taps[i] = lanes(f.row(t - s + i - (kTile - 1)));
      for (Index k = 0; k < kTile; ++k) inputs[k] = lanes(x.row(s + k));
      for (Index k = 0; k < kTile; ++k)
        for (Index i = 0; i < kTile; ++i) sums[i] += taps[i - k + kTile - 1] * inputs[k];
    }
    for (Index i = 0; i < kTile; ++i) lanes(y.row(t + i)) = sums[i];
  }
}

// All channels of x, forwards or backwards in time, into y: dx is the convolution of dy, both read backwards.
void convolve_all(const LongConv& s, const float* x, const float* f, bool backwards, float* y, int threads) {
  const Index blocks = (s.C + kLaneCount - 1) / kLaneCount;
  parallel_for(blocks, threads, [&](Index block) {
    const Index c = block * kLaneCount;
    Sequence taps(s.S), inputs(s.S), outputs(s.S);
    taps.load_taps(s, c, f);
    for (Index b = 0; b < s.B; ++b) {
      inputs.load_positions(s, c, x + b * s.S * s.C, backwards);
      convolve(taps, inputs, outputs, false);
      outputs.store_positions(s, c, backwards, y + b * s.S * s.C);
    }
  });
}

void long_conv_backward(const LongConv& s, const float* x, const float* f, const float* dy, float* dx, float* df,
                        int threads) {
  convolve_all(s, dy, f, true, dx, threads);
  std::fill_n(df, s.C * s.J, 0.0f);
  parallel_for((s.C + kLaneCount - 1) / kLaneCount, threads, [&](Index block) {
    const Index c = block * kLaneCount;
    Sequence inputs(s.S), gradients(s.S), sums(s.S);  // df[j] is x convolved with dy read backwards, at S - 1 - j
    for (Index b = 0; b < s.B; ++b) {
      inputs.load_positions(s, c, x + b * s.S * s.C, false);
      gradients.load_positions(s, c, dy + b * s.S * s.C, true);
      convolve(gradients, inputs, sums, true);
    }
    for (Index l = 0; l < std::min(kLaneCount, s.C - c); ++l)
      for (Index j = 0; j < s.S; ++j) df[(c + l) * s.J + j] = sums.row(s.S - 1 - j)[l];
  });
}

LongConv long_conv_shape(const Sizes& sizes) {
  const auto s = sizes.as<LongConv>("B", "S", "C", "J");
  require(s.J >= s.S, "f has ", s.J, " taps, expected one for each of x's ", s.S, " positions or more");
  return s;
}

}  // namespace

void bind_long_conv(nb::module_& m) {
  m.attr("LONG_CONV_DIRECT") = kLongConvDirect;
  def(m, "long_conv", "x: B S C, f: C J, y: B S C",
      "y[t] = sum over j <= t of f[j] x[t - j]. J >= S; S^2 operations, so for S up to LONG_CONV_DIRECT.",
      [](Sizes& sizes, Floats x, Floats f, Result y, int threads) {
        convolve_all(long_conv_shape(sizes), x, f, false, y, threads);
      });
  def(m, "long_conv_grad", "x: B S C, f: C J, dy dx: B S C, df: C J", "",
      [](Sizes& sizes, Floats x, Floats f, Floats dy, Result dx, Result df, int threads) {
        long_conv_backward(long_conv_shape(sizes), x, f, dy, dx, df, threads);
      });
}

}  // namespace mlxhog
