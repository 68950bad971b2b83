"""Steps that are written in part, or in advance: what is written, what waits, nothing forgotten."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlxhog.optim import SGD, AdamW, DelayFeedback, Momentum, Muon, Sparsified, Use
from mlxhog.optim.delay_feedback import FEEDBACK
from mlxhog.optim.sparsified import RESIDUAL, Selection, take
from tests.optim.small import (
    EMBEDDING,
    HIDDEN,
    MATRIX,
    SLOTS,
    N,
    dense_gradients,
    initial,
    parameter,
    target,
    trained,
)
from tests.pairs import each_of

SHARED = Use(hidden=HIDDEN, shared=True)
TENTH = Selection("topk", 0.1)
RULES = {
    "sgd": SGD(weight_decay=0.1),
    "momentum": Momentum(weight_decay=0.1),
    "adamw": AdamW(weight_decay=0.1),
    "adamw-shared": AdamW(use=SHARED),
    "muon": Muon(use=Use(hidden=HIDDEN)),
    "muon-shared": Muon(use=SHARED),
}
LR = 0.1


@each_of("name", ["sgd", "momentum", "adamw"])
def test_a_share_of_one_is_dense_training_bit_for_bit(name):
    dense, where = trained(RULES[name])
    sparse, other = trained(Sparsified(RULES[name], Selection("topk", 1.0)))
    np.testing.assert_array_equal(sparse.view(np.uint32), dense.view(np.uint32))
    assert not other.private[RESIDUAL].any()
    for segment, moments in where.private.items():
        np.testing.assert_array_equal(other.private[segment], moments)


def test_what_was_written_and_what_waits_is_every_step_that_was_taken():
    optimizer, flat = Sparsified(SGD(), TENTH), np.zeros(N, np.float32)
    place, total = target(optimizer, flat), np.zeros(MATRIX.shape, np.float32)
    rng = np.random.default_rng(0)
    for step in range(1, 40):
        grad = rng.integers(-8, 9, MATRIX.shape).astype(np.float32)  # sums of these are exact
        total -= grad
        optimizer.step(place, {"matrix": grad}, lr=1.0, step=step)
        waiting = parameter(place.private[RESIDUAL], MATRIX)
        np.testing.assert_array_equal(parameter(flat, MATRIX) + waiting, total)
    assert np.count_nonzero(waiting) > 0


# -- what a selection takes ------------------------------------------------------------------------

SELECTIONS = [Selection("topk", f) for f in (1e-9, 0.1, 0.5, 1.0)]
SELECTIONS += [Selection("threshold", f) for f in (0.5, 1.0, 3.0)]
# Few different values, so that there are ties; both zeros, and what AdamW could never give.
values = st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.75, 1.5, -1.5, 4.5, 1e-40, -3e38, np.inf])


@given(
    pending=arrays.arrays(np.float32, N, elements=st.one_of(values, st.floats(width=32))),
    rows=st.none() | st.sets(st.integers(0, 10)),
    selection=st.sampled_from(SELECTIONS),
    keep=st.booleans(),
)
def test_a_selection_takes_what_its_definition_takes(pending, rows, selection, keep):
    pending = np.nan_to_num(pending, nan=7.0, posinf=np.inf, neginf=-np.inf)
    index = None if rows is None else np.array(sorted(rows), np.int32)
    expected, left = pending.copy(), pending.copy()
    flat = parameter(expected, EMBEDDING).reshape(-1)
    places = np.arange(55).reshape(11, 5)[slice(None) if rows is None else index].reshape(-1)
    size = np.abs(flat[places])
    if selection.kind == "threshold":
        chosen = np.flatnonzero(size >= np.float32(selection.share * 1.5))
    else:
        largest = np.argsort(-size, kind="stable")
        chosen = np.sort(largest[: math.ceil(selection.share * len(places))])
    taken = places[chosen[size[chosen] > 0]]
    values = flat[taken]
    flat[taken if keep else places] = 0
    results = take(selection, left, EMBEDDING, index, lr=1.5, keep=keep)
    for ours, defined in zip((*results, left), (taken, values, expected), strict=True):
        np.testing.assert_array_equal(ours, defined)


# -- in advance of what is late --------------------------------------------------------------------


def fed(optimizer, *shares):
    """Parameters of one worker after a step with each share, and what it has added in advance."""
    flat = initial()
    place = target(optimizer, flat, "matrix")
    for count, share in enumerate(shares, 1):
        optimizer.step(place, dense_gradients(count), lr=LR, step=count, feedback=share)
    return flat, place.private.get(FEEDBACK, np.zeros_like(flat))


@each_of("name", ["sgd", "adamw", "adamw-shared", "muon", "muon-shared"])
def test_steps_that_are_not_late_are_the_rules_own_bit_for_bit(name):
    own, _ = fed(RULES[name], *[0.0] * 6)
    ours, ahead = fed(DelayFeedback(RULES[name]), *[0.0] * 6)
    np.testing.assert_array_equal(ours.view(np.uint32), own.view(np.uint32))
    assert not ahead.any()


def test_whatever_the_shares_were_only_that_of_the_last_step_is_in_the_parameters():
    steps = [dense_gradients(count) for count in range(1, 5)]
    flat, ahead = fed(DelayFeedback(SGD(weight_decay=0.0)), 0.5, 0.0, 2.0, 0.75)
    for name, slot in SLOTS.items():
        plain = parameter(initial(), slot) - LR * sum(one[name] for one in steps)
        last = -LR * steps[-1][name]
        share = 0.0 if name == "embedding" else 0.75  # which is written by rows
        np.testing.assert_allclose(parameter(flat, slot), plain + share * last, atol=1e-6)
        np.testing.assert_allclose(parameter(ahead, slot), share * last, atol=1e-6)
