// The ridge regression of every position: S_t = exp(log_decay_t) S_{t-1} + k_t k_t^T, x_t = (S_t + diag(ridge))^-1 q_t.
//
// Arrays are packed float32: q, k, x (B, S, NH, D); log_decay (B, S, NH, 1), at most 0; ridge (NH, D), above 0; states
// (B, NH, D, D). Conjugate gradients solve each position while its S lies in the cache: they end after `steps` steps,
// or when the rest is 1e-7 of q. Work is split over B and heads.
#pragma once

#include "recurrence.h"

namespace mlxhog {

struct RegressionInputs {
  const float *q, *k, *log_decay, *ridge;
  const float* state;  // before the first position, or null: zeros
};

// RecurrenceShape has DK = DV = D. `last` may be null; `kept`, which may be null, is that of recurrence_forward, for
// recurrence_backward.
void regression(const RecurrenceShape&, const RegressionInputs&, Index steps, float* x, float* last, float* kept,
                int threads);

}  // namespace mlxhog
