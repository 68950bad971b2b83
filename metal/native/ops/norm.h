// RMSNorm and LayerNorm. All arrays are packed float32 rows.
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

}  // namespace mlxhog
