// The sLSTM cell over a whole sequence, and its gradient (equations in models/layers/xlstm.py).
//
// Arrays are C-contiguous float32: i, f, z, o, h (B, S, NH, DH), R (NH, 4 DH, DH) with rows gate by gate, b
// (4, NH, DH), states (B, NH, DH). Work is split over heads, and over sequences where threads are left; each
// result has the same bits for any number of threads.
#pragma once

#include <cstdint>

#include "simd.h"

namespace mlxhog {

struct SlstmShape {
  Index B, S, NH, DH;  // each at least 1

  Index width() const { return NH * DH; }                                                  // of a position
  Index at(Index b, Index t, Index head) const { return ((b * S + t) * NH + head) * DH; }  // first unit
};

struct SlstmInputs {
  const float *i, *f, *z, *o, *R, *b;
  const std::uint8_t* starts;  // (B, S), not 0 where a document starts; null: nowhere
};

struct SlstmState {
  float *h, *c, *n, *m;
};

// Values of a step, of each unit, for the backward pass; the tape is (B, S, NH, kSlstmTape, DH).
enum SlstmTape : Index { kWrite, kKeep, kForget, kTanhZ, kSigmoidO, kC, kN, kSlstmTape };

// Writes h, and the tape unless it is null. `state` holds the initial state on entry, the final one on return.
void slstm_forward(const SlstmShape&, const SlstmInputs&, const SlstmState& state, float* h, float* tape, int threads);

}  // namespace mlxhog
