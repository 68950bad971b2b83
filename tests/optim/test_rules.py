"""The laws of gradients and of every optimizer: formula, ways to write, rows, state, refusals."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlxhog.config.components import OPTIMIZERS
from mlxhog.errors import ShapeError
from mlxhog.optim import (
    SGD,
    AdamW,
    Adan,
    DelayFeedback,
    GroupedRates,
    Momentum,
    RunContext,
    Sparsified,
)
from mlxhog.optim.component import SharedMoments
from mlxhog.optim.delay_feedback import FEEDBACK
from mlxhog.optim.gradients import GradientSum, Rows, clip_factor, global_norm
from mlxhog.optim.rule import StepTrace, parameter
from mlxhog.optim.sparsified import RESIDUAL, Selection, pop_selected
from mlxhog.optim.updates import WRITE_MODES
from tests.metal.shared import shared
from tests.optim.small import (
    BIAS,
    EMBEDDING,
    HIDDEN,
    MATRIX,
    SLOTS,
    N,
    dense_gradients,
    initial,
    target,
    trained,
)
from tests.optim.small import gradients as drawn
from tests.pairs import each_of

LR, DECAY, SCALE = 0.05, 0.2, 0.5
USE = RunContext(hidden=HIDDEN)
SHARED = RunContext(hidden=HIDDEN, shared=True)
OWN = {"apollo": {"rank": 3, "every": 3}, "soap": {"every": 3}}
PLAIN = {
    name: partial(kind, run=USE, **OWN.get(name, {})) for name, kind in OPTIMIZERS.known().items()
}
PLAIN |= {
    f"{name}-shared": partial(kind.func, run=SHARED)
    for name, kind in PLAIN.items()
    if issubclass(kind.func, SharedMoments)
}
TENTH = Selection("topk", 0.1)
FACTORS = {"embedding": 12.0, "bias": 1.5}


def sparsified(name, selection=TENTH, **more):
    return lambda **how: Sparsified(PLAIN[name](**how), selection, **more)


WRAPPED = {
    **{f"{name}, a tenth": sparsified(name) for name in ("sgd", "momentum", "adamw")},
    "adamw, long steps": sparsified("adamw", Selection("threshold", 1.3)),
    "momentum, the rest dropped": sparsified("momentum", error_feedback=False),
    "adamw, ahead": lambda **how: DelayFeedback(AdamW(**how)),
    "adan, groups": lambda **how: GroupedRates(Adan(**how), FACTORS),
}
RULES = PLAIN | WRAPPED
each_plain = each_of("name", PLAIN)
each_rule = each_of("name", RULES)


def same_bits(where, other):
    for kind in ("private", "shared"):
        for name, value in getattr(where, kind).items():
            np.testing.assert_array_equal(value, getattr(other, kind)[name], err_msg=name)
    np.testing.assert_array_equal(where.flat.view(np.uint32), other.flat.view(np.uint32))


@each_of("mode", WRITE_MODES)
@each_of("recorded", [False, True], ids=["", "recorded"])
@each_plain
def test_every_way_to_write_gives_the_same_bits_with_one_worker(name, recorded, mode):
    rule, flat = PLAIN[name](weight_decay=DECAY), initial()
    plain = target(rule, flat, "matrix")
    trace = StepTrace(np.zeros_like(flat), np.zeros_like(flat))
    with shared(len(flat), 16) as segment:
        segment.floats[...] = flat
        where = replace(
            target(rule, segment.floats, "matrix"),
            locks=segment.locks(1) if mode == "lossless" else None,
            mode=WRITE_MODES[mode],
            record=trace if recorded else None,
            threads=2,
        )
        rows = Rows(np.array([1, 4], np.int32), drawn(3)["matrix"][:2])  # of a dense parameter
        for step in (1, 2, 3):
            grads = drawn(step) | ({"matrix": rows} if step == 3 else {})
            for place in (plain, where):
                rule.step(place, grads, lr=LR, step=step, seed=step)
        same_bits(plain, where)
        assert not segment.words.any()
    for steps in trace if recorded else ():
        assert parameter(steps, MATRIX).any()
        assert not parameter(steps, EMBEDDING).any()


@each_rule
def test_rows_that_a_gradient_does_not_touch_keep_their_values_and_state(name):
    flat, where = trained(RULES[name](weight_decay=DECAY), 2)
    touched = {2, 4, 7}
    moved = parameter(flat, EMBEDDING) != parameter(initial(), EMBEDDING)
    assert {*np.flatnonzero(moved.any(axis=1)).tolist()} <= touched
    assert moved.any()
    for state in (*where.private, *where.shared):
        segments = where.private | where.shared
        slot = where.places.get(state, where.slots).get("embedding")
        if slot is not None and slot.shape == EMBEDDING.shape:
            rows = parameter(segments[state], slot).any(axis=1)
            assert {*np.flatnonzero(rows).tolist()} <= touched, state


@each_rule
def test_a_run_that_is_resumed_with_its_state_takes_the_same_steps(name):
    rule = RULES[name](weight_decay=DECAY)
    share = {"feedback": 0.5} if name.endswith("ahead") else {}
    _, whole = trained(rule, 7, **share)
    flat, before = trained(rule, 4, **share)
    resumed, fresh = RULES[name](weight_decay=DECAY), flat.copy()
    where = target(resumed, fresh, "matrix", "embedding")
    for kind in ("private", "shared"):
        for segment, value in getattr(before, kind).items():
            getattr(where, kind)[segment][...] = value
    for step in range(5, 8):
        resumed.step(where, drawn(step), lr=0.1, step=step, seed=step, **share)
    same_bits(where, whole)


@each_of("name", ["muon", "soap", "apollo"])
def test_a_gradient_of_rows_of_a_hidden_matrix_counts_as_zero_in_the_others(name):
    rows = Rows(np.array([1, 4], np.int32), drawn(3)["matrix"][:2])
    whole = np.zeros(MATRIX.shape, np.float32)
    whole[rows.index] = rows.values

    def moved(grad):
        return trained(PLAIN[name](), grads=lambda step: {"matrix": grad})[0]

    np.testing.assert_array_equal(moved(rows), moved(whole))


def row(number, width=5, dtype=np.int32):
    return Rows(np.array([number], dtype), np.zeros((1, width), np.float32))


BAD_GRADIENTS = [
    ("nobody", np.zeros(9, np.float32)),
    ("bias", np.zeros(8, np.float32)),
    ("bias", np.zeros(9, np.float64)),
    ("bias", np.zeros(18, np.float32)[::2]),  # strided
    *(("embedding", bad) for bad in (row(0, width=4), row(11), row(-1), row(1, dtype=np.int64))),
]


@each_rule
def test_a_gradient_that_does_not_fit_is_refused_before_anything_is_written(name):
    rule, flat = RULES[name](), initial()
    for bad, grad in BAD_GRADIENTS:
        with pytest.raises(ShapeError, match=bad):
            rule.step(target(rule, flat), {**dense_gradients(1), bad: grad}, lr=0.1, step=1)
    np.testing.assert_array_equal(flat, initial())


@each_of("name", ["adamw", "apollo", "muon-shared"])
def test_each_group_moves_as_the_whole_model_would_with_its_learning_rate(name):
    rule = PLAIN[name]()
    grouped, _ = trained(GroupedRates(rule, FACTORS), 3)
    for slot in SLOTS.values():
        alone, _ = trained(rule, 3, lr=0.1 * FACTORS.get(slot.name, 1.0))
        np.testing.assert_array_equal(parameter(grouped, slot), parameter(alone, slot))


def lion(w, grads):
    m = np.zeros_like(w)
    for g in grads:
        w -= LR * (np.sign(0.9 * m + 0.1 * g) + DECAY * w)
        m = 0.95 * m + 0.05 * g
    return w


def adan(w, grads):
    """Algorithm 1 of the paper with the authors' bias corrections, in the paper's letters."""
    prev, (m, v, n) = None, (np.zeros_like(w) for _ in range(3))
    b1, b2, b3 = 0.9, 0.92, 0.95
    for k, g in enumerate(grads, 1):
        d = np.zeros_like(g) if prev is None else g - prev
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
        eta = LR / (np.sqrt(n / (1 - b3**k)) + 1e-8)
        w = (w - eta * (m / (1 - b1**k) + b2 * v / (1 - b2**k))) / (1 + LR * DECAY)
        prev = g
    return w


@pytest.mark.parametrize(("name", "formula"), [("lion", lion), ("adan", adan)])
def test_steps_are_those_of_the_formula(name, formula):
    flat, _ = trained(PLAIN[name](weight_decay=DECAY), 20, lr=LR, grad_scale=SCALE)
    grads = [SCALE * drawn(step)["matrix"].astype(np.float64) for step in range(1, 21)]
    expected = formula(parameter(initial(), MATRIX).astype(np.float64), grads)
    np.testing.assert_allclose(parameter(flat, MATRIX), expected, rtol=1e-5, atol=1e-6)


def test_soap_without_bases_takes_steps_of_the_learning_rate_after_the_first(monkeypatch):
    monkeypatch.setattr("mlxhog.optim.soap.MAX_SIDE", 2)
    before = parameter(initial(), MATRIX)
    for steps in range(1, 5):
        flat, _ = trained(PLAIN["soap"](weight_decay=0.0), steps, lr=LR, grads=lambda step: {
            "matrix": np.full(MATRIX.shape, 3.0, np.float32)
        })  # fmt: skip
        moved = before - parameter(flat, MATRIX)
        np.testing.assert_allclose(moved, (steps - 1) * LR, rtol=1e-4, atol=1e-6)


TORCH = {
    "sgd": (SGD(weight_decay=DECAY), torch.optim.SGD, {}),
    "momentum": (Momentum(momentum=0.8, weight_decay=DECAY), torch.optim.SGD, {"momentum": 0.8}),
    **{
        f"adamw, shared {shared}": (
            AdamW(
                beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=DECAY, run=RunContext(shared=shared)
            ),
            torch.optim.AdamW,
            {"betas": (0.9, 0.95), "eps": 1e-8},
        )
        for shared in (False, True)
    },
}
# float32 steps of order LR, summed over 25 of them: torch multiplies by 1 - lr * decay where we
# subtract the product, and divides by bias corrections in another order.
TORCH_F32 = {"rtol": 2e-5, "atol": 2e-6}


@each_of("most", [0.0, 0.5], ids=["unclipped", "clipped"])
@each_of("name", TORCH)
def test_dense_steps_with_clipping_and_decay_groups_equal_torchs(name, most):
    ours, theirs, options = TORCH[name]
    flat = initial()
    to = target(ours, flat, "matrix")
    w, b = (torch.tensor(parameter(flat, slot).copy()) for slot in (MATRIX, BIAS))
    groups = [{"params": [w], "weight_decay": DECAY}, {"params": [b], "weight_decay": 0.0}]
    theirs = theirs(groups, lr=LR, **options)
    for step in range(1, 26):
        grads = {name: drawn(step)[name] for name in ("matrix", "bias")}
        scale = clip_factor(global_norm(grads), most)
        ours.step(to, grads, lr=LR, step=step, seed=step, grad_scale=scale)
        w.grad, b.grad = map(torch.tensor, grads.values())
        if most:
            torch.nn.utils.clip_grad_norm_([w, b], most)
        theirs.step()
    np.testing.assert_allclose(parameter(flat, MATRIX), w.numpy(), **TORCH_F32)
    np.testing.assert_allclose(parameter(flat, BIAS), b.numpy(), **TORCH_F32)


def test_rows_equal_torchs_sparse_adam():
    ours, flat = AdamW(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0), initial()
    to = target(ours, flat)
    table = torch.nn.Parameter(torch.tensor(parameter(flat, EMBEDDING).copy()))
    theirs = torch.optim.SparseAdam([table], lr=LR, betas=(0.9, 0.95), eps=1e-8)
    rng = np.random.default_rng(1)
    for step in range(1, 26):
        index = rng.integers(0, 9, 6).astype(np.int32)  # rows 9 and 10 never; duplicates likely
        values = rng.standard_normal((6, 5), dtype=np.float32)
        ours.step(to, {"embedding": Rows(index, values)}, lr=LR, step=step)
        place, grad = torch.tensor(index[None, :]), torch.tensor(values)
        table.grad = torch.sparse_coo_tensor(place, grad, EMBEDDING.shape, check_invariants=True)
        theirs.step()
    np.testing.assert_allclose(parameter(flat, EMBEDDING), table.detach().numpy(), **TORCH_F32)


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
    results = pop_selected(selection, left, EMBEDDING, index, lr=1.5, keep=keep)
    for ours, defined in zip((*results, left), (taken, values, expected), strict=True):
        np.testing.assert_array_equal(ours, defined)


def test_whatever_the_shares_were_only_that_of_the_last_step_is_in_the_parameters():
    steps = [dense_gradients(count) for count in range(1, 5)]
    rule, flat = DelayFeedback(SGD(weight_decay=0.0)), initial()
    place = target(rule, flat, "matrix")
    for count, share in enumerate((0.5, 0.0, 2.0, 0.75), 1):
        rule.step(place, steps[count - 1], lr=0.1, step=count, feedback=share)
    for name, slot in SLOTS.items():
        plain = parameter(initial(), slot) - 0.1 * sum(one[name] for one in steps)
        last = -0.1 * steps[-1][name]
        share = 0.0 if name == "embedding" else 0.75  # which is written by rows
        np.testing.assert_allclose(parameter(flat, slot), plain + share * last, atol=1e-6)
        ahead = parameter(place.private[FEEDBACK], slot)
        np.testing.assert_allclose(ahead, share * last, atol=1e-6)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 20))
def test_coalesced_rows_ascend_and_mean_the_same(index, width):
    values = np.random.default_rng(0).standard_normal((len(index), width), dtype=np.float32)
    rows = Rows(np.array(index, np.int32), values)
    once = rows.coalesced()
    assert once.index.dtype == np.int32
    np.testing.assert_array_equal(once.index, np.unique(index))
    whole = np.zeros((10, width), np.float32)
    np.add.at(whole, rows.index, rows.values)
    np.testing.assert_array_equal(once.values, whole[once.index])


@pytest.mark.parametrize(("index", "values"), [((3,), (2, 4)), ((2, 1), (2, 4)), ((2,), (2,))])
def test_index_and_values_must_belong_together(index, values):
    with pytest.raises(ShapeError, match="wanted"):
        Rows(np.zeros(index, np.int32), np.zeros(values, np.float32))


def test_a_gradient_sum_copies_because_backends_reuse_their_arrays():
    reused = {"w": np.full(3, 1.0, np.float32)}
    rows = Rows(np.array([2, 0], np.int32), np.ones((2, 2), np.float32))
    total = GradientSum()
    total.add({**reused, "e": rows}, 0.5)
    reused["w"][:] = 4.0
    rows.index[:] = 3, 0
    rows.values[:] = 3.0
    total.add({**reused, "e": rows}, 0.25)
    grads = total.grads()
    np.testing.assert_array_equal(grads["w"], 1.5)
    np.testing.assert_array_equal(grads["e"].index, [0, 2, 3])
    np.testing.assert_array_equal(grads["e"].values, [[1.25, 1.25], [0.5, 0.5], [0.75, 0.75]])
