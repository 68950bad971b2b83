// One step of the mLSTM cells of a few sequences, in the recurrent form (equations in models/xlstm_large/model.py).
#pragma once

#include "simd.h"

namespace mlxhog {

// Pre-activations i, f (rows, heads) after any cap. Head j of row r has q, k and v at r * stride + j * D of theirs.
struct CellInputs {
  const float *q, *k, *v;
  Index qk_stride, v_stride;
  const float *i, *f;
};

// States: C (heads, DK, DV), n (heads, DK), m (heads) of a row one after another, rows `stride` floats apart. `after`
// may be `before`. h is (rows, heads, DV), packed.
void mlstm_step(Index rows, Index heads, Index DK, Index DV, float eps, const CellInputs& in, const float* before,
                float* after, Index stride, float* h, int threads);

}  // namespace mlxhog
