"""The operators over a sequence that MAD layers use, in every twin and with every kernels.

Wanted numbers are those of the float64 references, position by position; wanted gradients are
their central differences along random directions, one for every input.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlxhog._native import ops
from mlxhog.models.ops.reference import layers_numpy, recurrences_numpy
from tests.models.twins import TWINS
from tests.pairs import each_of, in_pairs
from tests.tolerances import SEQUENCE_F32, SEQUENCE_GRADIENT_F32, assert_close

Array = NDArray[Any]
twins = each_of("twin", TWINS.values(), ids=TWINS)


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One op with inputs that have gradients, inputs that have none, and its float64 reference."""

    op: str
    reference: Callable[..., Any]
    inputs: dict[str, Array]
    fixed: dict[str, Any] = field(default_factory=dict)  # arrays without a gradient, and numbers
    form: dict[str, Any] = field(default_factory=dict)  # what the reference does not take

    def expected(self, **inputs):
        wide = {name: x.astype(np.float64) for name, x in inputs.items()}
        result = self.reference(**wide, **self.fixed)
        return result if isinstance(result, tuple) else (result,)

    def result(self, twin):
        result = twin.op(self.op, **self.inputs, **self.fixed, **self.form)
        return result if isinstance(result, tuple) else (result,)


def recurrence(
    B, S, NH, DK, DV, *, removal=None, scalar=False, speed=0.3, chunk=8, alike=False, state=True,
    by_value=False,
):  # fmt: skip
    """A linear recurrence whose removal is None, "own" or "free"; `speed` is that of forgetting.

    Keys that are read have length 1, and are nearly equal in a head with `alike`.
    """
    unit = unit_keys(B, S, NH, DK, alike=alike)
    rate = 1 / (1 + np.exp(-2 * draw(B, S, NH, DK, seed=5)))
    inputs = {
        "q": draw(B, S, NH, DV if by_value else DK),
        "k": unit if removal == "own" else draw(B, S, NH, DK, seed=6),
        "v": draw(B, S, NH, DV, seed=2),
        "log_decay": -speed * np.abs(draw(B, S, NH, 1 if scalar else DK, seed=3)),
    }
    if removal == "own":
        inputs["beta"] = rate[..., 0]
    if removal == "free":
        inputs |= {"read": unit, "removal": rate * unit}
    if state:
        inputs["state"] = draw(B, NH, DK, DV, seed=4)
    fixed = {"scale": 0.5, "by_value": by_value}
    return Case("recurrence", recurrences_numpy.recurrence, inputs, fixed, {"chunk_size": chunk})


decay = recurrence
delta = partial(recurrence, removal="own", scalar=True)
channels = partial(recurrence, removal="own")
dplr = partial(recurrence, removal="free")


def regression(B, S, NH, D, *, speed=0.3, chunk=8, state=True):
    """q, unit keys and a ridge; `speed` is that of forgetting."""
    inputs = {
        "q": draw(B, S, NH, D),
        "k": unit_keys(B, S, NH, D),
        "log_decay": -speed * np.abs(draw(B, S, NH, 1, seed=3)),
        "ridge": 0.25 + np.abs(draw(NH, D, seed=5)),
    }
    if state:  # symmetric and positive, as every state that the cell reaches
        root = draw(B, NH, D, D, seed=4) / np.sqrt(np.float32(D))
        inputs["state"] = root @ root.swapaxes(-1, -2)
    form = {"chunk_size": chunk, "steps": 40}
    return Case("regression_cell", recurrences_numpy.regression_cell, inputs, {}, form)


def unit_keys(*shape, alike=False):
    """Keys of length 1, (B, S, NH, DK); nearly equal ones of a head with `alike`."""
    k = draw(*shape, seed=1)
    if alike:
        k = np.broadcast_to(k[:, :1], k.shape) + 0.01 * k
    return k / np.sqrt((k * k).sum(-1, keepdims=True))


def scan(B, S, C, N, *, speed=0.3, state=True):
    """u, dt and the matrices of a selective scan; `speed` is the largest dt."""
    inputs = {
        "u": draw(B, S, C),
        "dt": speed * np.abs(draw(B, S, C, seed=1)),
        "A": -np.abs(draw(C, N, seed=2)) - 0.1,
        "Bt": draw(B, S, N, seed=3),
        "Ct": draw(B, S, N, seed=4),
    }
    if state:
        inputs["state"] = draw(B, C, N, seed=5)
    return Case("selective_scan", recurrences_numpy.selective_scan, inputs)


def attention(B, S, L, NH, DH, *, window=None, lengths=None):
    """Queries of the last S of L positions."""
    inputs = {
        "q": draw(B, S, NH, DH),
        "k": draw(B, L, NH, DH, seed=1),
        "v": draw(B, L, NH, DH, seed=2),
    }
    fixed = {"window": window}
    if lengths is not None:
        fixed["lengths"] = np.array(lengths, np.int32)
    return Case("attention", layers_numpy.attention, inputs, fixed)


def rope(B, S, NH, DH, offset=None):
    fixed = {"base": 100.0}
    if offset is not None:
        fixed["offset"] = np.array(offset, np.int32)
    return Case("rope", layers_numpy.rope, {"x": draw(B, S, NH, DH)}, fixed)


def long_conv(B, S, C, J):
    inputs = {"x": draw(B, S, C), "f": draw(C, J, seed=1)}
    return Case("long_conv", layers_numpy.long_conv, inputs)


CASES = {
    "a decay per element": decay(2, 21, 2, 6, 5),
    "a decay per element, in one chunk": decay(1, 7, 1, 4, 4, chunk=64),
    "a decay per element, from zeros": decay(2, 16, 2, 4, 3, state=False),
    "a decay per element, of one position": decay(2, 1, 2, 6, 5),
    "a decay per element, of wide heads": decay(1, 50, 1, 36, 21, chunk=16),
    "a read by value": decay(2, 21, 2, 6, 5, by_value=True),
    "a read by value, in one chunk": decay(1, 7, 1, 4, 4, chunk=64, by_value=True),
    "a read by value, from zeros": decay(2, 16, 2, 4, 3, state=False, by_value=True),
    "a read by value, of one position": decay(2, 1, 2, 6, 5, by_value=True),
    "a read by value, of wide heads": decay(1, 50, 1, 36, 21, chunk=16, by_value=True),
    "a read by value, of a decay per head": decay(2, 21, 3, 4, 6, scalar=True, by_value=True),
    "a decay per head": decay(2, 21, 3, 4, 6, scalar=True),
    "a decay per head, from zeros": decay(1, 9, 2, 4, 6, scalar=True, state=False),
    "keys of one number": decay(2, 10, 2, 1, 3, scalar=True),
    "a regression": regression(2, 21, 2, 6),
    "a regression, from zeros": regression(2, 16, 2, 4, state=False),
    "a regression, of one position": regression(2, 1, 2, 6),
    "a regression, of wide heads": regression(1, 70, 1, 21, chunk=16),
    "the delta rule": delta(2, 21, 2, 6, 5),
    "the delta rule, in one chunk": delta(1, 7, 1, 4, 4, chunk=64),
    "the delta rule, of wide heads": delta(1, 50, 1, 37, 21, chunk=16),
    "the delta rule, from zeros": delta(2, 16, 2, 4, 3, state=False),
    "the delta rule, of one position": delta(2, 1, 2, 6, 5),
    "the delta rule, with keys alike": delta(1, 64, 1, 4, 4, alike=True, speed=0.0, chunk=64),
    "a diagonal and rank 1": dplr(2, 21, 2, 6, 5),
    "the delta rule, with a decay per element": channels(2, 21, 2, 6, 5),
    "the delta rule, with a decay per element, of wide heads": channels(1, 50, 1, 37, 21, chunk=16),
    "a diagonal and rank 1, in one chunk": dplr(1, 7, 1, 4, 4, chunk=64),
    "a diagonal and rank 1, of wide heads": dplr(1, 50, 1, 37, 21, chunk=16),
    "a diagonal and rank 1, from zeros": dplr(2, 16, 2, 4, 3, state=False),
    "a diagonal and rank 1, of one position": dplr(2, 1, 2, 6, 5),
    "the delta rule, with a decay per element and keys alike": channels(
        1, 64, 1, 4, 4, alike=True, speed=0.0, chunk=64
    ),
    "a selective scan": scan(2, 21, 7, 4),
    "a selective scan of many channels": scan(2, 35, 37, 9),
    "a selective scan, from zeros": scan(2, 8, 5, 3, state=False),
    "a selective scan, of one position": scan(2, 1, 7, 4),
    "attention": attention(2, 13, 13, 3, 4),
    "attention, of one position": attention(2, 1, 1, 3, 4),
    "attention of wide heads": attention(1, 70, 70, 1, 64),
    "attention, from a long cache": attention(1, 40, 300, 3, 8, window=280, lengths=(290,)),
    "attention, from a cache": attention(2, 3, 13, 2, 4),
    "attention, from a cache with gaps": attention(3, 3, 11, 2, 4, lengths=(3, 11, 6)),
    "attention in a window": attention(2, 13, 13, 2, 4, window=8),
    "attention in a short window": attention(2, 23, 23, 2, 4, window=5),
    "attention to oneself": attention(2, 5, 5, 2, 4, window=0),
    "attention in a window, from a cache": attention(2, 2, 9, 2, 4, window=4),
    "attention in a window with gaps": attention(2, 2, 9, 2, 4, window=4, lengths=(9, 3)),
    "rotary positions": rope(2, 9, 2, 6),
    "rotary positions after others": rope(3, 4, 2, 8, offset=(0, 1000, 7)),
    "a long convolution": long_conv(2, 19, 5, 19),
    "a long convolution of more taps": long_conv(1, 12, 3, 20),
    "a long convolution, of one position": long_conv(2, 1, 3, 4),
    "a long convolution of very many positions": long_conv(1, 1030, 2, 1030),
}  # fmt: skip
cases = each_of("case", CASES.values(), ids=CASES)


@pytest.mark.slow
@twins
@cases
def test_an_operator_equals_its_reference_position_by_position(twin, case):
    for result, expected in zip(case.result(twin), case.expected(**case.inputs), strict=True):
        assert_close(result, expected, SEQUENCE_F32)


@pytest.mark.slow
@twins
@cases
def test_every_gradient_equals_central_differences(twin, case):
    weights = [draw(*y.shape, seed=9) for y in case.expected(**case.inputs)]

    def scalar(ops, p):
        fixed = {
            name: twin.array(x) if isinstance(x, np.ndarray) else x
            for name, x in case.fixed.items()
        }
        result = getattr(ops, case.op)(**p, **fixed, **case.form)
        result = result if isinstance(result, tuple) else (result,)
        pairs = zip(result, weights, strict=True)
        return sum((y * twin.array(w)).sum() for y, w in pairs)

    def loss(**inputs):
        pairs = zip(case.expected(**inputs), weights, strict=True)
        return float(sum((y * w).sum() for y, w in pairs))

    grads = twin.op_grads(scalar, case.inputs)
    assert grads.keys() == case.inputs.keys()
    for name, x in case.inputs.items():
        direction = draw(*x.shape, seed=11).astype(np.float64)
        moved = partial(_moved, case.inputs, name, direction)
        expected = (loss(**moved(1e-5)) - loss(**moved(-1e-5))) / 2e-5
        result = float((grads[name].astype(np.float64) * direction).sum())
        largest = np.sqrt((grads[name] ** 2).sum() * (direction**2).sum())
        size = max(float(largest), 1e-3)  # a query of one key has no gradient at all
        assert_close(result / size, expected / size, SEQUENCE_GRADIENT_F32, label=name)


def _moved(inputs, name, direction, step):
    return inputs | {name: inputs[name].astype(np.float64) + step * direction}


@in_pairs(
    twin=TWINS,
    speed=[1e-3, 10.0, 200.0, 1e4],
    make={
        "per element": decay,
        "per head": partial(decay, scalar=True),
        "by value": partial(decay, by_value=True),
        "and removal": dplr,
        "and removal by the key": channels,
    },
)
def test_a_head_that_forgets_at_any_speed_is_computed_exactly(twin, speed, make):
    case = make(2, 33, 2, 4, 4, speed=speed, chunk=32)
    for result, expected in zip(case.result(twin), case.expected(**case.inputs), strict=True):
        assert_close(result, expected, SEQUENCE_F32)
    grads = twin.op_grads(
        lambda ops, p: sum(y.sum() for y in getattr(ops, case.op)(**p, **case.fixed, **case.form)),
        case.inputs,
    )
    assert all(np.isfinite(grad).all() for grad in grads.values())


@twins
def test_a_regression_of_one_step_goes_along_the_query(twin):
    case = regression(2, 5, 2, 6)
    q, ridge = case.inputs["q"].copy(), case.inputs["ridge"]
    q[:, 2] = 0
    inputs = case.inputs | {"q": q}
    x, _ = twin.op("regression_cell", **inputs, steps=1, chunk_size=8)
    k, log_decay, state = (inputs[name] for name in ("k", "log_decay", "state"))
    image, _ = recurrences_numpy.recurrence(q, k, k, log_decay, state=state)
    curvature = (q * (image + ridge * q)).sum(-1, keepdims=True)
    step = (q * q).sum(-1, keepdims=True) / np.where(curvature > 0, curvature, 1)
    assert_close(x, step * q, SEQUENCE_F32)


@twins
@each_of("speed", [10.0, 1e4])
@each_of("make", [delta, scan])
def test_the_other_recurrences_do_not_overflow_either(twin, make, speed):
    case = make(2, 33, 4, 4, 4, speed=speed) if make is delta else make(2, 33, 4, 4, speed=speed)
    for result, expected in zip(case.result(twin), case.expected(**case.inputs), strict=True):
        assert_close(result, expected, SEQUENCE_F32)


@in_pairs(
    twin=TWINS,
    case={
        "decay": decay(2, 21, 2, 4, 4),
        "decay by value": decay(2, 21, 2, 4, 4, by_value=True),
        "decay of heads": decay(2, 21, 2, 4, 4, scalar=True),
        "delta": delta(2, 21, 2, 4, 4),
        "dplr": dplr(2, 21, 2, 4, 4),
    },
    chunk=[1, 2, 16, 32],
)
def test_the_length_of_chunks_is_only_a_form(twin, case, chunk):
    result = twin.op(case.op, **case.inputs, **case.fixed, chunk_size=chunk)
    for one, expected in zip(result, case.result(twin), strict=True):
        assert_close(one, expected, SEQUENCE_F32)


@twins
@cases
def test_a_position_that_is_not_finite_changes_no_bit_before_it(twin, case):
    twin = replace(twin, guarded=True)
    expected, *_ = case.result(twin)
    S = expected.shape[1]
    at = S // 2
    if case.op == "long_conv" and (twin.kernels == "reference" or S > ops.LONG_CONV_DIRECT):
        return  # by Fourier transforms, where every position depends on all by its rounding
    for name in case.inputs.keys() - {"state", "ridge", "f", "A"}:
        x = case.inputs[name].copy()
        x[0, at - S] = np.nan  # keys of a cache come before those of the queries
        result, *_ = replace(case, inputs=case.inputs | {name: x}).result(twin)
        np.testing.assert_array_equal(result[0, :at], expected[0, :at], err_msg=name)
        np.testing.assert_array_equal(result[1:], expected[1:], err_msg=name)
