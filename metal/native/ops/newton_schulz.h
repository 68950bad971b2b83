// Newton-Schulz orthogonalization, for Muon: about the polar factor of a matrix, its singular vectors with singular
// values near 1.
#pragma once

#include "simd.h"

namespace mlxhog {

// One step X <- (a I + b A + c A^2) X with A = X X^T: singular values s become a s + b s^3 + c s^5.
struct NewtonSchulzStep {
  float a, b, c;
};

// u = scale * newton_schulz(x), both (rows, cols) row-major; x is scaled to length 1 / 1.01 first. All steps are taken
// in matrices of the smaller side, which are polynomials of the first A: symmetric, so one triangle of them is
// computed, and X is multiplied once (see mlxhog/optim/muon.py). A matrix shorter than 1e-30 gives zeros. One thread;
// bits depend on the processor and nothing else.
void newton_schulz(Index rows, Index cols, float* x, float* u, const NewtonSchulzStep* steps, int n_steps,
                   float scale);

}  // namespace mlxhog
