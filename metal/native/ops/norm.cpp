#include "norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"

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

MLXHOG_CLONES void layer_rows(Index rows, Index heads, Index width, float eps, const float* x, const float* w,
                              float* out) {
  for (Index r = 0; r < rows * heads; ++r, x += width, out += width) {
    const float* w_head = w + r % heads * width;
    const Moments of_head = moments(x, width, eps);
    const float mean = of_head.mean, scale = of_head.scale;
#pragma omp simd
    for (Index j = 0; j < width; ++j) out[j] = (x[j] - mean) * scale * w_head[j];
  }
}

MLXHOG_CLONES void layer_rows_backward(Index rows, Index heads, Index width, float eps, const float* x,
                                       const float* w, const float* d_out, float* dx, float* dw) {
  for (Index r = 0; r < rows * heads; ++r, x += width, d_out += width, dx += width) {
    const float* w_head = w + r % heads * width;
    float* dw_head = dw + r % heads * width;
    const Moments of_head = moments(x, width, eps);
    const float mean = of_head.mean, scale = of_head.scale;
    float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (Index j = 0; j < width; ++j) {
      const float unit = (x[j] - mean) * scale, d_unit = d_out[j] * w_head[j];
      dw_head[j] += d_out[j] * unit;
      dx[j] = d_unit;
      sum += d_unit;
      dot += d_unit * unit;
    }
    through_moments(of_head, x, width, sum, dot, dx);
  }
}

MLXHOG_CLONES void gate_rows(Index rows, Index heads, Index width, float eps, const float* h, const float* o,
                             const float* w, float* out) {
  for (Index r = 0; r < rows * heads; ++r, h += width, o += width, out += width) {
    const float* w_head = w + r % heads * width;
    const Moments of_head = moments(h, width, eps);
    const float mean = of_head.mean, scale = of_head.scale;
#pragma omp simd
    for (Index j = 0; j < width; ++j) out[j] = sigmoid_f32(o[j]) * ((h[j] - mean) * scale * w_head[j]);
  }
}

MLXHOG_CLONES void gate_rows_backward(Index rows, Index heads, Index width, float eps, const float* h,
                                      const float* o, const float* w, const float* d_out, float* dh, float* d_o,
                                      float* dw) {
  for (Index r = 0; r < rows * heads; ++r, h += width, o += width, d_out += width, dh += width, d_o += width) {
    const float* w_head = w + r % heads * width;
    float* dw_head = dw + r % heads * width;
    const Moments of_head = moments(h, width, eps);
    const float mean = of_head.mean, scale = of_head.scale;
    float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (Index j = 0; j < width; ++j) {
      const float unit = (h[j] - mean) * scale, gate = sigmoid_f32(o[j]), gated = d_out[j] * gate;
      const float d_unit = gated * w_head[j];
      dw_head[j] += gated * unit;
      d_o[j] = d_unit * unit * (1.0f - gate);
      dh[j] = d_unit;
      sum += d_unit;
      dot += d_unit * unit;
    }
    through_moments(of_head, h, width, sum, dot, dh);
  }
}

MLXHOG_CLONES void skip_rows(Index rows, Index heads, Index width, float eps, const float* h, const float* c,
                             const float* z, const float* w, const float* skip, float* out) {
  for (Index r = 0; r < rows * heads; ++r, h += width, c += width, z += width, out += width) {
    const float *w_head = w + r % heads * width, *skip_head = skip + r % heads * width;
    const Moments of_head = moments(h, width, eps);
    const float mean = of_head.mean, scale = of_head.scale;
#pragma omp simd
    for (Index j = 0; j < width; ++j) {
      const float mixed = (h[j] - mean) * scale * w_head[j] + skip_head[j] * c[j];
      out[j] = mixed * z[j] * sigmoid_f32(z[j]);
    }
  }
}

// One head of one row.
MLXHOG_INLINE void skip_head_backward(Index width, float eps, const float* h, const float* c, const float* z,
                                      const float* w, const float* skip, const float* d_out, float* dh, float* dc,
                                      float* dz, float* dw, float* dskip) {
  const Moments of_head = moments(h, width, eps);
  const float mean = of_head.mean, scale = of_head.scale;
  float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (Index j = 0; j < width; ++j) {
    const float unit = (h[j] - mean) * scale, mixed = unit * w[j] + skip[j] * c[j];
    const float s = sigmoid_f32(z[j]), d_mixed = d_out[j] * z[j] * s, d_unit = d_mixed * w[j];
    dz[j] = d_out[j] * mixed * s * (1.0f + z[j] * (1.0f - s));
    dc[j] = d_mixed * skip[j];
    dw[j] += d_mixed * unit;
    dskip[j] += d_mixed * c[j];
    dh[j] = d_unit;
    sum += d_unit;
    dot += d_unit * unit;
  }
  through_moments(of_head, h, width, sum, dot, dh);
}

MLXHOG_CLONES void skip_rows_backward(Index rows, Index heads, Index width, float eps, const float* h,
                                      const float* c, const float* z, const float* w, const float* skip,
                                      const float* d_out, float* dh, float* dc, float* dz, float* dw, float* dskip) {
  for (Index r = 0; r < rows * heads; ++r) {
    const Index at = r * width, of_head = r % heads * width;
    skip_head_backward(width, eps, h + at, c + at, z + at, w + of_head, skip + of_head, d_out + at, dh + at, dc + at,
                       dz + at, dw + of_head, dskip + of_head);
  }
}

}  // namespace

void rms_norm_forward(Index rows, Index d, float eps, const float* x, const float* w, float* out, int threads) {
  in_row_tasks(rows, threads, [=](Index first, Index count) {
    rms_rows(count, d, eps, x + first * d, w, out + first * d);
  });
}

void rms_norm_backward(Index rows, Index d, float eps, const float* x, const float* w, const float* d_out, float* dx,
                       float* dw, int threads) {
  const std::vector<float> sum = summed_over_rows(rows, d, threads, [=](Index first, Index count, float* part) {
    const Index at = first * d;
    rms_rows_backward(count, d, eps, x + at, w, d_out + at, dx + at, part);
  });
  std::copy(sum.begin(), sum.end(), dw);
}

void layer_norm_forward(Index rows, Index heads, Index width, float eps, const float* x, const float* w, float* out,
                        int threads) {
  in_row_tasks(rows, threads, [=](Index first, Index count) {
    const Index at = first * heads * width;
    layer_rows(count, heads, width, eps, x + at, w, out + at);
  });
}

void layer_norm_backward(Index rows, Index heads, Index width, float eps, const float* x, const float* w,
                         const float* d_out, float* dx, float* dw, int threads) {
  const Index d = heads * width;
  const std::vector<float> sum = summed_over_rows(rows, d, threads, [=](Index first, Index count, float* part) {
    const Index at = first * d;
    layer_rows_backward(count, heads, width, eps, x + at, w, d_out + at, dx + at, part);
  });
  std::copy(sum.begin(), sum.end(), dw);
}

void head_norm_gate_forward(const HeadRows& s, const float* h, const float* o, const float* w, float* out,
                            int threads) {
  in_row_tasks(s.rows, threads, [&](Index first, Index count) {
    const Index at = first * s.heads * s.width;
    gate_rows(count, s.heads, s.width, s.eps, h + at, o + at, w, out + at);
  });
}

void head_norm_gate_backward(const HeadRows& s, const float* h, const float* o, const float* w, const float* d_out,
                             float* dh, float* d_o, float* dw, int threads) {
  const Index d = s.heads * s.width;
  const auto sum = summed_over_rows(s.rows, d, threads, [&](Index first, Index count, float* part) {
    const Index at = first * d;
    gate_rows_backward(count, s.heads, s.width, s.eps, h + at, o + at, w, d_out + at, dh + at, d_o + at, part);
  });
  std::copy(sum.begin(), sum.end(), dw);
}

void head_norm_skip_gate_forward(const HeadRows& s, const SkipGate& in, float* out, int threads) {
  in_row_tasks(s.rows, threads, [&](Index first, Index count) {
    const Index at = first * s.heads * s.width;
    skip_rows(count, s.heads, s.width, s.eps, in.h + at, in.c + at, in.z + at, in.w, in.skip, out + at);
  });
}

void head_norm_skip_gate_backward(const HeadRows& s, const SkipGate& in, const float* d_out,
                                  const SkipGateGradients& grad, int threads) {
  const Index d = s.heads * s.width;
  const auto sum = summed_over_rows(s.rows, 2 * d, threads, [&](Index first, Index count, float* part) {
    const Index at = first * d;
    skip_rows_backward(count, s.heads, s.width, s.eps, in.h + at, in.c + at, in.z + at, in.w, in.skip, d_out + at,
                       grad.h + at, grad.c + at, grad.z + at, part, part + d);
  });
  std::copy(sum.begin(), sum.begin() + d, grad.w);
  std::copy(sum.begin() + d, sum.end(), grad.skip);
}

}  // namespace mlxhog
