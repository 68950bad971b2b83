"""The operators of the v1 blocks around the cells, in every twin and with every kernels.

Wanted numbers come from the recorded components and from the float64 layers of
`ops/reference/layers_numpy.py`, whose gradients are checked against central differences here.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from mlxhog._native import ops
from mlxhog.errors import ConfigError
from mlxhog.models.ops.native import adapter_mlx, adapter_torch
from mlxhog.models.ops.operators import ACTIVATIONS, activation_name
from mlxhog.models.ops.reference import layers_numpy
from tests.models.golden import FOLDER
from tests.models.twins import TWINS, Twin
from tests.pairs import each_of, in_pairs
from tests.tolerances import FINITE_DIFFERENCE, OP_F32, OP_GRADIENT_F32, ROUNDED_F16, assert_close

Array = NDArray[Any]
CONVOLVING = TWINS | {
    "torch-metal-emulated": Twin("torch", "metal-emulated"),
    "mlx-metal-emulated": Twin("mlx", "metal-emulated"),
}
HALF = {name: twin for name, twin in CONVOLVING.items() if twin.kernels != "native"}
twins = each_of("twin", TWINS.values(), ids=TWINS)
convolving = each_of("twin", CONVOLVING.values(), ids=CONVOLVING)
# B, S, C, K: fewer positions than taps, one tap, one position, one channel, more than a SIMD block.
CONVS = [(2, 9, 24, 4), (1, 2, 5, 4), (3, 7, 3, 1), (1, 1, 33, 3), (2, 1, 16, 1), (2, 130, 1, 4)]
activation_names = each_of("activation", ACTIVATIONS)


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def wide(inputs):
    return {name: x.astype(np.float64) for name, x in inputs.items()}


@pytest.fixture(scope="module")
def recorded():
    return load_file(FOLDER / "components.safetensors")


@convolving
def test_the_recorded_components_are_reproduced(twin, recorded):
    t = recorded
    y, _ = twin.op("causal_conv", t["x"], t["conv.weight"], t["conv.bias"], silu=False)
    assert_close(y, t["conv.y"], OP_F32, label="conv")
    (y,) = twin.op("block_diagonal", t["x"], (t["headwise.weight"],), (t["headwise.bias"],))
    assert_close(y, t["headwise.y"], OP_F32, label="block_diagonal")
    y = twin.op("layer_norm", t["x"], 1 + t["v1_ln.weight"], 1e-5)
    assert_close(y, t["v1_ln.y"], OP_F32, label="layer_norm")
    y = twin.op("head_norm", t["x4_bnsh"].swapaxes(1, 2), 1 + t["v1_ln.weight"], 1e-5)
    expected = t["v1_mhln.y"].swapaxes(1, 2).reshape(y.shape)
    assert_close(y, expected, OP_F32, label="head_norm")


def conv_inputs(shape, *, packed):
    """x, w, b, state, and the starts of documents."""
    B, S, C, K = shape
    inputs = {"x": draw(B, S, C), "w": draw(C, 1, K), "b": draw(C), "state": draw(B, K - 1, C)}
    starts = np.random.default_rng(S).random((B, S)) < 0.3 if packed else None
    return inputs, starts


@pytest.mark.slow
@in_pairs(twin=CONVOLVING, shape=CONVS, packed=[False, True], silu=[False, True])
def test_causal_conv_and_its_gradients(twin, shape, packed, silu):
    inputs, starts = conv_inputs(shape, packed=packed)
    dy, dlast = draw(*shape[:3], seed=1), draw(*inputs["state"].shape, seed=2)
    wanted_y, wanted_last, back = layers_numpy.causal_conv(**wide(inputs), starts=starts, silu=silu)
    y, last = twin.op("causal_conv", **inputs, starts=starts, silu=silu)
    assert_close(y, wanted_y, OP_F32)
    np.testing.assert_array_equal(last, wanted_last.astype(np.float32))

    def scalar(ops, p):
        flags = None if starts is None else twin.array(starts)
        y, last = ops.causal_conv(**p, starts=flags, silu=silu)
        return (y * twin.array(dy)).sum() + (last * twin.array(dlast)).sum()

    grads = twin.op_grads(scalar, inputs)
    for name, expected in zip(
        inputs, back(*wide({"dy": dy, "dlast": dlast}).values()), strict=True
    ):
        assert_close(grads[name], expected, OP_GRADIENT_F32, label=name)


@convolving
def test_a_convolution_without_a_state_begins_with_zeros(twin):
    inputs, _ = conv_inputs((2, 6, 8, 4), packed=False)
    inputs["state"][:] = 0
    actual, _ = twin.op("causal_conv", **inputs, silu=True)
    state = inputs.pop("state")
    y, last = twin.op("causal_conv", **inputs, silu=True)
    np.testing.assert_array_equal(y, actual)
    assert last.shape == state.shape

    def scalar(ops, p):
        return (ops.causal_conv(**p, silu=True)[0] ** 2).sum()

    assert twin.op_grads(scalar, inputs).keys() == inputs.keys()


@pytest.mark.slow
@convolving
def test_positions_one_at_a_time_with_the_state_equal_the_whole_sequence(twin):
    inputs, starts = conv_inputs((2, 11, 8, 4), packed=True)
    assert starts is not None
    x, state = inputs.pop("x"), inputs.pop("state")
    whole, expected = twin.op("causal_conv", x, **inputs, state=state, starts=starts, silu=True)
    pieces = []
    for first, last in ((0, 1), (1, 2), (2, 4), (4, 5), (5, 11)):
        y, state = twin.op(
            "causal_conv",
            x[:, first:last],
            **inputs,
            state=state,
            starts=starts[:, first:last],
            silu=True,
        )
        pieces.append(y)
    assert_close(np.concatenate(pieces, 1), whole, OP_F32)
    np.testing.assert_array_equal(state, expected)


@convolving
def test_documents_packed_into_one_sequence_convolve_as_each_alone(twin):
    lengths = (1, 5, 2, 1, 6)
    inputs, _ = conv_inputs((1, sum(lengths), 8, 4), packed=False)
    starts = np.zeros((1, sum(lengths)), bool)
    starts[0, np.cumsum((0, *lengths[:-1]))] = True
    y, last = twin.op("causal_conv", **inputs, starts=starts, silu=True)
    x, _ = inputs.pop("x"), inputs.pop("state")
    for first, length in zip(np.flatnonzero(starts), lengths, strict=True):
        piece = slice(first, first + length)
        alone, alone_last = twin.op("causal_conv", x[:, piece], **inputs, silu=True)
        assert_close(y[:, piece], alone, OP_F32)
    np.testing.assert_array_equal(last, alone_last)


@convolving
def test_what_an_earlier_document_holds_is_not_even_multiplied(twin):
    inputs, _ = conv_inputs((1, 8, 4, 4), packed=False)
    inputs["x"][:, :3] = np.nan
    starts = np.zeros((1, 8), bool)
    starts[0, 3] = True
    y, last = twin.op("causal_conv", **inputs, starts=starts, silu=True)
    assert np.isfinite(y[:, 3:]).all()
    assert np.isfinite(last).all()


@twins
@each_of("shape", [(1, 1, 3), (2, 3, 7), (2, 200, 33), (1, 1, 128)], ids=str)
def test_layer_norm_and_its_gradients(twin, shape):
    inputs = {"x": draw(*shape), "w": draw(shape[-1])}
    dy = draw(*shape, seed=1)
    unit, back = layers_numpy.layer_norm(inputs["x"].astype(np.float64), 1e-5)
    assert_close(twin.op("layer_norm", **inputs, eps=1e-5), inputs["w"] * unit, OP_F32)
    grads = twin.op_grads(
        lambda ops, p: (ops.layer_norm(**p, eps=1e-5) * twin.array(dy)).sum(), inputs
    )
    assert_close(grads["x"], back(dy * inputs["w"].astype(np.float64)), OP_GRADIENT_F32)
    assert_close(grads["w"], (dy * unit).sum((0, 1)), OP_GRADIENT_F32)


@twins
@each_of("shape", [(1, 1, 1, 1), (2, 3, 3, 7), (2, 150, 4, 32)], ids=str)
def test_head_norm_and_its_gradients(twin, shape):
    flat = (*shape[:2], shape[2] * shape[3])
    inputs = {"h": draw(*shape), "w": draw(flat[2])}
    dy = draw(*flat, seed=1)
    unit, back = layers_numpy.layer_norm(inputs["h"].astype(np.float64), 1e-5)
    assert_close(twin.op("head_norm", **inputs, eps=1e-5), inputs["w"] * unit.reshape(flat), OP_F32)
    grads = twin.op_grads(
        lambda ops, p: (ops.head_norm(**p, eps=1e-5) * twin.array(dy)).sum(), inputs
    )
    dunit = dy * inputs["w"].astype(np.float64)
    assert_close(grads["h"], back(dunit.reshape(shape)), OP_GRADIENT_F32)
    assert_close(grads["w"], (dy * unit.reshape(flat)).sum((0, 1)), OP_GRADIENT_F32)


@twins
@each_of("shape", [(1, 1, 1, 1), (2, 3, 3, 7), (2, 150, 4, 32)], ids=str)
def test_head_norm_skip_gate_and_its_gradients(twin, shape):
    flat = (*shape[:2], shape[2] * shape[3])
    inputs = {
        "h": draw(*shape),
        "c": draw(*flat),
        "z": 3 * draw(*flat, seed=1),
        "w": draw(flat[2]),
        "skip": draw(flat[2], seed=1),
    }
    dy = draw(*flat, seed=2)
    y, back = layers_numpy.head_norm_skip_gate(**wide(inputs), eps=1e-5)
    assert_close(twin.op("head_norm_skip_gate", **inputs, eps=1e-5), y, OP_F32)
    grads = twin.op_grads(
        lambda ops, p: (ops.head_norm_skip_gate(**p, eps=1e-5) * twin.array(dy)).sum(), inputs
    )
    for name, expected in zip(inputs, back(dy.astype(np.float64)), strict=True):
        assert_close(grads[name], expected, OP_GRADIENT_F32, label=name)


# B, S, and G, out / G, in / G of every weight: small blocks, one block, heads, blocks not square.
DIAGONALS = [
    (2, 9, [(6, 4, 4), (6, 4, 4)]),
    (2, 300, [(32, 4, 4)]),
    (1, 1, [(1, 1, 1)]),
    (2, 5, [(1, 7, 12)]),
    (2, 5, [(4, 8, 8), (8, 4, 4)]),
    (3, 4, [(3, 2, 5), (3, 5, 5), (5, 1, 3)]),
    (1, 3, [(4, 32, 32)]),
]


@in_pairs(twin=TWINS, sizes=DIAGONALS, biased=[False, True])
def test_block_diagonal_and_its_gradients(twin, sizes, biased):
    B, S, blocks = sizes
    inputs = {"x": draw(B, S, blocks[0][0] * blocks[0][2])}
    inputs |= {f"w{k}": draw(*block, seed=k) for k, block in enumerate(blocks)}
    if biased:  # all but the first
        inputs |= {f"b{k}": draw(b[0] * b[1], seed=k) for k, b in enumerate(blocks) if k}

    def of(p):
        weights = [p[f"w{k}"] for k in range(len(blocks))]
        return weights, [p.get(f"b{k}") for k in range(len(blocks))] if biased else None

    outs = twin.op("block_diagonal", inputs["x"], *of(inputs))
    dys = [draw(*out.shape, seed=9) for out in outs]
    expected = {"x": np.zeros(inputs["x"].shape)}
    p = wide(inputs)
    for k, (out, dy) in enumerate(zip(outs, dys, strict=True)):
        y, back = layers_numpy.block_diagonal(p["x"], p[f"w{k}"], p.get(f"b{k}"))
        assert_close(out, y, OP_F32)
        dx, expected[f"w{k}"], expected[f"b{k}"] = back(dy.astype(np.float64))
        expected["x"] += dx

    def scalar(ops, p):
        outs = ops.block_diagonal(p["x"], *of(p))
        return sum((out * twin.array(dy)).sum() for out, dy in zip(outs, dys, strict=True))

    grads = twin.op_grads(scalar, inputs)
    for name in inputs:
        assert_close(grads[name], expected[name], OP_GRADIENT_F32, label=name)


@each_of("twin", TWINS.values(), ids=TWINS)
@each_of("block", [(4, 32, 32), (16, 4, 4)], ids=str)
def test_block_diagonal_where_the_framework_multiplies_faster(twin, block, monkeypatch):
    for module in (adapter_torch, adapter_mlx):
        monkeypatch.setattr(module, "FAST_GEMM", False)
    x, w = draw(2, 5, block[0] * block[2]), draw(*block)
    (y,) = twin.op("block_diagonal", x, (w,))
    expected, _ = layers_numpy.block_diagonal(*wide({"x": x, "w": w}).values())
    assert_close(y, expected, OP_F32)


@twins
@activation_names
def test_an_activation_and_its_gradient(twin, activation):
    x, dy = 4 * draw(3, 5, 77), draw(3, 5, 77, seed=2)
    y, slope = layers_numpy.activation(activation, x.astype(np.float64))
    assert_close(twin.op("activate", x, activation), y, OP_F32)
    grads = twin.op_grads(
        lambda ops, p: (ops.activate(p["x"], activation) * twin.array(dy)).sum(), {"x": x}
    )
    assert_close(grads["x"], dy * slope, OP_GRADIENT_F32)


@each_of("x", [-1e20, -1e4, 1e4, 1e20])
@activation_names
def test_native_activations_far_out_are_finite_and_nan_stays_nan(activation, x):
    inputs = np.array([x, np.nan, x], np.float32)
    y, dx = np.empty_like(inputs), np.empty_like(inputs)
    ops.activate(activation_name(activation), inputs, y, threads=1)
    ops.activate_grad(activation_name(activation), inputs, np.ones_like(inputs), dx, threads=1)
    if activation != "relu^2":  # 1e40 is none
        assert np.isfinite(y[::2]).all()
    assert np.isfinite(dx[::2]).all()
    assert np.isnan(y[1])


@twins
@activation_names
def test_glu_and_its_gradients(twin, activation):
    inputs = {"gate": 4 * draw(3, 5, 77), "up": draw(3, 5, 77, seed=1)}
    dy = draw(3, 5, 77, seed=2)
    y, back = layers_numpy.glu(*wide(inputs).values(), activation)
    assert_close(twin.op("glu", **inputs, activation=activation), y, OP_F32)
    grads = twin.op_grads(
        lambda ops, p: (ops.glu(**p, activation=activation) * twin.array(dy)).sum(), inputs
    )
    for name, expected in zip(inputs, back(dy.astype(np.float64)), strict=True):
        assert_close(grads[name], expected, OP_GRADIENT_F32, label=name)


@twins
def test_an_activation_that_does_not_exist_is_refused_with_those_that_do(twin):
    with pytest.raises(ConfigError, match=r"activation is 'tanh'; choose one of gelu, .*, selu"):
        twin.op("glu", draw(2, 3), draw(2, 3), "tanh")


@twins
@each_of("V", [1, 5, 300])
def test_cross_entropy_without_a_cap_and_its_gradient(twin, V):
    logits, labels = 20 * draw(70, V), np.random.default_rng(V).integers(0, V, 70, np.int32)
    labels[::7] = -100
    x = logits.astype(np.float64)
    weights = np.exp(x - x.max(-1, keepdims=True))
    softmax = weights / weights.sum(-1, keepdims=True)
    scored = np.flatnonzero(labels != -100)
    lse = np.log(weights.sum(-1)) + x.max(-1)
    nats, count = twin.op("capped_cross_entropy", logits, labels, None)
    assert count == scored.size
    assert_close(nats, (lse[scored] - x[scored, labels[scored]]).sum(), OP_F32)
    expected = np.zeros_like(x)
    expected[scored] = softmax[scored]
    expected[scored, labels[scored]] -= 1
    grads = twin.op_grads(
        lambda ops, p: ops.capped_cross_entropy(p["x"], twin.array(labels), None)[0], {"x": logits}
    )
    assert_close(grads["x"], expected, OP_GRADIENT_F32)


@twins
def test_norms_of_small_numbers_keep_their_eps(twin):
    x, w = 1e-3 * draw(3, 4, 16), draw(16)
    unit, _ = layers_numpy.layer_norm(x.astype(np.float64), 1e-5)
    assert_close(twin.op("layer_norm", x, w, 1e-5), w * unit, OP_F32)


@each_of("twin", HALF.values(), ids=HALF)
def test_inputs_of_16_bits_are_computed_in_float32_and_give_their_own_type(twin):
    x, w, b = (a.astype(np.float16) for a in (draw(2, 7, 12), draw(12, 1, 4), draw(12)))
    heads, scale = x.reshape(2, 7, 3, 4), b
    y, last = twin.op("causal_conv", x, w, b, silu=True)
    inputs = wide({"x": x, "w": w, "b": b})
    expected, wanted_last, _ = layers_numpy.causal_conv(**inputs, silu=True)
    assert last.dtype == np.float32
    np.testing.assert_array_equal(last, wanted_last)
    unit, _ = layers_numpy.layer_norm(inputs["x"], 1e-5)
    unit_of_head, _ = layers_numpy.layer_norm(heads.astype(np.float64), 1e-5)
    for actual, exact in (
        (y, expected),
        (twin.op("layer_norm", x, scale, 1e-5), scale * unit),
        (twin.op("head_norm", heads, scale, 1e-5), scale * unit_of_head.reshape(x.shape)),
    ):
        assert actual.dtype == np.float16
        assert_close(actual, exact, ROUNDED_F16)


def differences(scalar, inputs):
    """Gradients by central differences."""
    results = {}
    for name, x in inputs.items():
        results[name] = np.zeros(x.shape)
        for at in np.ndindex(x.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = x.copy()
                moved[at] += step
                ends.append(scalar(inputs | {name: moved}))
            results[name][at] = (ends[0] - ends[1]) / 2e-6
    return results


@each_of("packed", [False, True])
def test_the_float64_convolution_differentiates_itself(packed):
    inputs, starts = conv_inputs((2, 5, 2, 3), packed=packed)
    inputs = wide(inputs)
    dy, dlast = draw(2, 5, 2, seed=1) / 8, draw(2, 2, 2, seed=2) / 8

    def scalar(p):
        y, last, _ = layers_numpy.causal_conv(**p, starts=starts, silu=True)
        return float((y * dy).sum() + (last * dlast).sum())

    _, _, back = layers_numpy.causal_conv(**inputs, starts=starts, silu=True)
    expected = differences(scalar, inputs)
    for name, grad in zip(inputs, back(dy, dlast), strict=True):
        assert_close(grad, expected[name], FINITE_DIFFERENCE, label=name)


def test_the_float64_block_diagonal_map_differentiates_itself():
    inputs = wide({"x": draw(1, 3, 6), "w": draw(2, 2, 3), "b": draw(4)})
    dy = draw(1, 3, 4, seed=1) / 8
    _, back = layers_numpy.block_diagonal(**inputs)
    expected = differences(
        lambda p: float((layers_numpy.block_diagonal(**p)[0] * dy).sum()), inputs
    )
    for name, grad in zip(inputs, back(dy), strict=True):
        assert_close(grad, expected[name], FINITE_DIFFERENCE, label=name)


@activation_names
def test_the_float64_activations_differentiate_themselves(activation):
    x = draw(40).astype(np.float64)
    _, slope = layers_numpy.activation(activation, x)
    up, _ = layers_numpy.activation(activation, x + 1e-6)
    down, _ = layers_numpy.activation(activation, x - 1e-6)
    assert_close(slope, (up - down) / 2e-6, FINITE_DIFFERENCE)


def test_the_float64_layers_are_those_of_the_recorded_components(recorded):
    t = wide(recorded)
    y, _, _ = layers_numpy.causal_conv(t["x"], t["conv.weight"], t["conv.bias"], silu=False)
    assert_close(y, t["conv.y"], OP_F32)
    y, _ = layers_numpy.block_diagonal(t["x"], t["headwise.weight"], t["headwise.bias"])
    assert_close(y, t["headwise.y"], OP_F32)
    assert_close(layers_numpy.soft_cap(20 * t["x"], 15.0)[0], t["soft_cap_15.y"], OP_F32)
