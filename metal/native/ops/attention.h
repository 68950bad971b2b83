// Causal attention of several heads, and its exact gradient: out_t = sum_j softmax_j(q_t . k_j / sqrt(DH)) v_j.
//
// Arrays are packed float32: q, out (B, S, NH, DH); k, v (B, L, NH, DH); lse (B, NH, S), the logarithm of the sum of
// every row's exponentials. The last S keys are those of the queries' own positions, L >= S: query t sees the keys
// from `L - S + t - window` (from the first one without a window) to `L - S + t`, and of them those from the first
// valid one on, L - lengths[b], where lengths are given. Work is split over B and heads; a task keeps no more than
// 32 rows of scores at once.
#pragma once

#include <cstdint>

#include "simd.h"

namespace mlxhog {

struct AttentionShape {
  Index B, S, L, NH, DH;
  Index window;                 // keys seen before the own one; negative: all of them
  const std::int32_t* lengths;  // (B,), or null: all of them are valid
};

struct AttentionInputs {
  const float *q, *k, *v;
};

void attention_forward(const AttentionShape&, const AttentionInputs&, float* out, float* lse, int threads);

struct AttentionGradients {
  float *q, *k, *v;
};

// From the `lse` of the forward pass.
void attention_backward(const AttentionShape&, const AttentionInputs&, const float* lse, const float* d_out,
                        const AttentionGradients&, int threads);

// Rotary positions: elements i and DH / 2 + i of every head turn by position * base^(-2 i / DH). x, out
// (B, S, NH, DH), DH even; offset (B,), the position of each sequence's first element, or null: all 0.
// Source: Su et al. 2021, RoFormer, arXiv:2104.09864.
struct RopeShape {
  Index B, S, NH, DH;
  double base;
  const std::int32_t* offset;
};

// `back` turns the other way, which is the gradient.
void rope(const RopeShape&, const float* x, bool back, float* out, int threads);

}  // namespace mlxhog
