// The norms that other operators compute, too; w and skip are one row of the packed arrays beside them.
#pragma once

#include "simd.h"

namespace mlxhog {

// Rows of heads * width.
struct HeadRows {
  Index rows, heads, width;
  float eps;
};

// out = w * x / sqrt(mean(x^2) + eps) over rows of d.
void rms_norm_forward(Index rows, Index d, float eps, const float* x, const float* w, float* out, int threads);

// The LayerNorm of each head, LayerNorm(h) = (h - mean) / sqrt(var + eps), and what follows it in its block:
//
//   out = w * LayerNorm(h)
//   out = sigmoid(gate) * w * LayerNorm(h)                    with `gate`: xLSTM Large
//   out = (w * LayerNorm(h) + skip * c) * silu(gate)          with all: v1
struct HeadNorm {
  const float *h, *w, *gate = nullptr, *c = nullptr, *skip = nullptr;
};

void head_norm_forward(const HeadRows&, const HeadNorm&, float* out, int threads);

}  // namespace mlxhog
