// RMSNorm, LayerNorm, and the per-head LayerNorm behind the mLSTM cell, joined with the next operation of each block.
// All arrays are packed float32 rows; w and skip are one row.
#pragma once

#include "simd.h"

namespace mlxhog {

// out = w * x / sqrt(mean(x^2) + eps) over rows of d.
void rms_norm_forward(Index rows, Index d, float eps, const float* x, const float* w, float* out, int threads);

void rms_norm_backward(Index rows, Index d, float eps, const float* x, const float* w, const float* d_out, float* dx,
                       float* dw, int threads);

// out = w * (x - mean) / sqrt(var + eps) within each of `heads` slices of `width`; rows are heads * width long.
void layer_norm_forward(Index rows, Index heads, Index width, float eps, const float* x, const float* w, float* out,
                        int threads);

void layer_norm_backward(Index rows, Index heads, Index width, float eps, const float* x, const float* w,
                         const float* d_out, float* dx, float* dw, int threads);

// Rows of heads * width.
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
