"""The seven mLSTM kernels are the cell in float64."""

from typing import Any

import numpy as np
import pytest

from mlxhog.errors import ShapeError
from mlxhog.metal.kernels import mlstm
from mlxhog.metal.kernels.mlstm import backward_launches, forward_launches, sample_arrays
from tests.models.operators import run_mlstm
from tests.models.twins import EXACT
from tests.pairs import each_of
from tests.tolerances import (
    METAL_CELL_F32,
    METAL_CLOSED_F32,
    METAL_GATES_F32,
    METAL_OPEN_F32,
    assert_close,
)

EPS = 1e-6
Arrays = dict[str, Any]

# B, S, NH, DK, DV and the chunk: a shorter last chunk, a sequence within a chunk, single positions,
# one head, widths that are no multiple of 4 or 32 and beyond, two simdgroups in a chunk.
SHAPES = {
    "shorter last chunk": (2, 13, 3, 8, 12, 4),
    "within a chunk": (1, 7, 1, 5, 3, 16),
    "one position": (3, 1, 1, 4, 4, 1),
    "chunks of one": (1, 5, 2, 3, 7, 1),
    "whole chunks": (1, 32, 1, 16, 8, 16),
    "wide heads": (1, 20, 1, 70, 33, 9),
    "long chunks": (1, 70, 1, 33, 5, 64),
}
shapes = each_of("shape", SHAPES.values(), ids=SHAPES)


def sample(shape, seed=0):
    B, S, NH, DK, DV, _ = shape
    names = ("q", "k", "v", "i", "f", "C0", "n0", "m0", "dh", "dC_last", "dn_last")
    return sample_arrays(np.random.default_rng(seed), names, B=B, S=S, NH=NH, DK=DK, DV=DV)


def all_launches(x, chunk):
    yield from forward_launches(x, chunk=chunk, eps=EPS)
    yield from backward_launches(x, chunk=chunk, eps=EPS)


def run_cell(engine, x, chunk):
    """x with the outputs of all seven kernels, each fed by those before it."""
    x = dict(x)
    for launch in all_launches(x, chunk):
        x |= engine.run(launch)
    return x


def in_float64(x):
    """Output, state and gradients from the recurrence; gradients through h alone."""
    inputs = {name: x[name] for name in (*"qkvif", "C0", "n0", "m0")}
    weights = [x["dh"], *[np.zeros(())] * 3]
    results, grads = EXACT.run(run_mlstm, inputs, {"chunk_size": 1, "eps": EPS}, weights)
    named = {f"d{name}": grad for name, grad in grads.items()}
    return {**dict(zip("hCnm", results, strict=True)), **named}


def forget_gradient(x, chunk):
    """df from db and from the states after the chunks, as `mlstm_backward.h` says."""
    db, f = x["db"].astype(np.float64), x["f"].astype(np.float64)
    at_end = (x["C"] * x["dC"]).sum((-2, -1)) + (x["n"] * x["dn"]).sum(-1)
    later = np.empty_like(db)
    for c, start in enumerate(range(0, db.shape[-1], chunk)):
        part = db[..., start : start + chunk]
        later[..., start : start + chunk] = part[..., ::-1].cumsum(-1)[..., ::-1]
        later[..., start : start + chunk] += at_end[..., c + 1, None]
    return later.swapaxes(1, 2) / (1.0 + np.exp(f))


def assert_is_the_cell(x, actual, chunk, cell=METAL_CELL_F32, gates=METAL_GATES_F32):
    expected = in_float64(x)
    assert_close(actual["h"], expected["h"], cell, label="h")
    for name in "Cnm":
        assert_close(actual[name][:, :, -1], expected[name], cell, label=name)
    for name in ("dq", "dk", "dv"):
        assert_close(actual[name], expected[name], cell, label=name)
    assert_close(actual["di"], expected["di"], gates, label="di")
    assert_close(forget_gradient(actual, chunk), expected["df"], gates, label="df")
    assert_close(actual["dC"][:, :, 0], expected["dC0"], cell, label="dC0")
    assert_close(actual["dn"][:, :, 0], expected["dn0"], cell, label="dn0")


@pytest.mark.slow
@shapes
def test_the_kernels_are_the_cell_in_float64(shim, shape):
    x = without_last_state(sample(shape))
    assert_is_the_cell(x, run_cell(shim, x, shape[-1]), shape[-1])


def without_last_state(x):
    """Let the last state have no gradient, as the float64 recurrence takes it to be."""
    return x | {name: np.zeros_like(x[name]) for name in ("dC_last", "dn_last")}


EXTREME = [
    (15.0, -30.0, METAL_OPEN_F32),
    (15.0, 15.0, METAL_OPEN_F32),
    (0.0, -30.0, METAL_CLOSED_F32),
    (-30.0, -30.0, METAL_CLOSED_F32),
    (-30.0, 15.0, METAL_CLOSED_F32),
]


@each_of(("i", "f", "tolerance"), EXTREME)
def test_extreme_gates_give_the_same_as_in_float64(shim, i, f, tolerance):
    x = without_last_state(sample((1, 11, 2, 6, 5, 4)))
    x["i"], x["f"] = x["i"] + np.float32(i), x["f"] + np.float32(f)
    assert_is_the_cell(x, run_cell(shim, x, 4), 4, cell=tolerance, gates=tolerance)


def test_queries_of_zero_give_outputs_and_key_gradients_of_zero(shim):
    x = without_last_state(sample((1, 9, 1, 4, 6, 4)))
    x["q"][...] = 0.0
    result = run_cell(shim, x, 4)
    for name in ("h", "den", "dk", "dv", "di", "dden"):
        assert not result[name].any(), name
    assert np.isfinite(result["dq"]).all()
    assert result["dq"].any()


def test_a_gradient_of_the_last_state_reaches_all_that_was_written_into_it(shim):
    shape = (1, 10, 2, 5, 6, 4)
    x = sample(shape)
    x["dh"][...] = 0.0  # only the state counts
    actual = run_cell(shim, x, 4)

    def loss(changed):
        exact = {name: value.astype(np.float64) for name, value in changed.items()}
        inputs = {name: exact[name] for name in (*"qkvif", "C0", "n0", "m0")}
        _, C, n, m = EXACT.results(run_mlstm, inputs, {"chunk_size": 1, "eps": EPS})
        # The stabiliser is a constant, so C and n are compared at the scale of the sample's m.
        scale = np.exp(m - actual["m"][:, :, -1].astype(np.float64))
        loss_C = (C * scale[..., None, None] * exact["dC_last"]).sum()
        return float(loss_C + (n * scale[..., None] * exact["dn_last"]).sum())

    gradients = actual | {
        "df": forget_gradient(actual, 4),
        "dC0": actual["dC"][:, :, 0],
        "dn0": actual["dn"][:, :, 0],
    }
    rng = np.random.default_rng(1)
    for name in ("k", "v", "i", "f", "C0", "n0"):
        direction = rng.standard_normal(x[name].shape)
        step = 1e-6
        ahead = loss(x | {name: x[name].astype(np.float64) + step * direction})
        behind = loss(x | {name: x[name].astype(np.float64) - step * direction})
        expected = (ahead - behind) / (2 * step)
        assert (gradients[f"d{name}"] * direction).sum() == pytest.approx(expected, rel=1e-4), name


LOCKSTEP = [kernel for kernel in mlstm.KERNELS if kernel.lockstep]


@pytest.mark.slow
@each_of("kernel", LOCKSTEP, ids=lambda kernel: kernel.name)
def test_any_order_of_threads_gives_the_same_bits(host_engine, consumer, kernel):
    x = sample((1, 40, 1, 40, 5, 40))
    engine = host_engine(consumer)
    for launch in all_launches(x, 40):
        x |= (calm := engine.run(launch))
        if launch.kernel is kernel:
            break
    for seed in (1, 2, 3):
        actual = host_engine(consumer, chaos=seed).run(launch)
        for name in calm:
            np.testing.assert_array_equal(actual[name], calm[name])


def test_a_chunk_that_is_too_long_is_refused_with_the_reason():
    gate = np.zeros((1, 100, 1), np.float32)
    with pytest.raises(ShapeError, match="chunks of 65 positions and take 1 to 64"):
        mlstm.mlstm_gates({"i": gate, "f": gate}, chunk=65)


def test_arrays_that_do_not_belong_together_are_refused_by_name():
    x = sample((1, 8, 2, 4, 6, 4))
    x |= sample_arrays(np.random.default_rng(0), ("a", "g", "amax"), B=1, S=8, NH=2, NC=2)
    x["v"] = x["v"][:, :7]
    with pytest.raises(ShapeError, match=r"mlstm_states: v has shape \(1, 7, 2, 6\)"):
        mlstm.mlstm_states(x, chunk=4)


def test_states_beyond_32_bits_are_refused():
    class Huge:
        shape = (64, 64, 64, 512)

    with pytest.raises(ShapeError, match="too many elements; run fewer sequences at once"):
        mlstm.mlstm_bwd_states({"q": Huge(), "dh": Huge()}, chunk=1)


def test_pairs_of_positions_beyond_32_bits_are_refused():
    def huge(*shape):
        return np.broadcast_to(np.float32(0), shape)

    B, S, NH = 64, 2**15, 64
    x = {name: huge(B, NH, S) for name in ("b", "M", "rN", "dden")}
    x |= {name: huge(B, S, NH, 1) for name in ("q", "k", "v", "dh")} | {"i": huge(B, S, NH)}
    with pytest.raises(ShapeError, match=r"mlstm_bwd_scores: X of shape .* 2\^32 elements"):
        mlstm.mlstm_bwd_scores(x, chunk=64)
