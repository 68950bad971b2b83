// Normalisations of the xLSTM block: RMSNorm, and the gated per-head LayerNorm behind the mLSTM cell. All arrays are
// packed float32 rows.
#pragma once

#include "simd.h"

namespace mlxhog {

// out = w * x / sqrt(mean(x^2) + eps) over rows of d.
void rms_norm_forward(Index rows, Index d, float eps, const float* x, const float* w, float* out, int threads);

void rms_norm_backward(Index rows, Index d, float eps, const float* x, const float* w, const float* d_out, float* dx,
                       float* dw, int threads);

// out = sigmoid(o) * w * LayerNorm(h) within each of `heads` slices of `width`; rows are heads * width long.
void head_norm_gate_forward(Index rows, Index heads, Index width, float eps, const float* h, const float* o,
                            const float* w, float* out, int threads);

void head_norm_gate_backward(Index rows, Index heads, Index width, float eps, const float* h, const float* o,
                             const float* w, const float* d_out, float* dh, float* d_o, float* dw, int threads);

}  // namespace mlxhog
