// The sLSTM cell over a whole sequence, and its gradient (equations in models/layers/xlstm.py).
//
// R (NH, 4 DH, DH) has rows gate by gate, b is (4, NH, DH). Work is split over heads, and over sequences where threads
// are left; each result has the same bits for any number of threads.
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

// Values of a step, of each unit, that are saved for the backward pass: (B, S, NH, kSlstmSaved, DH).
enum SlstmValue : Index { kWrite, kKeep, kForget, kTanhZ, kSigmoidO, kC, kN, kSlstmSaved };

// Writes h, and the saved values unless `values` is null. `state` holds the initial state on entry, the final one on
// return.
void slstm_forward(const SlstmShape&, const SlstmInputs&, const SlstmState& state, float* h, float* values, int threads);

}  // namespace mlxhog
