// Normalisations of the xLSTM block: RMSNorm (with an optional residual sum before it) and the gated per-head
// LayerNorm behind the mLSTM cell. All arrays are packed float32 rows.
#pragma once

#include "ops_simd.h"

namespace mlxhog {

// s = x + y, out = w * s / sqrt(mean(s^2) + eps) over rows of d. With y null, s is x and `sum` is not written.
void rms_norm_forward(Index rows, Index d, float eps, const float* x, const float* y, const float* w, float* sum,
                      float* out, int threads);

// Given s, dx = gradient through the norm, plus d_sum if not null (the gradient that s receives elsewhere).
void rms_norm_backward(Index rows, Index d, float eps, const float* s, const float* w, const float* d_out,
                       const float* d_sum, float* dx, float* dw, int threads);

// out = sigmoid(o) * w * LayerNorm(h) within each of `heads` slices of `width`; rows are heads * width long.
void head_norm_gate_forward(Index rows, Index heads, Index width, float eps, const float* h, const float* o,
                            const float* w, float* out, int threads);

void head_norm_gate_backward(Index rows, Index heads, Index width, float eps, const float* h, const float* o,
                             const float* w, const float* d_out, float* dh, float* d_o, float* dw, int threads);

}  // namespace mlxhog
