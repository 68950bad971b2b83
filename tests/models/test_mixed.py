"""Mixed precision: every implementation rounds the same values to bfloat16, and no others."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mlxhog.models.layers import BUILT_IN
from mlxhog.models.layers.feed_forward import FeedForwardV1
from mlxhog.models.layers.layer import ForwardContext
from mlxhog.models.layers.xlstm import LargeMLSTM
from mlxhog.models.ops.arrays import MatmulWeight
from mlxhog.models.ops.kernels import choose
from mlxhog.models.spec import initial_value
from tests import tolerances as near
from tests.models.operators import METAL, draw, linear_layers, mlstm
from tests.models.test_operators import LAYERS, METAL_CASES, SEQUENCES, rounded_to_bf16
from tests.models.twins import EXACT, TWINS, Twin, start
from tests.pairs import each_of
from tests.tolerances import assert_close

MULTIPLIED = {"linears", "block_diagonal", "linear_cross_entropy"}
IN_FLOAT32 = {"slstm_cell", "linear_cross_entropy"}  # whose inputs are never rounded
ROUNDED = {"linears", "block_diagonal", "mlstm_cell", "causal_conv"}
ACTIVATIONS = {"q", "k", "v", "x", "gate", "up", "h", "o", "c", "z"}  # inputs, by their names
CASES = {case.op: case for case in (SEQUENCES | METAL_CASES | LAYERS).values()}
CASES["linears"] = linear_layers("linears", draw(2, 3, 24), [(5, 24), (4, 24), (40, 24)], True)


@dataclass(frozen=True)
class MixedTwin(Twin):
    """A twin in mixed precision, with arrays of bfloat16 where it keeps them."""

    @property
    def ops(self):
        return super().ops.autocast({}, ())[0].keeping_bf16()

    def numpy(self, x):
        return super().numpy(x if isinstance(x, tuple | list) else self.ops.xp.float32(x))


def mixed(twin):
    return MixedTwin(twin.framework, twin.kernels)


@pytest.mark.slow
@each_of("twin", (ALL := TWINS | METAL).values(), ids=ALL)
@each_of("case", CASES.values(), ids=CASES)
def test_an_operator_rounds_what_it_rounds_in_float64(twin, case):
    def call(ops, p):
        weights = {name for name in p if name[0] == "w" and case.op in MULTIPLIED} - {"w1"}
        narrow = ACTIVATIONS & p.keys() if case.op not in IN_FLOAT32 else set()
        p = p | {name: MatmulWeight(p[name]) for name in weights}
        return case(ops, p | {name: ops.bfloat16(p[name]) for name in narrow})

    is_rounded = case.op in ROUNDED
    result = near.OP_BF16 if is_rounded else case.result
    results, grads = mixed(twin).run(call, case.inputs, case.fixed)
    expected, wanted = mixed(EXACT).run(call, case.inputs, case.fixed)
    for y, exact in zip(results, expected, strict=True):
        assert_close(y, exact, result)
    for name, grad in wanted.items():
        assert_close(grads[name], grad, near.OP_GRADIENT_BF16, label=name)


D = 32
LAYERS_OF_ALL = [cls() for cls in BUILT_IN] + [
    LargeMLSTM(
        heads=4, qk=32, v=32, bias=True, chunk_size=8, eps=1e-6, gate_cap=15.0, residual="zeros"
    ),
    FeedForwardV1(inner=48, act_fn="gelu", bias=True, residual="zeros"),
]  # fmt: skip


class Watched:
    """Operators that compare results of weights without autocast with those of float32, in bits."""

    def __init__(self, ops, plain, numpy):
        self._ops, self._plain, self._numpy = ops, plain, numpy

    def __getattr__(self, name):
        operator = getattr(self._ops, name)
        return operator if name not in MULTIPLIED else lambda *x: self._compared(name, *x)

    def _compared(self, name, x, weights, biases=None):
        ys, biases = getattr(self._ops, name)(x, weights, biases), biases or [None] * len(weights)
        exact = [k for k, w in enumerate(weights) if not isinstance(w, MatmulWeight)]
        if exact:
            own = [weights[k] for k in exact], [biases[k] for k in exact]
            wide = self._plain.xp.float32(x)
            for k, y in zip(exact, getattr(self._plain, name)(wide, *own), strict=True):
                np.testing.assert_array_equal(*map(self._numpy, (ys[k], y)))
        return ys


@each_of("twin", TWINS.values(), ids=TWINS)
@each_of("layer", LAYERS_OF_ALL, ids=[layer.name for layer in LAYERS_OF_ALL])
def test_a_layer_computes_with_a_weight_without_autocast_in_float32(twin, layer):
    layer = layer.at_width(D)
    spec = list(layer.param_spec(D))
    params = {one.name: initial_value(one, 0) + 0.1 * draw(*one.shape) for one in spec}
    plain = choose(twin.framework, twin.kernels, "cpu")

    def total(arrays):
        own = {name: x for name, x in arrays.items() if name != "input"}
        ops, p = plain.autocast(own, {one.name for one in spec if one.autocast})
        ops = ops.keeping_bf16() if layer.keeps_bf16 else ops
        context = ForwardContext(Watched(ops, plain, twin.numpy), max_length=9)
        y, _ = layer.forward(p, arrays["input"], start(layer, D), context)
        return (plain.xp.float32(y) ** 2).sum()

    arrays = twin.array({"input": draw(2, 9, D)} | params)
    _, grads = plain.xp.value_and_grad(total, arrays)
    for name, grad in grads.items():
        grad = twin.numpy(grad)
        assert grad.dtype == np.float32, name
        assert np.isfinite(grad).all(), name


def test_a_layer_in_bfloat16_saves_half_as_much_for_its_gradient():
    layer, saved = FeedForwardV1(inner=48, act_fn="gelu", bias=False, residual="ones"), []
    plain, twin = choose("torch", "eager", "cpu"), TWINS["torch-eager"]
    for names in ((), [one.name for one in layer.param_spec(D)]):
        own = {one.name: twin.array(initial_value(one, 0)) for one in layer.param_spec(D)}
        leaves = {name: x.requires_grad_() for name, x in own.items()}
        ops, p = plain.autocast(leaves, names) if names else (plain, leaves)
        rows = dict[int, int]()

        def keep(x, rows=rows):
            if x.shape[0] == 2 or x.shape[0] == 2 * 9:  # and not a weight
                rows[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            layer.forward(p, twin.array(draw(2, 9, D)), (), ForwardContext(ops.keeping_bf16()))
        saved.append(sum(rows.values()))
    assert saved[1] <= saved[0] / 2


@each_of("twin", METAL.values(), ids=METAL)
def test_a_metal_kernel_reads_and_writes_arrays_of_bfloat16(twin):
    case = CASES["causal_conv"]
    p = twin.array(case.inputs)
    ops, p["x"] = mixed(twin).ops, twin.ops.xp.bfloat16(p["x"])
    ran = twin.ops.engine.ran
    ran.clear()
    y, last = ops.causal_conv(p["x"], p["w"], p["b"], silu=True)
    assert ran == {"conv_forward_bfloat16"}
    assert ("bfloat16" in str(y.dtype), "float32" in str(last.dtype)) == (True, True)


@each_of("twin", METAL.values(), ids=METAL)
def test_the_mlstm_on_metal_keeps_bfloat16_where_q_k_and_v_all_have_it(twin):
    case, ran, xp = mlstm(7), twin.ops.engine.ran, twin.ops.xp
    p, of_both = twin.array(case.inputs), {"mlstm_gates", "mlstm_weights"}
    for names, type_ in (("qkv", "_bfloat16"), ("qk", "")):
        ran.clear()
        own = p | {name: xp.bfloat16(p[name]) for name in names}
        h, state = case(twin.ops, own | twin.array(case.fixed))
        assert ran == of_both | {f"mlstm_states{type_}", f"mlstm_out{type_}"}
        assert ("bfloat16" in str(h.dtype)) == bool(type_)
        assert all("float32" in str(x.dtype) for x in state)


def test_the_logits_stay_float32_as_their_factors_are_rounded():
    x, w, b = draw(5, 24), draw(40, 24, seed=1), draw(40, seed=2)
    for twin in (*ALL.values(), EXACT):
        ops = mixed(twin).ops
        weight = MatmulWeight(twin.array(w))
        logits = twin.numpy(ops.logits(twin.array(x), weight, twin.array(b)))
        expected = rounded_to_bf16(x).astype("f8") @ rounded_to_bf16(w).astype("f8").T + b
        assert_close(logits, expected, near.OP_F32)
