"""Models whose mLSTM cell runs on the emulated Metal kernels compute what they always did."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.models.ops.kernels import Ops, choose
from mlxhog.models.registry import load_architecture
from mlxhog.models.xlstm_large import param_spec
from tests.models.golden import CELLS, cell_case
from tests.models.metal_gpu import kernels_of_a_gpu, lazy_kernels
from tests.models.sample import batch, cell_inputs, config, perturbed_params
from tests.models.twins import Twin
from tests.tolerances import (
    CELL_EXTREME_F32,
    CELL_F32,
    GRADIENT_ANY_F32,
    LOGITS_F32,
    LOSS_F32,
    OP_GRADIENT_F32,
    STATE_F32,
    assert_close,
)

pytestmark = pytest.mark.slow

EMULATED: dict[str, Twin] = {
    "torch": Twin("torch", "metal-emulated"),
    "mlx": Twin("mlx", "metal-emulated"),
}
REFERENCE: dict[str, Twin] = {"torch": Twin("torch", "reference"), "mlx": Twin("mlx", "reference")}
TOLERANCE = {name: CELL_F32 for name in CELLS} | {"mlstm_cell_d_extreme": CELL_EXTREME_F32}
frameworks = pytest.mark.parametrize("framework", EMULATED)
cells = pytest.mark.parametrize("name", CELLS)


@frameworks
def test_every_op_without_a_kernel_is_the_plain_one(framework: str) -> None:
    metal, plain = type(EMULATED[framework].ops), type(REFERENCE[framework].ops)
    names = [name for name in vars(Ops) if not name.startswith("_")]
    own = {name for name in names if getattr(metal, name) is not getattr(plain, name)}
    assert own == {"causal_conv", "mlstm_cell", "slstm_cell"}


@frameworks
@cells
@pytest.mark.parametrize("chunk_size", [7, 64, 1000])
def test_output_and_last_state_equal_the_recorded_ones(
    framework: str, name: str, chunk_size: int
) -> None:
    case = cell_case(name)
    h, state = EMULATED[framework].op(
        "mlstm_cell", *case.inputs.values(), chunk_size=chunk_size, eps=case.eps, state=case.state
    )
    for form in case.forms():
        assert_close(h, case.h(form), TOLERANCE[name], label=form)
        for part, recorded, letter in zip(state, case.last_state(form), "Cnm", strict=True):
            assert_close(part, recorded, STATE_F32, label=f"{form} {letter}")


@frameworks
def test_gradients_flow_through_output_and_state_of_one_call_into_the_next(framework: str) -> None:
    inputs = cell_inputs(2, 21, 2, 4, 6, seed=0)

    def scalar(ops: Any, p: Any) -> Any:
        how = {"chunk_size": 8, "eps": 1e-6}
        first, state = ops.mlstm_cell(*(x[:, :13] for x in p.values()), **how)
        h, (C, n, _) = ops.mlstm_cell(*(x[:, 13:] for x in p.values()), **how, state=state)
        return (h**2).sum() + (first**3).sum() + (C**2).sum() + n.sum()

    result = EMULATED[framework].op_grads(scalar, inputs)
    expected = REFERENCE[framework].op_grads(scalar, inputs)
    for name in inputs:
        assert_close(result[name], expected[name], GRADIENT_ANY_F32, label=name)


@frameworks
def test_a_gradient_through_the_last_state_alone_needs_no_output(framework: str) -> None:
    inputs = cell_inputs(1, 6, 2, 3, 5, seed=1)

    def scalar(ops: Any, p: Any) -> Any:
        _, (C, _, _) = ops.mlstm_cell(*p.values(), chunk_size=4, eps=1e-6)
        return (C**2).sum()

    result = EMULATED[framework].op_grads(scalar, inputs)
    expected = REFERENCE[framework].op_grads(scalar, inputs)
    for name in ("k", "v", "i", "f"):
        assert_close(result[name], expected[name], GRADIENT_ANY_F32, label=name)


@frameworks
def test_the_tiny_model_has_the_loss_and_every_gradient_of_the_reference(framework: str) -> None:
    cfg = load_architecture("tiny")
    params = perturbed_params(cfg, seed=0)
    tokens, labels = batch(cfg, 2, 13, seed=0)
    loss, grads = EMULATED[framework].loss_and_grads(cfg, params, tokens, labels)
    expected_loss, expected = REFERENCE[framework].loss_and_grads(cfg, params, tokens, labels)
    assert_close(loss, expected_loss, LOSS_F32)
    for name in param_spec(cfg):
        assert_close(grads[name], expected[name], GRADIENT_ANY_F32, label=name)


@frameworks
def test_a_sequence_in_pieces_equals_the_whole_sequence(framework: str) -> None:
    cfg, twin = config(), EMULATED[framework]
    params = perturbed_params(cfg, seed=1)
    tokens, _ = batch(cfg, 2, 12, seed=1)
    whole, _ = REFERENCE[framework].logits(cfg, params, tokens)
    state, pieces = None, []
    for piece in np.split(tokens, [6, 7, 8], axis=1):
        logits, state = twin.logits(cfg, params, piece, state)
        pieces.append(logits)
    assert_close(np.concatenate(pieces, 1), whole, LOGITS_F32)


def test_inputs_of_16_bits_are_computed_in_float32() -> None:
    inputs = [value.astype(np.float16) for value in cell_inputs(1, 5, 1, 3, 4, seed=2).values()]
    how: dict[str, Any] = {"chunk_size": 4, "eps": 1e-6}
    expected = Twin("torch", "reference").op("mlstm_cell", *inputs, **how)[0]
    h, _ = choose("torch", "metal-emulated", "cpu").mlstm_cell(*map(torch.tensor, inputs), **how)
    assert h.dtype == torch.float32
    assert_close(h, expected, CELL_F32)
    h, _ = choose("mlx", "metal-emulated", "cpu").mlstm_cell(*map(mx.array, inputs), **how)
    assert h.dtype == mx.float32
    assert_close(np.array(h), expected, CELL_F32)


@frameworks
def test_a_training_step_runs_all_six_kernels(framework: str) -> None:
    inputs = cell_inputs(1, 5, 1, 3, 4, seed=3)
    EMULATED[framework].op_grads(
        lambda ops, p: ops.mlstm_cell(*p.values(), chunk_size=4, eps=1e-6)[0].sum(), inputs
    )
    engine = choose(framework, "metal-emulated", "cpu").engine
    assert engine.emulated
    assert {kernel for _, kernel, _ in engine.ran if kernel.startswith("mlstm_")} == {
        f"mlstm_{part}" for part in ("gates", "states", "out", "bwd_pre", "bwd_states", "bwd_out")
    }


@frameworks
def test_on_a_gpu_the_engine_gets_the_arrays_of_the_framework_itself(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = cell_inputs(2, 11, 3, 4, 6, seed=4)
    ops, launches = kernels_of_a_gpu(framework, monkeypatch)

    def scalar(ops: Any, p: Any) -> Any:
        h, (C, _, _) = ops.mlstm_cell(*p.values(), chunk_size=4, eps=1e-6)
        return (h**2).sum() + C.sum()

    expected = REFERENCE[framework].op_grads(scalar, inputs)
    result = EMULATED[framework].op_grads(lambda _, p: scalar(ops, p), inputs)
    assert len(launches) == 6
    for name in inputs:
        assert_close(result[name], expected[name], GRADIENT_ANY_F32, label=name)


@frameworks
def test_on_a_gpu_the_convolution_runs_its_five_kernels_on_the_arrays_of_the_framework(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 9, 6), "w": (6, 1, 4), "b": (6,), "state": (2, 3, 6)}
    inputs = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    starts = rng.random((2, 9)) < 0.3
    ops, launches = kernels_of_a_gpu(framework, monkeypatch)

    def scalar(ops: Any, p: Any) -> Any:
        flags = EMULATED[framework].array(starts)
        y, last = ops.causal_conv(**p, starts=flags, silu=True)
        return (y**2).sum() + (last**3).sum()

    expected = REFERENCE[framework].op_grads(scalar, inputs)
    result = EMULATED[framework].op_grads(lambda _, p: scalar(ops, p), inputs)
    assert len(launches) == 5
    for name in inputs:
        assert_close(result[name], expected[name], OP_GRADIENT_F32, label=name)


def test_under_mlx_the_cell_and_its_gradient_are_traced_without_evaluating(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ops, launched = lazy_kernels(monkeypatch)

    def loss(*sequence: mx.array) -> mx.array:
        h, (C, _, _) = ops.mlstm_cell(*sequence, chunk_size=4, eps=1e-6)
        return h.sum() + C.sum()

    # mx.compile calls the function once with placeholders, which nothing can evaluate.
    gradient = mx.compile(mx.grad(loss, argnums=(0, 1, 2, 3, 4)))
    inputs = [mx.array(x) for x in cell_inputs(1, 6, 2, 3, 4, seed=5).values()]
    for _ in range(2):
        mx.eval(gradient(*inputs))
    assert len(launched) == 6
