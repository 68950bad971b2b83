#include "norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "moments.h"
#include "pool.h"

namespace mlxhog {
namespace {

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

}  // namespace mlxhog
