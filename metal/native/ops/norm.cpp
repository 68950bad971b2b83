// RMSNorm, LayerNorm, and the LayerNorm of each head behind the mLSTM cell, joined with the next operation of its
// block.
#include "norm.h"

#include <algorithm>
#include <cmath>

#include "pool.h"
#include "shapes.h"

namespace mlxhog {
namespace {

// Mean and inverse standard deviation of the numbers that a LayerNorm normalizes.
struct Moments {
  float mean, scale;
};

MLXHOG_INLINE Moments moments(const float* h, Index width, float eps) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < width; ++j) sum += h[j];
  const float mean = sum / static_cast<float>(width);
#pragma omp simd reduction(+ : squares)
  for (Index j = 0; j < width; ++j) squares += (h[j] - mean) * (h[j] - mean);
  return {mean, 1.0f / std::sqrt(squares / static_cast<float>(width) + eps)};
}

// dh holds the gradient of unit = (h - mean) * scale on entry, that of h on return; sum and dot are those of the
// gradient of unit with 1 and with unit.
MLXHOG_INLINE void through_moments(Moments of, const float* h, Index width, float sum, float dot, float* dh) {
  const float inverse_width = 1.0f / static_cast<float>(width), mean = of.mean, scale = of.scale;
  sum *= inverse_width;
  dot *= inverse_width;
#pragma omp simd
  for (Index j = 0; j < width; ++j) dh[j] = scale * (dh[j] - sum - (h[j] - mean) * scale * dot);
}

MLXHOG_INLINE float inverse_rms(const float* s, Index d, float eps) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (Index j = 0; j < d; ++j) squares += s[j] * s[j];
  return 1.0f / std::sqrt(squares / static_cast<float>(d) + eps);
}

MLXHOG_CLONES void rms_rows(Index rows, Index d, float eps, const float* s, const float* w, float* out) {
  for (Index r = 0; r < rows; ++r, s += d, out += d) {
    const float scale = inverse_rms(s, d, eps);
#pragma omp simd
    for (Index j = 0; j < d; ++j) out[j] = w[j] * (s[j] * scale);
  }
}

MLXHOG_CLONES void rms_rows_backward(Index rows, Index d, float eps, const float* s, const float* w,
                                     const float* d_out, float* dx, float* dw) {
  for (Index r = 0; r < rows; ++r, s += d, d_out += d, dx += d) {
    const float scale = inverse_rms(s, d, eps);
    float mean = 0;
#pragma omp simd reduction(+ : mean)
    for (Index j = 0; j < d; ++j) {
      const float unit = s[j] * scale;
      dw[j] += d_out[j] * unit;
      mean += d_out[j] * w[j] * unit;
    }
    mean /= static_cast<float>(d);
#pragma omp simd
    for (Index j = 0; j < d; ++j) dx[j] = scale * (d_out[j] * w[j] - s[j] * scale * mean);
  }
}

// Calls use(first number, its weight) of every head.
template <class Use>
MLXHOG_INLINE void each_head(const HeadRows& s, const Use& use) {
  const Index rows = s.rows, width = s.width, d = s.heads * width;
  for (Index r = 0; r < rows; ++r)
    for (Index of = 0; of < d; of += width) use(r * d + of, of);
}

// out[j] = value(j, unit[j]), unit being the normalized h.
template <class Value>
MLXHOG_INLINE void normalize(const float* h, Index width, float eps, float* out, const Value& value) {
  const Moments of = moments(h, width, eps);
  const float mean = of.mean, scale = of.scale;
#pragma omp simd
  for (Index j = 0; j < width; ++j) out[j] = value(j, (h[j] - mean) * scale);
}

// dh from the gradient of unit, gradient(j, unit[j]), which also writes those of the other arrays.
template <class Gradient>
MLXHOG_INLINE void differentiate(const float* h, Index width, float eps, float* dh, const Gradient& gradient) {
  const Moments of = moments(h, width, eps);
  const float mean = of.mean, scale = of.scale;
  float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (Index j = 0; j < width; ++j) {
    const float unit = (h[j] - mean) * scale, d_unit = gradient(j, unit);
    dh[j] = d_unit;
    sum += d_unit;
    dot += d_unit * unit;
  }
  through_moments(of, h, width, sum, dot, dh);
}

MLXHOG_CLONES void head_rows(HeadRows s, HeadNorm in, float* out) {
  each_head(s, [=](Index at, Index of) MLXHOG_ALWAYS {
    const auto write = [=](const auto& value) MLXHOG_ALWAYS { normalize(in.h + at, s.width, s.eps, out + at, value); };
    if (in.c) {
      write([=](Index j, float unit) MLXHOG_ALWAYS {
        const float z = in.gate[at + j];
        return (unit * in.w[of + j] + in.skip[of + j] * in.c[at + j]) * z * sigmoid_f32(z);
      });
    } else if (in.gate) {
      write([=](Index j, float unit) MLXHOG_ALWAYS { return sigmoid_f32(in.gate[at + j]) * (unit * in.w[of + j]); });
    } else {
      write([=](Index j, float unit) MLXHOG_ALWAYS { return unit * in.w[of + j]; });
    }
  });
}

struct HeadNormGradients {
  float *h, *w, *gate = nullptr, *c = nullptr, *skip = nullptr;
};

MLXHOG_CLONES void head_rows_backward(HeadRows s, HeadNorm in, const float* d_out, HeadNormGradients d) {
  each_head(s, [=](Index at, Index of) MLXHOG_ALWAYS {
    const auto write = [=](const auto& gradient) MLXHOG_ALWAYS {
      differentiate(in.h + at, s.width, s.eps, d.h + at, gradient);
    };
    if (in.c) {
      write([=](Index j, float unit) MLXHOG_ALWAYS {
        const float w = in.w[of + j], skip = in.skip[of + j], c = in.c[at + j], z = in.gate[at + j];
        const float mixed = unit * w + skip * c, gate = sigmoid_f32(z), d_mixed = d_out[at + j] * z * gate;
        d.gate[at + j] = d_out[at + j] * mixed * gate * (1.0f + z * (1.0f - gate));
        d.c[at + j] = d_mixed * skip;
        d.w[of + j] += d_mixed * unit;
        d.skip[of + j] += d_mixed * c;
        return d_mixed * w;
      });
    } else if (in.gate) {
      write([=](Index j, float unit) MLXHOG_ALWAYS {
        const float gate = sigmoid_f32(in.gate[at + j]), gated = d_out[at + j] * gate, d_unit = gated * in.w[of + j];
        d.w[of + j] += gated * unit;
        d.gate[at + j] = d_unit * unit * (1.0f - gate);
        return d_unit;
      });
    } else {
      write([=](Index j, float unit) MLXHOG_ALWAYS {
        d.w[of + j] += d_out[at + j] * unit;
        return d_out[at + j] * in.w[of + j];
      });
    }
  });
}

template <class Float>
Float* from(Float* array, Index at) {
  return array ? array + at : nullptr;
}

HeadNorm from(const HeadNorm& in, Index at) { return {in.h + at, in.w, from(in.gate, at), from(in.c, at), in.skip}; }

void head_norm_backward(const HeadRows& s, const HeadNorm& in, const float* d_out, const HeadNormGradients& d,
                        int threads) {
  const Index width = s.heads * s.width;
  const auto sum = summed_over_rows(s.rows, (d.skip ? 2 : 1) * width, threads, [&](Index first, Index count, float* part) {
    const Index at = first * width;
    head_rows_backward({count, s.heads, s.width, s.eps}, from(in, at), d_out + at,
                       {d.h + at, part, from(d.gate, at), from(d.c, at), part + width});
  });
  std::copy_n(sum.begin(), width, d.w);
  if (d.skip) std::copy_n(sum.begin() + width, width, d.skip);
}

// Rows of whole heads, each as wide as x's last axis D; w is as wide as a row.
HeadRows head_shape(const Sizes& sizes, float eps) {
  const Index D = sizes["D"], W = sizes["W"], N = sizes["N"];
  require(D != 0 && W % D == 0 && (W == 0 ? N : N % (W / D)) == 0, "w has ", W,
          " numbers, expected those of whole heads of ", D, ", of which there are ", N);
  return {W ? N / (W / D) : 0, W / D, D, eps};
}

// Likewise, where the other arrays have the heads of a row joined.
HeadRows joined_shape(Sizes& sizes, float eps) {
  const HeadRows s = head_shape(sizes, eps);
  sizes.expect({{"M", s.rows}});
  return s;
}

}  // namespace

void rms_norm_forward(Index rows, Index d, float eps, const float* x, const float* w, float* out, int threads) {
  in_pieces(rows, kRowsPerTask, threads, [=](Index first, Index count) {
    rms_rows(count, d, eps, x + first * d, w, out + first * d);
  });
}

void head_norm_forward(const HeadRows& s, const HeadNorm& in, float* out, int threads) {
  in_pieces(s.rows, kRowsPerTask, threads, [&](Index first, Index count) {
    const Index at = first * s.heads * s.width;
    head_rows({count, s.heads, s.width, s.eps}, from(in, at), out + at);
  });
}

void bind_norms(nb::module_& m) {
  def(m, "rms_norm", "x: N... D, w: D, out: N... D", "out = w * x / sqrt(mean(x^2) + eps) over the last axis.",
      [](Sizes& sizes, Floats x, Floats w, Result out, float eps, int threads) {
        rms_norm_forward(sizes["N"], sizes["D"], eps, x, w, out, threads);
      }, "eps"_a);
  def(m, "rms_norm_grad", "x: N... D, w: D, d_out dx: N... D, dw: D", "",
      [](Sizes& sizes, Floats x, Floats w, Floats d_out, Result dx, Result dw, float eps, int threads) {
        const Index d = sizes["D"];
        const auto sum = summed_over_rows(sizes["N"], d, threads, [=](Index first, Index count, float* part) {
          rms_rows_backward(count, d, eps, x + first * d, w, d_out + first * d, dx + first * d, part);
        });
        std::copy_n(sum.begin(), d, static_cast<float*>(dw));
      }, "eps"_a);
  def(m, "layer_norm", "x: N... D, w: W, out: N... D",
      "out = w * LayerNorm(x) over x's last axis; w holds one or more heads of that width.",
      [](Sizes& sizes, Floats x, Floats w, Result out, float eps, int threads) {
        head_norm_forward(head_shape(sizes, eps), {x, w}, out, threads);
      }, "eps"_a);
  def(m, "layer_norm_grad", "x: N... D, w: W, d_out: M... E, dx: N... D, dw: W", "d_out as x, or its heads joined.",
      [](Sizes& sizes, Floats x, Floats w, Floats d_out, Result dx, Result dw, float eps, int threads) {
        const HeadRows s = head_shape(sizes, eps);
        const bool joined = sizes["E"] != s.width;
        sizes.expect({{"E", joined ? sizes["W"] : s.width}, {"M", joined ? s.rows : sizes["N"]}});
        head_norm_backward(s, {x, w}, d_out, {dx, dw}, threads);
      }, "eps"_a);
  def(m, "head_norm_gate", "h: N... D, o: M... W, w: W, out: M... W",
      "out = sigmoid(o) * w * LayerNorm(h) within each head (h's last axis).",
      [](Sizes& sizes, Floats h, Floats o, Floats w, Result out, float eps, int threads) {
        head_norm_forward(joined_shape(sizes, eps), {h, w, o}, out, threads);
      }, "eps"_a);
  def(m, "head_norm_gate_grad", "h: N... D, o: M... W, w: W, d_out: M... W, dh: N... D, do: M... W, dw: W", "",
      [](Sizes& sizes, Floats h, Floats o, Floats w, Floats d_out, Result dh, Result d_o, Result dw, float eps,
         int threads) {
        head_norm_backward(joined_shape(sizes, eps), {h, w, o}, d_out, {dh, dw, d_o}, threads);
      }, "eps"_a);
  def(m, "head_norm_skip_gate", "h: N... D, c z: M... W, w skip: W, out: M... W",
      "out = (w * LayerNorm(h) + skip * c) * silu(z), normalized within each head (h's last axis).",
      [](Sizes& sizes, Floats h, Floats c, Floats z, Floats w, Floats skip, Result out, float eps, int threads) {
        head_norm_forward(joined_shape(sizes, eps), {h, w, z, c, skip}, out, threads);
      }, "eps"_a);
  def(m, "head_norm_skip_gate_grad",
      "h: N... D, c z: M... W, w skip: W, d_out: M... W, dh: N... D, dc dz: M... W, dw dskip: W", "",
      [](Sizes& sizes, Floats h, Floats c, Floats z, Floats w, Floats skip, Floats d_out, Result dh, Result dc,
         Result dz, Result dw, Result dskip, float eps, int threads) {
        head_norm_backward(joined_shape(sizes, eps), {h, w, z, c, skip}, d_out, {dh, dw, dz, dc, dskip}, threads);
      }, "eps"_a);
}

}  // namespace mlxhog
