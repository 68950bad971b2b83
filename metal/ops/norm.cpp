#include "norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"

namespace mlxhog {
namespace {

// Rows per task. Weight gradients are summed per task, then in task order: the same bits for any thread count.
constexpr Index kRows = 128;

Index tasks_of(Index rows) { return (rows + kRows - 1) / kRows; }

MLXHOG_CLONES void add_rows(const float* x, const float* y, Index count, float* sum) {
#pragma omp simd
  for (Index j = 0; j < count; ++j) sum[j] = x[j] + y[j];
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
  const float inverse_width = 1.0f / static_cast<float>(width);
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
    sum *= inverse_width;
    dot *= inverse_width;
#pragma omp simd
    for (Index j = 0; j < width; ++j) dh[j] = scale * (dh[j] - sum - (h[j] - mean) * scale * dot);
  }
}

// Calls work(first row, row count, its own weight gradient) in tasks of kRows and adds the gradients up.
template <class Work>
void with_weight_gradient(Index rows, Index d, float* dw, int threads, const Work& work) {
  const Index tasks = tasks_of(rows);
  std::vector<float> parts(tasks * d);
  parallel_for(tasks, threads, [&](Index task) {
    const Index first = task * kRows;
    work(first, std::min(kRows, rows - first), parts.data() + task * d);
  });
  std::fill(dw, dw + d, 0.0f);
  for (Index task = 0; task < tasks; ++task) add_rows(dw, parts.data() + task * d, d, dw);
}

}  // namespace

void rms_norm_forward(Index rows, Index d, float eps, const float* x, const float* w, float* out, int threads) {
  parallel_for(tasks_of(rows), threads, [=](Index task) {
    const Index first = task * kRows, at = first * d;
    rms_rows(std::min(kRows, rows - first), d, eps, x + at, w, out + at);
  });
}

void rms_norm_backward(Index rows, Index d, float eps, const float* x, const float* w, const float* d_out, float* dx,
                       float* dw, int threads) {
  with_weight_gradient(rows, d, dw, threads, [=](Index first, Index count, float* part) {
    const Index at = first * d;
    rms_rows_backward(count, d, eps, x + at, w, d_out + at, dx + at, part);
  });
}

void head_norm_gate_forward(Index rows, Index heads, Index width, float eps, const float* h, const float* o,
                            const float* w, float* out, int threads) {
  parallel_for(tasks_of(rows), threads, [=](Index task) {
    const Index first = task * kRows, at = first * heads * width;
    gate_rows(std::min(kRows, rows - first), heads, width, eps, h + at, o + at, w, out + at);
  });
}

void head_norm_gate_backward(Index rows, Index heads, Index width, float eps, const float* h, const float* o,
                             const float* w, const float* d_out, float* dh, float* d_o, float* dw, int threads) {
  with_weight_gradient(rows, heads * width, dw, threads, [=](Index first, Index count, float* part) {
    const Index at = first * heads * width;
    gate_rows_backward(count, heads, width, eps, h + at, o + at, w, d_out + at, dh + at, d_o + at, part);
  });
}

}  // namespace mlxhog
