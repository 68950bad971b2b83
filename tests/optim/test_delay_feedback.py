"""Error feedback on delay: what is added in advance, and that it is taken back exactly."""

import numpy as np

from mlxhog.optim import SGD, AdamW, DelayFeedback, Muon
from mlxhog.optim.delay_feedback import FEEDBACK
from tests.optim.small import BIAS, EMBEDDING, MATRIX, SLOTS, initial, parameter, target
from tests.pairs import each_of

HIDDEN = frozenset({"matrix"})
RULES = {
    "sgd": lambda native: SGD(native=native),
    "adamw": lambda native: AdamW(native=native),
    "adamw, shared moments": lambda native: AdamW(shared=True, native=native),
    "muon": lambda native: Muon(hidden=HIDDEN, native=native),
    "muon, shared moments": lambda native: Muon(hidden=HIDDEN, shared=True, native=native),
}
STEPS, LR = 6, 0.1


def gradients(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(slot.shape, dtype=np.float32) for name, slot in SLOTS.items()}


def trained(optimizer, *shares):
    """Parameters of one worker after a step with each share, and what it has added in advance."""
    flat = initial()
    place = target(optimizer, flat, "matrix")
    for count, share in enumerate(shares, 1):
        optimizer.step(place, gradients(count), lr=LR, step=count, feedback=share)
    return flat, place.private.get(FEEDBACK, np.zeros_like(flat))


@each_of("rule", RULES)
def test_steps_that_are_not_late_are_the_rules_own_bit_for_bit(rule):
    own, _ = trained(RULES[rule](True), *[0.0] * STEPS)
    fed, ahead = trained(DelayFeedback(RULES[rule](True)), *[0.0] * STEPS)
    np.testing.assert_array_equal(fed.view(np.uint32), own.view(np.uint32))
    assert not ahead.any()


def test_whatever_the_shares_were_only_that_of_the_last_step_is_in_the_parameters():
    steps = [gradients(count) for count in range(1, 5)]
    found, ahead = trained(DelayFeedback(SGD(weight_decay=0.0)), 0.5, 0.0, 2.0, 0.75)
    for name, slot in SLOTS.items():
        plain = parameter(initial(), slot) - LR * sum(np.asarray(one[name]) for one in steps)
        last = -LR * np.asarray(steps[-1][name])
        share = 0.0 if name == "embedding" else 0.75  # which is written by rows
        np.testing.assert_allclose(parameter(found, slot), plain + share * last, atol=1e-6)
        np.testing.assert_allclose(parameter(ahead, slot), share * last, atol=1e-6)


def test_one_stream_a_step_late_is_the_published_rule():
    """x(t+1) = x(t) - 2 u(t-1) + u(t-2), where u(t) = lr g(x(t)), on a quadratic."""
    optimizer, curvature = DelayFeedback(SGD(weight_decay=0.0)), np.float32(1.7)
    flat = initial()
    place, begin = target(optimizer, flat), parameter(initial(), MATRIX).astype(np.float64)
    x, u = [begin], [np.zeros_like(begin)]
    history = [parameter(flat, MATRIX).copy()]
    for t in range(12):
        read = max(0, t - 1)
        late = {"matrix": curvature * history[read]}
        optimizer.step(place, late, lr=LR, step=t + 1, feedback=1.0)
        history.append(parameter(flat, MATRIX).copy())
        u.append(LR * float(curvature) * x[read])
        x.append(x[-1] - 2 * u[-1] + u[-2])
    np.testing.assert_allclose(history, x, rtol=2e-5, atol=1e-6)


def test_workers_whose_steps_stay_the_same_are_as_far_ahead_as_steps_are_on_their_way():
    """P workers of which each is P - 1 updates late: F = (P - 1)/P, and P - 1 steps in all."""
    workers = 4
    optimizer, flat = DelayFeedback(SGD(weight_decay=0.0)), initial()
    private = [target(optimizer, flat) for _ in range(workers)]
    ones = {"bias": np.ones(BIAS.shape, np.float32)}
    for turn in range(3 * workers):
        optimizer.step(
            private[turn % workers], ones, lr=LR, step=1 + turn // workers,
            feedback=(workers - 1) / workers,
        )  # fmt: skip
        steps = turn + 1 + min(turn + 1, workers) * (workers - 1) / workers
        expected = parameter(initial(), BIAS) - LR * steps
        np.testing.assert_allclose(parameter(flat, BIAS), expected, rtol=1e-5, atol=1e-6)


def test_with_muon_only_hidden_matrices_count_on_what_is_to_come():
    own, _ = trained(RULES["muon"](True), *[0.0] * STEPS)
    fed, ahead = trained(DelayFeedback(RULES["muon"](True)), *[0.5] * STEPS)
    for slot in (BIAS, EMBEDDING):
        np.testing.assert_array_equal(parameter(fed, slot), parameter(own, slot))
        assert not parameter(ahead, slot).any()
    difference = parameter(fed, MATRIX) - parameter(own, MATRIX)
    assert np.abs(difference).max() > 0.5 * LR * 0.1
    # Weight decay shrinks by what is there, the advance included.
    np.testing.assert_allclose(difference, parameter(ahead, MATRIX), atol=0.1 * LR * 0.1 * STEPS)


@each_of("rule", ["sgd", "adamw"])
def test_the_native_form_gives_the_bits_of_the_reference(rule):
    shares = (0.5, 0.75, 0.0, 0.5)
    native, reference = (
        trained(DelayFeedback(RULES[rule](form), native=form), *shares) for form in (True, False)
    )
    for ours, theirs in zip(native, reference, strict=True):
        np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))
