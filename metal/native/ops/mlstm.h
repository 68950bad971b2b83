// The mLSTM cell, chunkwise (xLSTM paper arXiv:2405.04517, equations in models/mad/layers/xlstm.py).
//
// Arrays are C-contiguous float32: q, k (B, S, NH, DK); v, h (B, S, NH, DV); i, f, den (B, S, NH), gates after
// their soft cap. Chunk states are kept instead of S x S matrices: with NC = ceil(S / chunk), n (B, NH, NC + 1, DK)
// and m (B, NH, NC + 1); entry c is of the state before chunk c and entry NC of the final one. The last chunk may be
// partial. C (B, NH, ceil(NC / stride) + 1, DK, DV) is kept before every `stride`-th chunk, and after the last.
// Work is split over B * NH.
#pragma once

#include "simd.h"

namespace mlxhog {

struct MlstmShape {
  Index B, S, NH, DK, DV, chunk, stride;
  float eps;

  Index chunks() const { return (S + chunk - 1) / chunk; }
  Index matrices() const { return (chunks() + stride - 1) / stride + 1; }
  // Where the C before chunk c is kept; -1 for one that is not.
  Index matrix(Index c) const { return c == chunks() ? matrices() - 1 : c % stride ? -1 : c / stride; }
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

// The part of the results that the backward pass reads.
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
