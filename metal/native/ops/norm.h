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

// out = w * LayerNorm(x) within each head, LayerNorm(x) = (x - mean) / sqrt(var + eps).
void layer_norm_forward(const HeadRows&, const float* x, const float* w, float* out, int threads);

// xLSTM Large: out = sigmoid(o) * w * LayerNorm(h).
void head_norm_gate_forward(const HeadRows&, const float* h, const float* o, const float* w, float* out, int threads);

struct SkipGate {
  const float *h, *c, *z, *w, *skip;
};

// v1: out = (w * LayerNorm(h) + skip * c) * silu(z).
void head_norm_skip_gate_forward(const HeadRows&, const SkipGate&, float* out, int threads);

}  // namespace mlxhog
