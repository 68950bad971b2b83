// The delta rule whose transition is a diagonal matrix plus one of rank 1: w_t = exp(log_decay_t),
// x_t = S_{t-1}^T read_t, S_t = diag(w_t) S_{t-1} - removal_t x_t^T + k_t v_t^T, h_t = S_t^T q_t.
//
// Arrays as in delta.h; log_decay, read and removal as k. Position by position, sixteen columns of the state at once;
// the backward pass needs, besides the inputs, the state before every chunk and every x_t.
// Sources: Peng et al. 2025, arXiv:2503.14456; Kimi Team 2025, arXiv:2510.26692.
#pragma once

#include "delta.h"

namespace mlxhog {

struct DplrInputs {
  const float *q, *k, *v, *log_decay, *read, *removal;
  const float* state;  // before the first position, or null: zeros
};

// `kept` (B, NH, chunks, DK, DV) and `held`, every x_t, (as v) are for the backward pass; null where no gradient is
// wanted.
void dplr_forward(const DeltaShape&, const DplrInputs&, float* h, float* last, float* kept, float* held, int threads);

struct DplrGradients {
  float *q, *k, *v, *log_decay, *read, *removal;
  float* state;  // may be null
};

// The exact gradient; d_last, that of the last state, may be null: zeros.
void dplr_backward(const DeltaShape&, const DplrInputs&, const float* kept, const float* held, const float* dh,
                   const float* d_last, const DplrGradients&, int threads);

}  // namespace mlxhog
