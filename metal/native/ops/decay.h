// The linear recurrence with decay: S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T, h_t = scale S_t^T q_t. By value,
// h_t = scale S_t q_t.
//
// Arrays are packed float32: q, k (B, S, NH, DK); v, h (B, S, NH, DV), but q as v and h as k by value; log_decay
// (B, S, NH, A), A = DK or 1, at most 0; states (B, NH, DK, DV). Computed position by position: for heads of up to 64 that takes no more operations than a
// chunkwise form, and nothing has to be divided by a product of decays. Rows of the state stay in registers over a
// chunk of positions; the backward pass computes the states of a chunk again from the one before it.
// Work is split over B and heads.
#pragma once

#include "simd.h"

namespace mlxhog {

struct DecayShape {
  Index B, S, NH, DK, DV, A;
  float scale;
  bool by_value;

  // Positions from one kept state to the next: the states have as many numbers as v.
  Index chunk() const { return DK < 16 ? 16 : DK > 64 ? 64 : DK; }
  Index chunks() const { return (S + chunk() - 1) / chunk(); }
};

struct DecayInputs {
  const float *q, *k, *v, *log_decay;
  const float* state;  // before the first position, or null: zeros
};

// `kept` (B, NH, chunks, DK, DV) receives the state before every chunk; null where no gradient is wanted.
void decay_forward(const DecayShape&, const DecayInputs&, float* h, float* last, float* kept, int threads);

struct DecayGradients {
  float *q, *k, *v, *log_decay;
  float* state;  // may be null
};

// The exact gradient; d_last, that of the last state, may be null: zeros.
void decay_backward(const DecayShape&, const DecayInputs&, const float* kept, const float* dh, const float* d_last,
                    const DecayGradients&, int threads);

}  // namespace mlxhog
