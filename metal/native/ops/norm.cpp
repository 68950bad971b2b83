// RMSNorm, LayerNorm, and the LayerNorm of each head behind the mLSTM cell, joined with the next operation of its block.
#include "norm.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "pool.h"
#include "shapes.h"

namespace mlxhog {
namespace {

// Mean and inverse standard deviation of the numbers that a LayerNorm normalises.
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

// out[j] = value(j, unit[j]), unit being the normalised h.
template <class Value>
MLXHOG_INLINE void normalise(const float* h, Index width, float eps, float* out, const Value& value) {
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

MLXHOG_CLONES void layer_rows(HeadRows s, const float* x, const float* w, float* out) {
  each_head(s, [=](Index at, Index of) MLXHOG_ALWAYS {
    normalise(x + at, s.width, s.eps, out + at, [=](Index j, float unit) MLXHOG_ALWAYS { return unit * w[of + j]; });
  });
}

MLXHOG_CLONES void layer_rows_backward(HeadRows s, const float* x, const float* w, const float* d_out, float* dx,
                                       float* dw) {
  each_head(s, [=](Index at, Index of) MLXHOG_ALWAYS {
    differentiate(x + at, s.width, s.eps, dx + at, [=](Index j, float unit) MLXHOG_ALWAYS {
      dw[of + j] += d_out[at + j] * unit;
      return d_out[at + j] * w[of + j];
    });
  });
}

MLXHOG_CLONES void gate_rows(HeadRows s, const float* h, const float* o, const float* w, float* out) {
  each_head(s, [=](Index at, Index of) MLXHOG_ALWAYS {
    normalise(h + at, s.width, s.eps, out + at,
              [=](Index j, float unit) MLXHOG_ALWAYS { return sigmoid_f32(o[at + j]) * (unit * w[of + j]); });
  });
}

MLXHOG_CLONES void gate_rows_backward(HeadRows s, const float* h, const float* o, const float* w, const float* d_out,
                                      float* dh, float* d_o, float* dw) {
  each_head(s, [=](Index at, Index of) MLXHOG_ALWAYS {
    differentiate(h + at, s.width, s.eps, dh + at, [=](Index j, float unit) MLXHOG_ALWAYS {
      const float gate = sigmoid_f32(o[at + j]), gated = d_out[at + j] * gate, d_unit = gated * w[of + j];
      dw[of + j] += gated * unit;
      d_o[at + j] = d_unit * unit * (1.0f - gate);
      return d_unit;
    });
  });
}

MLXHOG_CLONES void skip_rows(HeadRows s, SkipGate in, float* out) {
  each_head(s, [=](Index at, Index of) MLXHOG_ALWAYS {
    normalise(in.h + at, s.width, s.eps, out + at, [=](Index j, float unit) MLXHOG_ALWAYS {
      const float z = in.z[at + j];
      return (unit * in.w[of + j] + in.skip[of + j] * in.c[at + j]) * z * sigmoid_f32(z);
    });
  });
}

struct SkipGateGradients {
  float *h, *c, *z, *w, *skip;
};

MLXHOG_CLONES void skip_rows_backward(HeadRows s, SkipGate in, const float* d_out, SkipGateGradients d) {
  each_head(s, [=](Index at, Index of) MLXHOG_ALWAYS {
    differentiate(in.h + at, s.width, s.eps, d.h + at, [=](Index j, float unit) MLXHOG_ALWAYS {
      const float w = in.w[of + j], skip = in.skip[of + j], c = in.c[at + j], z = in.z[at + j];
      const float mixed = unit * w + skip * c, gate = sigmoid_f32(z), d_mixed = d_out[at + j] * z * gate;
      d.z[at + j] = d_out[at + j] * mixed * gate * (1.0f + z * (1.0f - gate));
      d.c[at + j] = d_mixed * skip;
      d.w[of + j] += d_mixed * unit;
      d.skip[of + j] += d_mixed * c;
      return d_mixed * w;
    });
  });
}

// Calls work(some of the rows, their first number).
template <class Work>
void in_tasks(const HeadRows& s, int threads, const Work& work) {
  in_pieces(s.rows, kRowsPerTask, threads, [&](Index first, Index count) {
    work(HeadRows{count, s.heads, s.width, s.eps}, first * s.heads * s.width);
  });
}

// Likewise; `part` is theirs of the gradients of weights, which end in `sums`, one array after the other.
template <class Work>
void summed(const HeadRows& s, int threads, std::initializer_list<float*> sums, const Work& work) {
  const Index d = s.heads * s.width, arrays = static_cast<Index>(sums.size());
  const auto sum = summed_over_rows(s.rows, arrays * d, threads, [&](Index first, Index count, float* part) {
    work(HeadRows{count, s.heads, s.width, s.eps}, first * d, part);
  });
  auto from = sum.begin();
  for (float* to : sums) std::copy_n(from, d, to), from += d;
}

// Rows of whole heads, each as wide as x's last axis D; w is as wide as a row.
HeadRows head_rows(const Sizes& sizes, float eps) {
  const Index D = sizes["D"], W = sizes["W"], N = sizes["N"];
  if (D == 0 || W % D || (W == 0 ? N : N % (W / D)))
    throw nb::value_error(("w has " + std::to_string(W) + " numbers, expected those of whole heads of " +
                           std::to_string(D) + ", of which there are " + std::to_string(N))
                              .c_str());
  return {W ? N / (W / D) : 0, W / D, D, eps};
}

// Likewise, where the other arrays have the heads of a row joined.
HeadRows joined_rows(Sizes& sizes, float eps) {
  const HeadRows s = head_rows(sizes, eps);
  sizes.expect({{"M", s.rows}});
  return s;
}

}  // namespace

void rms_norm_forward(Index rows, Index d, float eps, const float* x, const float* w, float* out, int threads) {
  in_pieces(rows, kRowsPerTask, threads, [=](Index first, Index count) {
    rms_rows(count, d, eps, x + first * d, w, out + first * d);
  });
}

void layer_norm_forward(const HeadRows& s, const float* x, const float* w, float* out, int threads) {
  in_tasks(s, threads, [=](HeadRows part, Index at) { layer_rows(part, x + at, w, out + at); });
}

void head_norm_gate_forward(const HeadRows& s, const float* h, const float* o, const float* w, float* out,
                            int threads) {
  in_tasks(s, threads, [=](HeadRows part, Index at) { gate_rows(part, h + at, o + at, w, out + at); });
}

void head_norm_skip_gate_forward(const HeadRows& s, const SkipGate& in, float* out, int threads) {
  in_tasks(s, threads, [&](HeadRows part, Index at) {
    skip_rows(part, {in.h + at, in.c + at, in.z + at, in.w, in.skip}, out + at);
  });
}

}  // namespace mlxhog

void bind_norms(nb::module_& m) {
  using namespace nb::literals;
  using namespace mlxhog;
  def(m, "rms_norm", "x: N... D, w: D, out: N... D", "out = w * x / sqrt(mean(x^2) + eps) over the last axis.",
      [](Sizes& sizes, Floats x, Floats w, Result out, float eps, int threads) {
        rms_norm_forward(sizes["N"], sizes["D"], eps, x, w, out, threads);
      }, "eps"_a);
  def(m, "rms_norm_grad", "x: N... D, w: D, d_out dx: N... D, dw: D", "",
      [](Sizes& sizes, Floats x, Floats w, Floats d_out, Result dx, Result dw, float eps, int threads) {
        summed({sizes["N"], 1, sizes["D"], eps}, threads, {dw}, [=](HeadRows s, Index at, float* part) {
          rms_rows_backward(s.rows, s.width, eps, x + at, w, d_out + at, dx + at, part);
        });
      }, "eps"_a);
  def(m, "layer_norm", "x: N... D, w: W, out: N... D",
      "out = w * LayerNorm(x) over x's last axis; w holds one or more heads of that width.",
      [](Sizes& sizes, Floats x, Floats w, Result out, float eps, int threads) {
        layer_norm_forward(head_rows(sizes, eps), x, w, out, threads);
      }, "eps"_a);
  def(m, "layer_norm_grad", "x: N... D, w: W, d_out: M... E, dx: N... D, dw: W", "d_out as x, or its heads joined.",
      [](Sizes& sizes, Floats x, Floats w, Floats d_out, Result dx, Result dw, float eps, int threads) {
        const HeadRows s = head_rows(sizes, eps);
        const bool joined = sizes["E"] != s.width;
        sizes.expect({{"E", joined ? sizes["W"] : s.width}, {"M", joined ? s.rows : sizes["N"]}});
        summed(s, threads, {dw}, [=](HeadRows rows, Index at, float* part) {
          layer_rows_backward(rows, x + at, w, d_out + at, dx + at, part);
        });
      }, "eps"_a);
  def(m, "head_norm_gate", "h: N... D, o: M... W, w: W, out: M... W",
      "out = sigmoid(o) * w * LayerNorm(h) within each head (h's last axis).",
      [](Sizes& sizes, Floats h, Floats o, Floats w, Result out, float eps, int threads) {
        head_norm_gate_forward(joined_rows(sizes, eps), h, o, w, out, threads);
      }, "eps"_a);
  def(m, "head_norm_gate_grad", "h: N... D, o: M... W, w: W, d_out: M... W, dh: N... D, do: M... W, dw: W", "",
      [](Sizes& sizes, Floats h, Floats o, Floats w, Floats d_out, Result dh, Result d_o, Result dw, float eps,
         int threads) {
        summed(joined_rows(sizes, eps), threads, {dw}, [=](HeadRows s, Index at, float* part) {
          gate_rows_backward(s, h + at, o + at, w, d_out + at, dh + at, d_o + at, part);
        });
      }, "eps"_a);
  def(m, "head_norm_skip_gate", "h: N... D, c z: M... W, w skip: W, out: M... W",
      "out = (w * LayerNorm(h) + skip * c) * silu(z), normalised within each head (h's last axis).",
      [](Sizes& sizes, Floats h, Floats c, Floats z, Floats w, Floats skip, Result out, float eps, int threads) {
        head_norm_skip_gate_forward(joined_rows(sizes, eps), {h, c, z, w, skip}, out, threads);
      }, "eps"_a);
  def(m, "head_norm_skip_gate_grad",
      "h: N... D, c z: M... W, w skip: W, d_out: M... W, dh: N... D, dc dz: M... W, dw dskip: W", "",
      [](Sizes& sizes, Floats h, Floats c, Floats z, Floats w, Floats skip, Floats d_out, Result dh, Result dc,
         Result dz, Result dw, Result dskip, float eps, int threads) {
        summed(joined_rows(sizes, eps), threads, {dw, dskip}, [=](HeadRows s, Index at, float* part) {
          skip_rows_backward(s, {h + at, c + at, z + at, w, skip}, d_out + at,
                             {dh + at, dc + at, dz + at, part, part + s.heads * s.width});
        });
      }, "eps"_a);
}
