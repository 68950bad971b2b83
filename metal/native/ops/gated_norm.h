// The per-head LayerNorm behind the mLSTM cell, joined with the next operation of each block. All arrays are packed
// float32 rows of heads * width; w and skip are one row.
#pragma once

#include "simd.h"

namespace mlxhog {

struct HeadRows {
  Index rows, heads, width;
  float eps;
};

// xLSTM Large: out = sigmoid(o) * w * LayerNorm(h) within each head.
void head_norm_gate_forward(const HeadRows&, const float* h, const float* o, const float* w, float* out, int threads);

void head_norm_gate_backward(const HeadRows&, const float* h, const float* o, const float* w, const float* d_out,
                             float* dh, float* d_o, float* dw, int threads);

struct SkipGate {
  const float *h, *c, *z, *w, *skip;
};

struct SkipGateGradients {
  float *h, *c, *z, *w, *skip;
};

// v1: out = (w * LayerNorm(h) + skip * c) * silu(z).
void head_norm_skip_gate_forward(const HeadRows&, const SkipGate&, float* out, int threads);

void head_norm_skip_gate_backward(const HeadRows&, const SkipGate&, const float* d_out, const SkipGateGradients&,
                                  int threads);

}  // namespace mlxhog
