"""Every numerical tolerance of the tests, with its reason."""

from typing import NamedTuple

import numpy as np


class Tolerance(NamedTuple):
    """Allowed difference: `atol`, plus `of_largest` times the largest entry that is wanted."""

    atol: float = 0.0
    of_largest: float = 0.0


LOGITS_F32 = Tolerance(atol=1e-4)
"""The recorded float32 references differ from float64 by up to 2.3e-5 on logits of order 4."""
LOGITS_BFLOAT16 = Tolerance(of_largest=0.05)
"""8 bits of mantissa, through a few layers: each rounds by up to 0.4 %."""
LOGITS_8BIT = Tolerance(of_largest=0.05)
"""256 steps between the bounds of 64 weights are 0.4 % of the largest each."""
LOGITS_4BIT = Tolerance(of_largest=0.5)
"""16 steps between the bounds of 64 weights: each is off by up to 7 % of the largest, and errors of
random weights add up without a direction."""
ORTHOGONAL_F32 = Tolerance(of_largest=1e-3)
"""float32 factors of squared singular values: what is small beside the largest is off by 1e-7 of
it, and the steps multiply that by up to 500."""
POLAR_DEVICE_F32 = Tolerance(atol=1e-5)
"""The same steps with sums in another order, of order 1; both are off by up to 1e-5, and the device
by less."""
POLAR_GRADED_F32 = {"polar3": Tolerance(of_largest=1e-4), "ns5": Tolerance(of_largest=1e-3)}
"""By method, for singular values of any size: ORTHOGONAL_F32 beside float64; seen: 4e-5 and 6e-4.
"""
APOLLO_GOLDEN = Tolerance(of_largest=1e-6)
"""An independent float64 derivation agrees with the recorded float32 steps to 5e-7."""
SOAP_F32 = Tolerance(of_largest=1e-3)
"""Eigenvectors of neighbouring eigenvalues turn with the rounding of float32, and elements of a
direction near the sign of a small mean with them."""
LOSS_F32 = Tolerance(atol=1e-5)
"""float32 rounding of a mean of order 4."""
GRADIENT_F32 = Tolerance(of_largest=2e-3)
"""Reordering the chunks alone moves the float32 reference by 1.4e-4 of the largest entry."""
STATE_F32 = Tolerance(atol=1e-5, of_largest=1e-4)
"""C and n carry the scale exp(-m), so only their size relative to the largest is meaningful."""
GRADIENT_ANY_F32 = Tolerance(atol=1e-6, of_largest=2e-3)
"""As GRADIENT_F32; but a forget gate without a past has a gradient from eps alone, which is below
the rounding of what cancels, so an absolute part comes on top."""
CELL_F32 = Tolerance(atol=1e-6, of_largest=2e-5)
"""float32 rounding of the cell alone."""
CELL_GRADIENT_F32 = Tolerance(atol=2e-6, of_largest=3e-5)
"""float32 rounding of the cell's gradient, gates of order 5; a term of eps 1e-3 is 100 times it."""
CELL_EXTREME_F32 = Tolerance(of_largest=3e-4)
"""With gates of order 12 the denominator nearly cancels and outputs reach order 100: the recorded
float32 runs are off by 4e-5 of the largest, and MLX's exp adds 1e-6 per term."""
SLSTM_F32 = Tolerance(atol=2e-6, of_largest=5e-6)
"""float32 rounding, carried through a few dozen steps of a recurrence."""
SLSTM_GRADIENT_F32 = Tolerance(atol=2e-6, of_largest=2e-5)
"""As SLSTM_F32, backwards, with sums that cancel."""
OP_F32 = Tolerance(atol=1e-7, of_largest=3e-6)
"""float32 rounding of one operator: elementary functions within 3 ulp, sums of a few hundred."""
SEQUENCE_F32 = Tolerance(atol=1e-6, of_largest=2e-5)
"""float32 rounding of sums over a few dozen positions, carried along a recurrence, and of the angle
of position 1000."""
SEQUENCE_GRADIENT_F32 = Tolerance(atol=2e-6, of_largest=3e-5)
"""As SEQUENCE_F32, backwards, with sums that cancel."""
CAUSAL_F32 = Tolerance(atol=2e-6, of_largest=2e-6)
"""A transform of the whole sequence rounds with what comes later; a token that is seen moves logits
by 1e-2 and more."""
LOSS_BF16 = Tolerance(atol=5e-3)
"""Products of 8 bits, whose errors partly cancel over the tokens."""
GRADIENT_BF16 = Tolerance(atol=3e-2)
"""Of the whole gradient's size: products of 8 bits, 4e-3 each, through a few blocks and back."""
PRODUCT_F32 = Tolerance(of_largest=1e-5)
"""float32 sums of up to 32,000 products in groups of 256: rounding grows with their root."""
OP_GRADIENT_F32 = Tolerance(atol=1e-6, of_largest=1e-5)
"""As OP_F32, of sums over a few hundred positions that partly cancel."""
INITIAL_F32 = Tolerance(of_largest=3e-7)
"""float32 powers by the package, float64 by us and rounded once."""
FLOAT64 = Tolerance(atol=1e-9)
"""Two float64 programs, outputs of order 1."""
FLOAT64_CELL = Tolerance(atol=1e-11, of_largest=1e-9)
"""Two float64 programs, outputs of any order."""
FINITE_DIFFERENCE = Tolerance(atol=2e-9, of_largest=1e-6)
"""Central differences with step 1e-6 of a float64 loss of order 1."""
STEP_LOSSES_F32 = Tolerance(atol=3e-4)
"""24 steps of AdamW in float32 were apart by up to 4e-5; a mistake in the schedule, the decay or
the order of rows moves a loss by more than 3e-3."""
CLASSIC_STEP_F32 = Tolerance(atol=1e-6)
"""One float32 step of weights of order 1, recorded in float64."""
FITTED_STATISTIC = Tolerance(of_largest=0.05)
"""Generated data resemble a published set; its counts are met to 5 %."""
RECORDED_F32 = Tolerance(of_largest=1e-6)
"""Recorded in float64 from data that are stored in float32 here."""
SGD_TRACE_F32 = Tolerance(of_largest=1e-3)
"""float32 steps beside recorded float64 ones: a row whose margin is within rounding of 1 falls on
the other side of the hinge, which moves a mean of thousands of rows by less than this."""
LOSS_OF_OTHER_DRAWS = Tolerance(of_largest=0.03)
"""100,000 rows of the same law drawn anew: losses of five seeds are up to 2 % apart."""
TWO_DIVISIONS = Tolerance(atol=1e-12)
"""One ratio of counts by two orders of float64 divisions."""
SIMULATED_RATE = Tolerance(of_largest=0.025)
"""Of 8000 simulated rounds of straggling workers the mean time has a standard error of 0.7 % or
less."""
CLASSIC_NEAR_SERIAL = Tolerance(of_largest=0.15)
"""The objective of a small noisy SVM after a dozen epochs: the order of examples alone moves
serial's by 3 %, 8 seeds, and with three workers by 6 %."""
SIMPLEX_F32 = Tolerance(atol=1.6e-4)
"""float32 sums of up to 40 entries of up to 2: each addition below 80 rounds by up to 3.8e-6."""
COMPLETION_RMSE = Tolerance(atol=1.5e-3)
"""The recorded runs drew other initial values and shuffles: over five seeds ours spread by 7e-4."""
CUT_NEAR_SERIAL = Tolerance(of_largest=0.04)
"""Of a small cut of five labels; the order of edges alone moves serial's by 2 %, 4 seeds."""
COMPLETION_NEAR_SERIAL = Tolerance(of_largest=0.1)
"""The objective on 16,000 ratings; the order of examples moves serial's by 1.8 % (8 seeds), workers
that wait for a busy core by 5 %; without training it is 25 % off."""
BASELINE_DISTANCE = Tolerance(of_largest=2e-3)
"""How far 8 steps move parameters: with kernels of AVX2 in torch and NumPy 77 of 79 distances
stayed, and those of SOAP were off by 1.6e-4."""
BASELINE_SUMS = Tolerance(of_largest=0.1)
"""Of the distance: sums of movements with random signs. The same kernels moved 40 steps of `minute`
by 2 % of the distance, 8 steps of SOAP by 2e-5; another way is off by about the distance."""


def assert_close(actual, expected, tolerance, *, label=""):
    """Fail, naming the worst entry, unless `actual` is finite and within the tolerance."""
    a, w = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert a.shape == w.shape, f"{label}: shape {a.shape}, wanted {w.shape}"
    assert np.isfinite(a).all(), f"{label}: not finite"
    if not w.size:
        return
    allowed = tolerance.atol + tolerance.of_largest * np.abs(w).max()
    worst = np.abs(a - w).max()
    assert worst <= allowed, f"{label}: differs by {worst:.3g}, allowed {allowed:.3g}"


OP_BF16 = Tolerance(of_largest=2.0**-7)
"""Roundings to 8 bits, 2^-8 each, that go the other way where float32 and float64 are apart: one of
a result, one of a product before its bias."""
OP_GRADIENT_BF16 = Tolerance(atol=1e-6, of_largest=2.0**-6)
"""Gradients that frameworks round to 8 bits after each matmul, and native code as factors only."""
