// The mLSTM cell, chunkwise (xLSTM paper arXiv:2405.04517, equations in the module docstring of the twins).
//
// Arrays are C-contiguous float32: q, k (B, S, NH, DK); v, h (B, S, NH, DV); i, f, den (B, S, NH), gates after
// their soft cap. Chunk states are kept instead of S x S matrices: with NC = ceil(S / chunk),
// C (B, NH, NC + 1, DK, DV), n (B, NH, NC + 1, DK), m (B, NH, NC + 1); entry c is the state before chunk c and
// entry NC the final one. The last chunk may be partial. Work is split over B * NH.
#pragma once

#include "simd.h"

namespace mlxhog {

struct MlstmShape {
  Index B, S, NH, DK, DV, chunk;
  float eps;

  Index chunks() const { return (S + chunk - 1) / chunk; }
};

struct MlstmInputs {
  const float *q, *k, *v, *i, *f;
};

// Entry 0 of the states holds the initial state on entry; the rest is written, as are h and the signed
// denominators `den` that the backward pass needs.
struct MlstmResults {
  float *h, *den, *C, *n, *m;
};

void mlstm_forward(const MlstmShape&, const MlstmInputs&, const MlstmResults&, int threads);

// What the backward pass reads of those.
struct MlstmSaved {
  const float *h, *den, *C, *n, *m;
};

// Gradients of the inputs and, in C (B, NH, DK, DV), n (B, NH, DK) and m (B, NH), of the state: the final
// state's gradient on entry, the initial state's on return.
struct MlstmGradients {
  float *q, *k, *v, *i, *f, *C, *n, *m;
};

// The exact gradient.
void mlstm_backward(const MlstmShape&, const MlstmInputs&, const MlstmSaved&, const float* dh,
                    const MlstmGradients&, int threads);

}  // namespace mlxhog
