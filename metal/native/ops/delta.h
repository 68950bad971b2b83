// The gated delta rule: a_t = exp(log_decay_t), S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,
// h_t = S_t^T q_t.
//
// Arrays are packed float32: q, k (B, S, NH, DK); v, h (B, S, NH, DV); log_decay, beta (B, S, NH); states
// (B, NH, DK, DV). Position by position, sixteen columns of the state at once; the backward pass needs, besides
// the inputs, the state before every chunk and held_t = a_t S_{t-1}^T k_t. Work is split over B and heads.
// Sources: Yang et al. 2024, arXiv:2406.06484 and arXiv:2412.06464.
#pragma once

#include "simd.h"

namespace mlxhog {

struct DeltaShape {
  Index B, S, NH, DK, DV;

  // Positions from one kept state to the next: the states have as many numbers as v.
  Index chunk() const { return DK < 16 ? 16 : DK > 64 ? 64 : DK; }
  Index chunks() const { return (S + chunk() - 1) / chunk(); }
};

struct DeltaInputs {
  const float *q, *k, *v, *log_decay, *beta;
  const float* state;  // before the first position, or null: zeros
};

// `kept` (B, NH, chunks, DK, DV) and `held` (as v) are for the backward pass; null where no gradient is wanted.
void delta_forward(const DeltaShape&, const DeltaInputs&, float* h, float* last, float* kept, float* held, int threads);

struct DeltaGradients {
  float *q, *k, *v, *log_decay, *beta;
  float* state;  // may be null
};

// The exact gradient; d_last, that of the last state, may be null: zeros.
void delta_backward(const DeltaShape&, const DeltaInputs&, const float* kept, const float* held, const float* dh,
                    const float* d_last, const DeltaGradients&, int threads);

}  // namespace mlxhog
