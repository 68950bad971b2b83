// The selective scan of Mamba: of every channel c a state of N numbers,
//     S_t[c] = exp(dt_t[c] A[c]) S_{t-1}[c] + dt_t[c] u_t[c] Bt_t,   y_t[c] = S_t[c] . Ct_t.
//
// Arrays are packed float32: u, dt, y (B, S, C); A (C, N); Bt, Ct (B, S, N); states (B, C, N). Position by position,
// sixteen channels at once; the backward pass computes the states of a chunk again from the one before it.
// Work is split over B. Source: Gu and Dao 2023, Mamba, arXiv:2312.00752.
#pragma once

#include "lanes.h"

namespace mlxhog {

struct ScanShape {
  Index B, S, C, N;

  static constexpr Index kChunk = 16;  // positions from one kept state to the next
  Index chunks() const { return (S + kChunk - 1) / kChunk; }
  Index kept() const { return B * chunks() * whole_rows() * whole_lanes(C); }  // floats
  Index whole_rows() const { return (N + 3) / 4 * 4; }
};

struct ScanInputs {
  const float *u, *dt, *A, *Bt, *Ct;
  const float* state;  // before the first position, or null: zeros
};

// `kept` receives the state before every chunk, for the backward pass; null where no gradient is wanted.
void scan_forward(const ScanShape&, const ScanInputs&, float* y, float* last, float* kept, int threads);

struct ScanGradients {
  float *u, *dt, *A, *Bt, *Ct;
  float* state;  // may be null
};

// The exact gradient; d_last, that of the last state, may be null: zeros.
void scan_backward(const ScanShape&, const ScanInputs&, const float* kept, const float* dy, const float* d_last,
                   const ScanGradients&, int threads);

}  // namespace mlxhog
