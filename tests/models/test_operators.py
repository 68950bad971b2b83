"""Every operator in every twin equals the float64 operators, with every gradient and state.

The float64 operators run position by position (`ops/eager/ops_float64.py`); test_recorded.py
compares them with published implementations.
"""

from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog._native import ops as native
from mlxhog.models.ops.kernels import choose
from mlxhog.models.ops.mlstm import MAX_CHUNKS
from mlxhog.models.ops.native import adapter_mlx, adapter_torch
from mlxhog.models.ops.native.operators import NativeOps
from mlxhog.models.ops.operators import ACTIVATIONS, Ops, activation_name
from tests import tolerances as near
from tests.models.operators import (
    DIAGONALS,
    METAL,
    Case,
    attention,
    channels,
    conv,
    cross_entropy,
    delta,
    dplr,
    draw,
    far,
    linear_layers,
    long_conv,
    mlstm,
    mlstm_of,
    norms,
    recurrence,
    regression,
    rope,
    scan,
    slstm,
    value_queries,
)
from tests.models.sample import slstm_inputs, slstm_state
from tests.models.twins import EXACT, TWINS, Twin
from tests.pairs import each_of, in_pairs
from tests.tolerances import assert_close

ALL = TWINS | METAL
HALF = {name: twin for name, twin in ALL.items() if twin.kernels != "native"}
twins = each_of("twin", TWINS.values(), ids=TWINS)
all_twins = each_of("twin", ALL.values(), ids=ALL)

RECURRENCES = {
    "a decay per element": recurrence,
    "queries of values": value_queries,
    "a decay per head": partial(recurrence, scalar=True),
    "queries of values, with a decay per head": partial(value_queries, scalar=True),
    "the delta rule": delta,
    "the delta rule, with a decay per element": channels,
    "a diagonal and rank 1": dplr,
}
PLACES = {  # B, S, NH, DK, DV
    "": {"of": (2, 21, 2, 6, 5)},
    ", in one chunk": {"chunk": 64, "of": (1, 7, 1, 4, 4)},
    ", from zeros": {"state": False, "of": (2, 16, 2, 4, 3)},
    ", of one position": {"of": (2, 1, 2, 6, 5)},
    ", of wide heads": {"chunk": 16, "of": (1, 50, 1, 37, 21)},
}
SEQUENCES = {
    f"{name}{place}": make(*how["of"], **{key: x for key, x in how.items() if key != "of"})
    for name, make in RECURRENCES.items()
    for place, how in PLACES.items()
} | {
    "keys of one number": recurrence(2, 10, 2, 1, 3, scalar=True),
    **{f"{make} of keys alike": RECURRENCES[make](1, 64, 1, 4, 4, alike=True, speed=0.0, chunk=64)
       for make in ("the delta rule", "the delta rule, with a decay per element")},
    "a regression": regression(2, 21, 2, 6),
    "a regression, from zeros": regression(2, 16, 2, 4, state=False),
    "a regression, of one position": regression(2, 1, 2, 6),
    "a regression, of wide heads": regression(1, 70, 1, 21, chunk=16),
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
    "a long convolution with a longer filter": long_conv(1, 12, 3, 20),
    "a long convolution, of one position": long_conv(2, 1, 3, 4),
    "a long convolution of very many positions": long_conv(1, 1030, 2, 1030),
}  # fmt: skip


LAYERS = {
    f"{name} of {shape}": case
    for shape in ((1, 1, 1, 3), (2, 3, 3, 7), (2, 150, 4, 32))
    for name, case in norms(*shape).items()
} | {
    f"block_diagonal of {blocks}, biased {biased}": linear_layers(
        "block_diagonal", draw(B, S, blocks[0][0] * blocks[0][2]), blocks, biased
    )
    for B, S, blocks in DIAGONALS
    for biased in (False, True)
} | {
    "linears": linear_layers("linears", draw(2, 3, 8), [(5, 8), (4, 8), (40, 8)], True),
    "soft_cap": Case("soft_cap", {"x": 8 * draw(3, 5)}, {"cap": 2.0}),
    "swiglu": Case("swiglu", {"gate": 4 * draw(3, 77), "up": draw(3, 77, seed=1)}),
    **{f"cross entropy of {V} tokens": cross_entropy(V, None) for V in (1, 5, 300)},
    "cross entropy below a cap": cross_entropy(9, 15.0),
    "cross entropy of factors": cross_entropy(9, 15.0, factors=True),
    "cross entropy of sampled softmax": cross_entropy(9, None, sampled=True),
    "cross entropy of sampled softmax below a cap": cross_entropy(9, 15.0, sampled=True),
    "linear cross entropy of sampled softmax": cross_entropy(9, 15.0, factors=True, sampled=True),
    "a norm of small numbers": Case(
        "layer_norm", {"x": 1e-3 * draw(3, 4, 16), "w": draw(16)}, {"eps": 1e-5}
    ),
} | {
    f"{op} {name}": Case(op, inputs, {"activation": name})
    for name in ACTIVATIONS
    for op, inputs in (
        ("activate", {"x": 4 * draw(3, 5, 77)}),
        ("glu", {"gate": 4 * draw(3, 5, 77), "up": draw(3, 5, 77, seed=1)}),
    )
}  # fmt: skip


# B, S, C, K: S < K, K = 1, one position, one channel, more than a SIMD block.
CONVS = [(2, 9, 24, 4), (1, 2, 5, 4), (3, 7, 3, 1), (1, 1, 33, 3), (2, 1, 16, 1), (2, 130, 1, 4)]
CONVS += [(1, 70, 9, 7)]  # several threadgroups
SLSTMS = [(3, 13, 2, 8), (2, 5, 1, 1), (2, 1, 3, 5), (1, 7, 1, 45), (17, 4, 2, 3), (1, 3, 2, 70)]
# B, S, NH, DK, DV, chunk: a shorter last chunk, a sequence within one, single positions, one head,
# widths that are no multiple of 4 or 32 and beyond, two simdgroups in a chunk, threadgroups for
# columns of single positions.
MLSTMS = [(2, 13, 3, 8, 12, 4), (1, 7, 1, 5, 3, 16), (3, 1, 1, 4, 4, 1), (1, 5, 2, 3, 7, 1)]
MLSTMS += [(1, 20, 1, 70, 33, 9), (1, 70, 1, 33, 5, 64), (1, 6, 1, 5, 40, 1)]
METAL_CASES = {
    f"conv {sizes}{', packed' * packed}": conv(*sizes, packed=packed, silu=bool(number % 2))
    for number, sizes in enumerate(CONVS)
    for packed in (False, True)
} | {
    f"mlstm of {S}{', from zeros' * (not state)}, eps {eps}": mlstm(S, state=state, eps=eps)
    for S, eps in ((1, 1e-6), (4, 0.1), (7, 1e-3), (33, 1e-6), (33, 0.1))
    for state in (False, True)
} | {
    f"mlstm of {S} in documents": mlstm(S, packed=True, eps=1e-3) for S in (1, 7, 33)
} | {
    f"mlstm {sizes}": mlstm_of(*sizes) for sizes in MLSTMS
} | {
    f"mlstm of gates at {i} and {f}": far(i=i, f=f)
    for i, f in ((30.0, 30.0), (88.0, 88.0), (15.0, 60.0))
} | {
    f"slstm {sizes}{', from zeros' * (not state)}{', packed' * packed}": slstm(
        *sizes, state=state, packed=packed
    )
    for sizes in SLSTMS
    for state, packed in ((False, True), (True, False), (True, True))
}  # fmt: skip
CHUNKS = {
    f"chunks of {chunk}: {name}": make(2, 21, 2, 4, 4, chunk=chunk)
    for chunk in (1, 2, 16, 32)
    for name, make in (("decay", recurrence), ("values", value_queries), ("delta", delta),
                       ("dplr", dplr))
}  # fmt: skip
SPEEDS = {
    f"forgetting at {speed}: {name}": make(2, 33, 2, 4, 4, speed=speed, chunk=32)
    for speed in (1e-3, 10.0, 200.0, 1e4)
    for name, make in (("decay", recurrence), ("per head", partial(recurrence, scalar=True)),
                       ("values", value_queries), ("dplr", dplr), ("channels", channels),
                       ("delta", delta))
} | {
    f"forgetting at {speed}: scan": scan(2, 33, 4, 4, speed=speed) for speed in (10.0, 1e4)
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
@each_of("case", (every := SEQUENCES | LAYERS | CHUNKS).values(), ids=every)
def test_an_operator_and_its_gradients_are_those_of_float64(twin, case):
    case.check(twin)


def test_every_native_operator_is_compared():
    operators = {name for name in vars(NativeOps) if not name.startswith("_")}
    cases = (every | METAL_CASES | SPEEDS).values()
    no_operators = {"apply", "constant", "uses_native_gemm", "bfloat16", "rounds"}
    no_operators |= {"logits"}  # `linears` of one weight
    no_operators |= {"unread", "is_unread"}  # tests/backends/test_gradients.py
    no_operators |= {"frozen_linears"}  # tests/backends/test_adapters.py
    compared = {case.op.replace("linears", "dense_linears") for case in cases}
    assert operators - no_operators == compared


@pytest.mark.slow
@pytest.mark.parametrize("twin", ALL.values(), ids=ALL)
@each_of("case", METAL_CASES.values(), ids=METAL_CASES)
def test_an_operator_with_metal_kernels_too(twin, case):
    case.check(twin)


LOSSES = {
    f"cap {cap}{', biased' * biased}{', sampled' * sampled}": cross_entropy(
        9, cap, factors=True, rows=1100, biased=biased, sampled=sampled
    )
    for cap, biased, sampled in ((15.0, False, False), (None, True, False), (15.0, True, True))
}


def chunks_of(patch, ops):
    """Let chunks of a loss be as small as possible; their numbers of rows get into this list."""
    rows, own = list[int](), ops.capped_cross_entropy

    def counted(x, *others):
        rows.append(len(x))
        return own(x, *others)

    patch.setattr(Ops, "max_logits", 0)
    patch.setattr(ops, "capped_cross_entropy", counted, raising=False)
    return rows


@all_twins
@each_of("case", LOSSES.values(), ids=LOSSES)
def test_the_loss_of_many_tokens_is_exact_and_all_their_logits_never_exist(twin, case, monkeypatch):
    rows = chunks_of(monkeypatch, twin.ops)
    case.check(twin)
    assert not rows or set(rows) == {512, 76}  # none: of a native kernel


@each_of("twin", HALF.values(), ids=HALF)
def test_the_gradients_of_a_bf16_head_add_up_in_float32_and_a_frozen_head_needs_none(
    twin, monkeypatch
):
    case = cross_entropy(9, 15.0, factors=True, rows=1100)
    bf16 = replace(case, call=lambda ops, x: case(ops, x | {"w": ops.xp.bfloat16(x["w"])}))
    _, whole = twin.run(bf16, case.inputs, case.fixed)
    rows = chunks_of(monkeypatch, twin.ops)
    _, grads = twin.run(bf16, case.inputs, case.fixed)
    assert_close(grads["w"], whole["w"], near.Tolerance(of_largest=2**-7))
    head = {"w": case.inputs.pop("w")}
    _, of_x = twin.run(case, case.inputs, case.fixed | head)
    assert_close(of_x["x"], EXACT.run(case, case.inputs, case.fixed | head)[1]["x"], near.OP_F32)
    assert set(rows) == {512, 76}


@each_of("twin", HALF.values(), ids=HALF)
def test_a_loss_without_a_gradient_computes_none(twin, monkeypatch):
    case = LOSSES["cap 15.0"]
    (nats, _), _ = twin.run(case, case.inputs, case.fixed)
    with adapter_mlx.without_gradient(), torch.no_grad(), monkeypatch.context() as patch:
        rows = chunks_of(patch, twin.ops)
        patch.setattr(twin.ops.xp, "value_and_grad", None)
        alone, _ = twin.results(case, case.inputs, case.fixed)
    assert_close(alone, nats, near.OP_F32)
    assert set(rows) == {512, 76}


@each_of("compiled", [False, True])
def test_the_memory_of_a_loss_of_mlx_grows_with_its_inputs_alone(compiled, monkeypatch):
    monkeypatch.setattr(Ops, "max_logits", 0)
    V, d, peaks = 1024, 8, list[int]()
    w, ops = mx.array(draw(V, d)), choose("mlx", "eager", "cpu")
    for N in (4096, 6144):
        x, labels = mx.array(draw(N, d)), mx.zeros(N, mx.int32)
        f = mx.value_and_grad(lambda x, y: ops.linear_cross_entropy(x, w, y, 30.0)[0])
        mx.eval(w, x, labels)
        mx.reset_peak_memory()
        mx.eval((mx.compile(f) if compiled else f)(x, labels))
        peaks.append(mx.get_peak_memory())
    assert peaks[1] - peaks[0] < 2048 * V  # logits of the others have 4 * 2048 * V bytes


@twins
@each_of("case", SPEEDS.values(), ids=SPEEDS)
def test_forgetting_at_any_speed_is_computed_exactly(twin, case):
    results, grads = twin.run(case, case.inputs, case.fixed)
    expected, _ = EXACT.run(case, case.inputs, case.fixed)
    for result, exact in zip(results, expected, strict=True):
        assert_close(result, exact, near.SEQUENCE_F32)
    assert all(np.isfinite(grad).all() for grad in grads.values())


@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_more_chunks_than_one_matmul_has_are_those_of_the_recurrence(framework):
    case = mlstm(2 * MAX_CHUNKS + 3, chunk=1)
    case = replace(case, result=near.CELL_EXTREME_F32, gradient=near.GRADIENT_ANY_F32)
    case.check(Twin(framework, "eager"))


@each_of("case", [mlstm(5), slstm(2, 4, 2, 3, packed=True), conv(2, 5, 2, 3, packed=True),
                  recurrence(1, 4, 1, 2, 2), dplr(1, 4, 1, 2, 2), regression(1, 4, 1, 3),
                  scan(1, 4, 2, 2)], ids=lambda case: case.op)  # fmt: skip
def test_the_float64_gradients_are_the_change_of_the_results(case):
    rng = np.random.default_rng(5)
    inputs = {name: x.astype(np.float64) for name, x in case.inputs.items()}
    results, _ = EXACT.run(case, inputs, case.fixed)
    weights = [rng.normal(size=y.shape) for y in results]
    _, grads = EXACT.run(case, inputs, case.fixed, weights)

    def loss(moved):
        results, _ = EXACT.run(case, moved, case.fixed, weights)
        return sum((y * w).sum() for y, w in zip(results, weights, strict=True))

    for name, x in inputs.items():
        way = rng.normal(size=x.shape)
        ahead, behind = (loss(inputs | {name: x + step * way}) for step in (1e-6, -1e-6))
        slope = (ahead - behind) / 2e-6
        assert_close((grads[name] * way).sum(), slope, near.FINITE_DIFFERENCE, label=name)


@all_twins
def test_the_memory_of_an_earlier_document_is_not_even_multiplied(twin):
    case, reset_mask = conv(1, 8, 4, 4), np.zeros((1, 8), bool)
    reset_mask[0, 3] = True
    case.inputs["x"][:, :3] = np.nan
    y, last = twin.op("causal_conv", **case.inputs, reset_mask=reset_mask, silu=True)
    assert np.isfinite(y[:, 3:]).all()
    assert np.isfinite(last).all()
    inputs, reset_mask = slstm_inputs(2, 5, 1, 3), np.array([[True] + 4 * [False]] * 2)
    fresh, _ = twin.op("slstm_cell", *inputs.values())
    h, _ = twin.op(
        "slstm_cell", *inputs.values(), state=slstm_state(2, 1, 3), reset_mask=reset_mask
    )
    np.testing.assert_array_equal(h, fresh)


@all_twins
def test_a_gradient_through_the_last_state_alone_needs_no_output(twin):
    for case in (mlstm(6, state=False), slstm(1, 4, 1, 3)):

        def call(ops, x, case=case):
            return (case(ops, x)[1][1] ** 3).sum()

        replace(case, call=call, gradient=near.GRADIENT_ANY_F32).check(twin)


@all_twins
def test_gates_that_are_shut_for_good_give_zeros_and_no_nan(twin):
    case = mlstm(7, state=False)
    case.inputs["i"] -= 200.0  # v1 has no cap on its gates
    case.inputs["f"] -= 100.0
    results, grads = twin.run(case, case.inputs, case.fixed, [np.float32(1), *[np.float32(0)] * 3])
    for x in (results[0], *grads.values()):
        np.testing.assert_allclose(x, 0.0, atol=1e-30)


@each_of("twin", HALF.values(), ids=HALF)
def test_matmuls_with_bf16_weights_are_bf16_and_their_results_float32(twin):
    ops, xp = twin.ops, twin.ops.xp
    x, w, blocks, b = map(twin.array, (draw(5, 8), draw(3, 8), draw(2, 3, 4), draw(3)))
    narrow, narrow_x = xp.bfloat16(w), xp.bfloat16(x)
    product, plain = xp.float32(xp.linear(narrow_x, narrow)), xp.linear(x, w)
    weights, biases = [narrow, w, narrow, w], [b, b, None, None]
    ys = ops.linears(x, weights, biases)
    for y, expected in zip(ys, [product + b, plain + b, product, plain], strict=True):
        assert_close(twin.numpy(y), twin.numpy(expected), near.OP_F32)
    (y,) = ops.block_diagonal(x, [xp.bfloat16(blocks)])
    assert {twin.numpy(one).dtype for one in (y, *ys)} == {np.dtype(np.float32)}


def rounded_to_bf16(x):
    """Numbers rounded to the nearest bfloat16, or to the even one."""
    bits = x.view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) & np.uint32(0xFFFF0000)).view(np.float32)


@each_of("rows, into, out", [(1, 1, 3), (37, 21, 45), (64, 15, 32), (300, 33, 8), (45, 1100, 70)])
def test_native_bf16_matmuls_are_those_of_rounded_factors(rows, into, out):
    x, w, dy = draw(rows, into), draw(out, into), draw(rows, out)
    y, dx, dw, how = *map(np.empty_like, (dy, x, w)), {"bfloat16": [True], "threads": 2}
    native.linears(x, [w], [None], [y], rounds=False, **how)
    native.linears_grad(x, [w], [dy], dx, [dw], [None], **how)
    x, w, dy = (rounded_to_bf16(one).astype(np.float64) for one in (x, w, dy))
    for actual, expected in ((y, x @ w.T), (dx, dy @ w), (dw, dy.T @ x)):
        assert_close(actual, expected, near.OP_F32)
    rounded = np.empty_like(y)
    native.linears(x.astype("f4"), [w.astype("f4")], [None], [rounded], **how)
    np.testing.assert_array_equal(rounded, rounded_to_bf16(y))


def test_native_bf16_matmuls_keep_nan_and_infinities():
    x = np.full((3, 32), np.array([np.nan, -np.inf, 3.4e38], np.float32)[:, None])
    x.view(np.uint32)[0] = 0xFFFFFFFF  # the NaN that becomes 0 if it is rounded as a number
    y, w = np.empty((3, 16), np.float32), np.ones((16, 32), np.float32)
    native.linears(x, [w], [None], [y], bfloat16=[True], threads=1)
    np.testing.assert_array_equal(y[:, 0], [np.nan, -np.inf, np.inf])


@each_of("activation", ACTIVATIONS)
def test_native_activations_far_out_are_finite_and_nan_stays_nan(activation):
    x, name = np.array([-1e20, -1e4, 1e4, 1e20, np.nan], np.float32), activation_name(activation)
    y, dx = np.empty_like(x), np.empty_like(x)
    native.activate(name, x, y, threads=1)
    native.activate_grad(name, x, np.ones_like(x), dx, threads=1)
    finite = slice(1, 3) if activation == "relu^2" else slice(4)  # 1e40 is infinite
    assert np.isfinite(y[finite]).all()
    assert np.isfinite(dx[:4]).all()
    assert np.isnan(y[4])


@in_pairs(twin=TWINS, op={"block_diagonal": [(4, 32, 32), (16, 4, 4)], "linears": [(5, 128)]})
def test_linear_layers_where_the_framework_has_the_faster_matmul(twin, op, monkeypatch):
    for module in (adapter_torch, adapter_mlx):
        monkeypatch.setattr(module, "FAST_GEMM", False)
    for weight in op:
        name = "linears" if len(weight) == 2 else "block_diagonal"
        x = draw(2, 5, 128 if name == "linears" else weight[0] * weight[2])
        linear_layers(name, x, [weight], False).check(twin)
