"""Several threads of one worker give the bits of one thread: norm, steps, adds and reads."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.optim import SGD, AdamW, Momentum, updates
from mlxhog.optim.gradients import Rows, global_norm
from mlxhog.optim.rule import StepTrace
from tests.metal.shared import shared
from tests.metal.test_one_worker import MODES
from tests.optim.small import Slot, target
from tests.pairs import each_of

LARGE = Slot("large", (401, 511), 77)  # 200 stripes, from the middle of one to the middle of one
SMALL = Slot("small", (33,), LARGE.offset + LARGE.size)
SLOTS = {slot.name: slot for slot in (LARGE, SMALL)}
N = SMALL.offset + SMALL.size + 100
RULES = {
    "sgd": SGD(weight_decay=0.1),
    "momentum": Momentum(weight_decay=0.1),
    "adamw": AdamW(weight_decay=0.1),
    "adamw, shared moments": AdamW(shared=True),
}
TO = ("parameters", "parameters, recorded", "pending")


def stepped(rule, mode, to, threads):
    """Every array that three steps write."""
    rng = np.random.default_rng(1)
    with shared(N) as segment:
        segment.floats[...] = rng.standard_normal(N, dtype=np.float32)
        last, prev, pending = np.zeros((3, N), np.float32)
        where = replace(
            target(rule, segment.floats, "large", slots=SLOTS),
            locks=segment.locks(1),
            mode=mode,
            record=StepTrace(last, prev) if to == TO[1] else None,
            pending=pending if to == "pending" else None,
            threads=threads,
        )
        for step in (1, 2, 3):
            grads = {
                name: rng.standard_normal(slot.shape, dtype=np.float32)
                for name, slot in SLOTS.items()
            }
            scale = 1.0 / global_norm(grads, threads)
            rule.step(where, grads, lr=0.01, step=step, seed=step, grad_scale=scale)
        assert not segment.words.any(), "a lock is still taken"
        state = (*where.private.values(), *where.shared.values())
        return [segment.floats.copy(), *state, pending, last, prev]


@pytest.mark.slow
@each_of("to", TO)
@each_of("mode", MODES)
@each_of("name", RULES)
def test_steps_by_several_threads_have_the_bits_of_one_thread(name, mode, to):
    if to == "pending" and RULES[name].shared_segments:
        return  # refused: a pending step moves nothing shared
    one, three = (stepped(RULES[name], mode, to, threads) for threads in (1, 3))
    for actual, expected in zip(three, one, strict=True):
        np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


@each_of("threads", [2, 3, 7, 10**9])
@each_of("n", [0, 1, 4099, 300_001])
def test_reads_by_several_threads_have_the_bits_of_one_thread(n, threads):
    src, last, prev = np.random.default_rng(0).standard_normal((3, n), dtype=np.float32)
    read = {}
    for count in (1, threads):
        own, dst = prev.copy(), np.zeros((3, n), np.float32)
        updates.snapshot(dst[0], src, threads=count)
        _native.read(dst[1], src, own_prev=own, a=0.3, threads=count)
        _native.read(dst[2], src, last=last, prev=prev, a=3.0, b=1.0, threads=count)
        read[count] = [*dst, own]
    for actual, expected in zip(read[threads], read[1], strict=True):
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(read[threads][0], src)


def test_a_norm_does_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(0)
    sizes = (10, 3 << 18, (1 << 18) + 7, 0, 600_000)
    grads = {str(k): rng.standard_normal(n, dtype=np.float32) for k, n in enumerate(sizes)}
    grads["rows"] = Rows(np.array([1, 0, 1], np.int32), np.ones((3, 4), np.float32))
    norms = {global_norm(grads, threads) for threads in (1, 2, 3, 8, 2, 1)}
    assert len(norms) == 1
    dense = np.concatenate([grads[str(k)] for k in range(len(sizes))]).astype(np.float64)
    assert norms.pop() == pytest.approx(math.sqrt(float((dense**2).sum()) + 20.0), rel=1e-13)
    for bad in (np.nan, np.inf):
        grads["1"][-1] = bad
        assert not math.isfinite(global_norm(grads, 3))


def test_a_norm_of_arrays_of_a_mebibyte_is_the_sum_over_them_as_before():
    """So recorded hashes of small models stay."""
    rng = np.random.default_rng(0)
    grads = {str(k): rng.standard_normal(n, dtype=np.float32) for k, n in enumerate((9, 1 << 18))}
    total = 0.0
    for grad in grads.values():
        total += _native.sumsq(grad)
    assert global_norm(grads, 2) == math.sqrt(total)
