"""Muon: what its polynomials do to singular values, native and reference, and who is hidden."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from mlxhog import _native, optim
from mlxhog.errors import ConfigError
from mlxhog.metal.kernels.step_rules import muon_hp
from mlxhog.models import families
from mlxhog.models.families import read
from mlxhog.models.registry import load_architecture
from mlxhog.optim import AdamW, Muon, Sparsified
from mlxhog.optim.gradients import Rows
from mlxhog.optim.muon import (
    ORTHOGONALIZATIONS,
    ROOM,
    direction_reference,
    polar_reference,
)
from mlxhog.optim.rule import StepTrace
from mlxhog.optim.updates import WRITE_MODES
from tests.metal.shared import shared
from tests.optim.small import BIAS, EMBEDDING, MATRIX, N, Slot, initial, parameter, target
from tests.optim.test_optimizers import chosen
from tests.pairs import each_of
from tests.threads import in_threads
from tests.tolerances import POLAR_F32, assert_close

SHAPES = [(1, 1), (1, 7), (5, 1), (6, 9), (31, 33), (64, 128), (128, 128), (200, 70), (530, 520)]
HIDDEN = frozenset({"matrix"})


def drawn(rows, cols, seed=0):
    """A matrix whose singular values spread over two orders of magnitude, as gradients' do."""
    rng = np.random.default_rng((rows, cols, seed))
    x = rng.standard_normal((rows, cols)) * np.linspace(0.1, 1.0, cols) ** 2
    return x.astype(np.float32)


def exact(x, name):
    """The steps as they are defined: odd polynomials of the singular values, in float64."""
    left, values, right = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    values = values / (ROOM * math.sqrt(float((values**2).sum())))
    for a, b, c in ORTHOGONALIZATIONS[name]:
        values = a * values + b * values**3 + c * values**5
    result = (left * values) @ right
    return result


def native_polar(x, name):
    u = np.empty_like(x)
    _native.polar([x], [u], [1.0], ORTHOGONALIZATIONS[name])
    return u


def composed_quintics(low, steps, cushion):
    """Odd quintics whose composition is nearest to 1 on [low, 1]; arXiv:2505.16932, algorithm 2."""
    high, coefficients = 1.0, []
    for _ in range(steps):
        bottom = max(low, cushion * high)
        inner = [(3 * bottom + high) / 4, (bottom + 3 * high) / 4]
        for _ in range(50):  # Remez: equal errors of both signs at four points
            points = np.array([bottom, *inner, high])
            powers = np.stack([points, points**3, points**5, [1, -1, 1, -1]], axis=1)
            a, b, c, _ = np.linalg.solve(powers, np.ones(4))
            root = math.sqrt(9 * b * b - 20 * a * c)
            inner = [math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1)]
        ends = [a * s + b * s**3 + c * s**5 for s in (low, high)]
        a, b, c = (2 / sum(ends) * coefficient for coefficient in (a, b, c))
        coefficients.append((a, b, c))
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
    return coefficients


def test_polar3_is_the_composition_of_quintics_nearest_to_one():
    derived = composed_quintics(1e-3, 3, cushion=0.02407327424182761)
    np.testing.assert_allclose(ORTHOGONALIZATIONS["polar3"], derived, rtol=1e-12)


@each_of(("name", "low", "high"), [("polar3", 0.134, 1.867), ("ns5", 0.5, 1.21)])
def test_singular_values_of_order_one_end_near_one(name, low, high):
    least = {"polar3": 1e-3, "ns5": 5e-3}[name]
    values = np.geomspace(least, 0.99, 40)
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((60, 40)))[0] for _ in range(2))
    values /= np.linalg.norm(values)
    singular = np.linalg.svd(
        polar_reference(
            np.asarray((left * values) @ right.T, np.float32), ORTHOGONALIZATIONS[name]
        ),
        compute_uv=False,
    )[:40]
    assert singular.min() > low * values.min() / least * 0.9
    assert singular.max() < high


@pytest.mark.slow
@each_of("name", ORTHOGONALIZATIONS)
@each_of("shape", SHAPES, ids=str)
def test_the_reference_changes_singular_values_and_nothing_else(shape, name):
    x = drawn(*shape)
    assert_close(polar_reference(x, ORTHOGONALIZATIONS[name]), exact(x, name), POLAR_F32)


@pytest.mark.slow
@each_of("name", ORTHOGONALIZATIONS)
@each_of("shape", SHAPES, ids=str)
def test_native_code_agrees_with_the_reference(shape, name):
    x = drawn(*shape)
    expected = polar_reference(x, ORTHOGONALIZATIONS[name])
    assert_close(native_polar(x, name), expected, POLAR_F32)


@each_of("size", [1e-20, 1e15])
def test_the_size_of_a_gradient_does_not_matter(size):
    x = drawn(20, 30)
    direction = native_polar(np.asarray(x * size, np.float32), "polar3")
    assert_close(direction, exact(x, "polar3"), POLAR_F32)


@each_of("native", [True, False])
def test_a_gradient_of_zeros_moves_a_hidden_matrix_by_its_decay_alone(native):
    flat = initial()
    before = flat.copy()
    rule = Muon(hidden=HIDDEN, weight_decay=0.5, native=native)
    zeros = {"matrix": np.zeros(MATRIX.shape, np.float32)}
    rule.step(target(rule, flat, "matrix"), zeros, lr=0.1, step=1)
    np.testing.assert_allclose(parameter(flat, MATRIX), 0.95 * parameter(before, MATRIX), rtol=1e-6)


@each_of("native", [True, False])
def test_a_step_is_the_rule(native):
    flat = initial()
    before = flat.copy()
    rule = Muon(hidden=HIDDEN, beta1=0.8, nesterov=0.3, weight_decay=0.2, native=native)
    where = target(rule, flat, "matrix")
    mean, w = np.zeros(MATRIX.shape), parameter(before, MATRIX).astype(np.float64)
    for step in (1, 2, 3):
        g = drawn(*MATRIX.shape, seed=step)
        rule.step(where, {"matrix": g}, lr=0.05, step=step, grad_scale=0.5)
        mean = 0.8 * mean + 0.2 * 0.5 * g
        x = (0.7 * mean + 0.3 * 0.5 * g).astype(np.float32)
        w -= 0.05 * (0.2 * math.sqrt(9) * exact(x, "polar3") + 0.2 * w)
    assert_close(parameter(flat, MATRIX), w, POLAR_F32)
    np.testing.assert_allclose(parameter(where.private["m"], MATRIX), mean, rtol=1e-5, atol=1e-7)
    assert not parameter(where.private["v"], MATRIX).any()


@each_of("native", [True, False])
@each_of(
    ("rows", "every", "blocks"),
    [(4, None, (4, 4)), (None, 2, (6, 1)), (4, 2, (6, 4)), (100, None, (6, 6))],
)
def test_rows_can_be_orthogonalised_alone_always_or_between_whole_matrices(
    native, rows, every, blocks
):
    flat = initial()
    w = parameter(flat.copy(), MATRIX).astype(np.float64)
    rule = Muon(hidden=HIDDEN, beta1=0.0, weight_decay=0.0, rows=rows, every=every, native=native)
    where = target(rule, flat)
    for step, block in enumerate(blocks, 1):
        g = drawn(*MATRIX.shape, seed=step)
        rule.step(where, {"matrix": g}, lr=0.05, step=step)
        parts = [exact(g[row : row + block], "polar3") for row in range(0, 6, block)]
        w -= 0.05 * 0.2 * math.sqrt(9) * np.concatenate(parts)
    assert_close(parameter(flat, MATRIX), w, POLAR_F32)


def test_native_means_have_the_references_bits():
    g, m, x = drawn(40, 50), drawn(40, 50, seed=1), np.empty((40, 50), np.float32)
    rates = {"beta1": 0.9, "nesterov": 0.1, "grad_scale": 0.3}
    expected = direction_reference(g, m, **rates)
    hp, racy = muon_hp(beta1=0.9, nesterov=0.1), WRITE_MODES["racy"]
    _native.muon_directions(None, racy, m.reshape(-1), [0], [g], [x], hp, grad_scale=0.3)
    for result, wanted in zip((m, x), expected, strict=True):
        np.testing.assert_array_equal(result.view(np.uint32), wanted.view(np.uint32))


def test_neither_threads_nor_repetition_change_a_bit():
    xs = [drawn(*shape) for shape in ((64, 128), (128, 128), (128, 384), (384, 128))]

    def found(threads):
        us = [np.empty_like(x) for x in xs]
        scales = [1.0] * len(xs)
        steps = ORTHOGONALIZATIONS["polar3"]
        _native.polar(xs, us, scales, steps, threads=threads)
        return us

    once = found(1)
    for again in (found(1), found(2), found(3)):
        for one, other in zip(once, again, strict=True):
            np.testing.assert_array_equal(one, other)


def test_everything_but_hidden_matrices_takes_adamws_steps():
    muon, adamw = Muon(hidden=HIDDEN, weight_decay=0.3), AdamW(weight_decay=0.3)
    rows = Rows(np.array([7, 2, 7], np.int32), np.ones((3, 5), np.float32))
    grads = {"bias": np.ones(9, np.float32), "embedding": rows}
    flats = [initial(), initial()]
    for rule, flat in zip((muon, adamw), flats, strict=True):
        where = target(rule, flat, "embedding")
        for step in (1, 2):
            rule.step(where, grads, lr=0.1, step=step, grad_scale=0.5)
    for slot in (BIAS, EMBEDDING):
        np.testing.assert_array_equal(parameter(flats[0], slot), parameter(flats[1], slot))


def test_a_gradient_of_rows_counts_as_zero_elsewhere():
    rule, flats = Muon(hidden=HIDDEN), [initial(), initial()]
    rows = Rows(np.array([1, 4], np.int32), drawn(2, 9))
    whole = np.zeros(MATRIX.shape, np.float32)
    whole[[1, 4]] = rows.values
    for flat, grad in zip(flats, (rows, whole), strict=True):
        rule.step(target(rule, flat), {"matrix": grad}, lr=0.1, step=1)
    np.testing.assert_array_equal(*flats)


LARGE = Slot("large", (40, 70), 5)
SECOND = Slot("second", (90, 20), 2900)
VECTOR = Slot("vector", (50,), 4800)


def after_two_steps(mode, *, shares, recorded):
    """Parameters, moments and record of one worker."""
    rule = Muon(hidden=frozenset({"large", "second"}), shared=shares)
    rng = np.random.default_rng(1)
    with shared(5000, 5) as segment:
        segment.floats[...] = rng.standard_normal(5000, dtype=np.float32)
        names = ("m", "v", "last", "prev")
        state = {name: np.zeros(5000, np.float32) for name in names}
        moments = {name: state[name] for name in ("m", "v")}
        where = replace(
            target(rule, segment.floats, "large"),
            slots={"large": LARGE, "second": SECOND, "vector": VECTOR},
            locks=segment.locks(1) if mode == "lossless" else None,
            mode=WRITE_MODES[mode],
            private={} if shares else moments,
            shared=moments if shares else {},
            record=StepTrace(state["last"], state["prev"]) if recorded else None,
        )
        for step in (1, 2):
            grads = {slot.name: drawn(*slot.shape, seed=step) for slot in (LARGE, SECOND)}
            grads["vector"] = np.full(VECTOR.shape, 0.1 * step, np.float32)
            rule.step(where, grads, lr=0.01, step=step, seed=step)
        assert not segment.words.any()
        return {"w": segment.floats.copy(), **state}


@each_of(
    ("mode", "shares", "recorded"),
    [
        ("lossless", False, False),
        ("cas", False, False),
        ("racy", True, False),
        ("lossless", True, True),
        ("racy", True, True),
        ("cas", True, True),
    ],
)
def test_every_way_to_write_gives_the_same_bits_with_one_worker(mode, shares, recorded):
    plain = after_two_steps("racy", shares=False, recorded=False)
    actual = after_two_steps(mode, shares=shares, recorded=recorded)
    for name in ("w", "m", "v"):
        np.testing.assert_array_equal(actual[name].view(np.uint32), plain[name].view(np.uint32))
    if recorded:
        for slot in (LARGE, SECOND):
            assert parameter(actual["last"], slot).all()
            assert parameter(actual["prev"], slot).all()
        assert not parameter(actual["last"], VECTOR).any()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lossless", "cas"])
def test_no_step_of_a_mean_that_two_workers_share_is_lost(mode):
    """Gradients are 0 and betas 1/2, so every step halves the moments, which says how many were."""
    rule = Muon(
        hidden=frozenset({"matrix"}), beta1=0.5, beta2=0.5, nesterov=0.0, rows=1, shared=True
    )
    matrix, vector = Slot("matrix", (1000, 100), 0), Slot("vector", (50_000,), 100_000)
    zeros = {slot.name: np.zeros(slot.shape, np.float32) for slot in (matrix, vector)}
    steps, begin = 60, 2.0**60
    moments = {name: np.full(150_000, begin, np.float32) for name in rule.shared_segments}
    barrier = threading.Barrier(2, timeout=30)
    with shared(150_000) as segment:

        def work(slot):
            where = replace(
                target(rule, segment.floats),
                slots={"matrix": matrix, "vector": vector},
                locks=segment.locks(slot),
                mode=WRITE_MODES[mode],
                shared=moments,
            )
            barrier.wait()
            for step in range(1, steps + 1):
                rule.step(where, zeros, lr=0.01, step=step, seed=2 * step + slot)

        in_threads(work, (1, 2))
    for name, begins in (("m", 0), ("v", vector.offset)):
        halved = np.log2(begin / moments[name][begins:].astype(np.float64))
        assert set(halved.tolist()) == {2.0 * steps}


def test_a_part_of_a_step_can_wait_in_the_worker():
    flat = initial()
    before = flat.copy()
    selection = optim.Selection.parse("topk:0.1")
    assert selection is not None
    rule = Sparsified(Muon(hidden=HIDDEN, weight_decay=0.0), selection)
    where = target(rule, flat)
    rule.step(where, {"matrix": drawn(*MATRIX.shape)}, lr=0.1, step=1)
    moved = parameter(flat, MATRIX) != parameter(before, MATRIX)
    assert moved.sum() == math.ceil(0.1 * MATRIX.size)
    assert (parameter(where.private["residual"], MATRIX) != 0).sum() == MATRIX.size - moved.sum()


def test_mismatched_matrices_are_refused():
    x, steps = drawn(4, 5), ORTHOGONALIZATIONS["polar3"]
    with pytest.raises(ValueError, match=r"us\[0\] has another shape"):
        _native.polar([x], [np.empty((5, 4), np.float32)], [1.0], steps)
    with pytest.raises(ValueError, match="scales"):
        _native.polar([x], [np.empty_like(x)], [], steps)
    with pytest.raises(ValueError, match="coefficients are empty"):
        _native.polar([x], [np.empty_like(x)], [1.0], [])


# -- which matrices, and the choice by name --------------------------------------------------------


@each_of(
    ("model", "hidden", "others"),
    [
        ("tiny", {"mlstm_layer.q", "mlstm_layer.ogate_preact", "ffn.proj_down"}, {"igate_preact"}),
        ("7to1-tiny", {"xlstm.proj_up", "xlstm.proj_down"}, {"q_proj", "conv1d.conv", "igate"}),
        ("lfm2-tiny", {"in_proj", "w3"}, {"conv"}),
    ],
)
def test_hidden_matrices_are_those_inside_the_blocks_that_are_wide_both_ways(model, hidden, others):
    cfg = load_architecture(model)
    spec, names = families.param_spec(cfg), families.hidden_matrices(cfg)
    for name in names:
        assert len(spec[name].shape) == 2
        assert min(spec[name].shape) >= cfg.hidden_size / 2
    assert not names & {families.embedding(cfg), families.head(cfg)}
    endings = {name.removesuffix(".weight") for name in names}
    assert all(any(name.endswith(end) for name in endings) for end in hidden)
    assert not any(name.endswith(end) for name in endings for end in others)


def test_options_choose_muon_for_a_model():
    model = load_architecture("tiny")
    hidden = families.hidden_matrices(model)
    muon = optim.build(chosen("muon"), hidden, threads=2)
    assert muon == Muon(
        hidden=hidden,
        beta1=0.8,
        nesterov=0.1,
        beta2=0.9,
        eps=1e-6,
        weight_decay=0.2,
        threads=2,
    )
    with pytest.raises(ConfigError, match="wanted one of polar3, ns5"):
        chosen("muon", orthogonalization="svd")


def test_a_model_without_hidden_matrices_is_moved_by_adamw():
    sizes = {"vocab_size": 32, "hidden_size": 16}
    model = read({"model_type": "mad", "layers": ["slstm-v1"], **sizes})
    assert families.hidden_matrices(model) == frozenset()
    hidden = families.hidden_matrices(model)
    muon = optim.build(optim.for_model(chosen("muon"), 16, hidden, 1), hidden)
    assert muon == optim.build(chosen("adamw"))
    flats = [initial(), initial()]
    grads = {"matrix": drawn(*MATRIX.shape)}
    adamw = AdamW(beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.2)
    for rule, flat in zip((muon, adamw), flats, strict=True):
        rule.step(target(rule, flat, "matrix"), grads, lr=0.1, step=1)
    np.testing.assert_array_equal(*flats)
    assert len(flats[0]) == N
