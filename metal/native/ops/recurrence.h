// The linear recurrence S_t = D_t S_{t-1} - removed_t + k_t v_t^T, h_t = scale S_t^T q_t, where D_t is
// diag(exp(log_decay_t)) and removed_t what is taken from the value that a key reads:
//
//   none     0                                                            linear attention with a gate
//   own_key  beta_t k_t (D_t S_{t-1})^T k_t)^T, and beta_t v_t is written   the delta rule
//   free     removal_t (S_{t-1}^T read_t)^T                               a diagonal matrix plus one of rank 1
//
// By value, without removal alone, h_t = scale S_t q_t: q is as v and h as k. log_decay is at most 0, for each key
// component or for the whole head. Computed position by position, sixteen columns of the state at once: for heads of up
// to 64 that takes no more operations than a chunkwise form, and nothing has to be divided by a product of decays. The
// backward pass needs, besides the inputs, the state before every chunk and the values that were read; it computes the
// states of a chunk again from the one before it. Work is split over B and heads. Sources: Yang et al. 2024, arXiv:2312.06635,
// arXiv:2406.06484 and arXiv:2412.06464; Peng et al. 2025, arXiv:2503.14456; Kimi Team 2025, arXiv:2510.26692.
#pragma once

#include "simd.h"

namespace mlxhog {

enum class Removal { none, own_key, free };

struct RecurrenceShape {
  Index B, S, NH, DK, DV, A;
  Removal removal = Removal::none;
  float scale = 1.0f;
  bool by_value = false;

  // Positions from one kept state to the next: the states have as many numbers as v.
  Index chunk() const { return DK < 16 ? 16 : DK > 64 ? 64 : DK; }
  Index chunks() const { return (S + chunk() - 1) / chunk(); }
};

}  // namespace mlxhog
