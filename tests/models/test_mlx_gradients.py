"""Gradients of MLX's eager operators: row-major weights, and work that is linear in the length."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from mlxhog.models import lm
from mlxhog.models.layers import known
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import parse
from mlxhog.models.ops import arrays_mlx
from mlxhog.models.ops.eager.ops_mlx import OPS
from tests.models.sample import batch, config, perturbed_params, v1_config
from tests.pairs import each_of
from tests.tolerances import OP_GRADIENT_F32, assert_close
from tools.counts import primitives

WIDE = {"mlstm": {"num_heads": 2, "qkv_proj_blocksize": 8}}
MODELS = {
    "large": partial(config, use_bias=True),
    "large, tied": partial(config, tie_word_embeddings=True),
    "v1": v1_config,
    "v1 of wide blocks": partial(v1_config, mlstm_block=WIDE),
} | {
    layer: partial(MADConfig, vocab_size=23, hidden_size=16, layers=parse(layer))
    for layer in known()
}
W = (3,)
QKV = (W, W, W)
CELLS = {
    "mlstm": ((*QKV, (), ()), partial(OPS.mlstm_cell, chunk_size=2, eps=1e-6)),
    "mlstm, recurrent": ((*QKV, (), ()), partial(OPS.mlstm_recurrent, eps=1e-6, state=None)),
    "slstm": ((W,) * 4, lambda *x: OPS.slstm_cell(*x, mx.ones((1, 12, 3)), mx.ones(12))),
    "decay": ((*QKV, W), partial(OPS.recurrence, chunk_size=2)),
    "decay by value": ((*QKV, W), partial(OPS.recurrence, chunk_size=2, transpose_state=True)),
    "delta": (
        (*QKV, (1,), ()), lambda *x: OPS.recurrence(*x[:-1], beta=x[-1], chunk_size=2),
    ),
    "dplr": (
        (*QKV, W, W, W),
        lambda *x: OPS.recurrence(*x[:-2], read=x[-2], removal=x[-1], chunk_size=2),
    ),
}  # fmt: skip
"""Shapes of a head's inputs at a position, and the cell."""


@each_of("model", MODELS.values(), ids=MODELS)
@pytest.mark.slow
def test_the_gradient_of_every_matrix_is_row_major(model):
    cfg = model()
    params = {name: mx.array(value) for name, value in perturbed_params(cfg, seed=0).items()}
    tokens, labels = map(mx.array, batch(cfg, 2, 9, seed=0))

    def loss(params):
        return lm.mean_loss(cfg, params, tokens, labels, ops=OPS)

    grads = mx.grad(loss)(params)
    mx.eval(grads)
    views = {name: np.array(grad, copy=False) for name, grad in grads.items() if grad.ndim > 1}
    assert [name for name, view in views.items() if not view.flags.c_contiguous] == []


def gradient(name, S):
    shapes, cell = CELLS[name]
    inputs = [mx.full((1, S, 1, *shape), -0.1) for shape in shapes]
    mx.eval(inputs)
    grads = mx.grad(lambda *x: cell(*x)[0].sum(), argnums=list(range(len(inputs))))(*inputs)
    return list(grads)


@pytest.mark.slow
@each_of("name", CELLS)
def test_no_position_or_chunk_has_a_gradient_of_the_size_of_the_sequence(name):
    short, long = (primitives(gradient(name, S)).count("SliceUpdate") for S in (48, 144))
    assert short == long


@each_of("count", [1, 2, 10, 11, 100, 123])
def test_the_entries_of_any_number_have_their_gradient(count):
    x = mx.arange(count * 2, dtype=mx.float32).reshape(2, count)
    weights = mx.arange(count) + 1

    def total(x):
        entries = arrays_mlx.unstack(x, 1)
        return sum(weights[j] * entry.sum() for j, entry in enumerate(entries))

    value, grad = mx.value_and_grad(total)(x)
    assert value.item() == (weights * x).sum().item()
    np.testing.assert_array_equal(np.array(grad), np.broadcast_to(np.array(weights), (2, count)))


SECOND = {
    "linear": (lambda x: arrays_mlx.linear(x, x), lambda x: x @ x.T),
    "affine": (lambda x: arrays_mlx.linear(x, x, x[0]), lambda x: x @ x.T + x[0]),
    "two linears": (lambda x: sum(OPS.linears(x, [x, 2 * x])), lambda x: 3 * x @ x.T),
    "many linears": (
        lambda x: mx.concatenate(OPS.linears(x, [x, 2 * x, x[:2]], [None, x[0], None]), -1),
        lambda x: mx.concatenate([x @ x.T, x @ (2 * x).T + x[0], x @ x[:2].T], -1),
    ),
    "log_sigmoid": (arrays_mlx.log_sigmoid, lambda x: -mx.logaddexp(-x, 0)),
    "soft_cap": (lambda x: OPS.soft_cap(x, 3.0), lambda x: 3.0 * mx.tanh(x / 3.0)),
    "swiglu": (lambda x: OPS.swiglu(x, x.T), lambda x: x * mx.sigmoid(x) * x.T),
    "head_norm_gate": (
        lambda x: OPS.head_norm_gate(x[None, :, None], x.T[None], x[0], 1e-6)[0],
        lambda x: mx.sigmoid(x.T) * (x[0] * mx.fast.layer_norm(x, None, None, 1e-6)),
    ),
}
"""A function with a gradient of its own, and the same in MLX's."""


@each_of("ours, plain", SECOND.values(), ids=SECOND)
def test_a_gradient_has_the_gradient_that_mlx_gives_it(ours, plain):
    x = mx.array(np.random.default_rng(0).standard_normal((4, 4), np.float32))

    def second(function):
        first = mx.grad(lambda x: (function(x) ** 3).sum())
        return mx.grad(lambda x: (first(x) ** 2).sum())(x)

    assert_close(second(ours), second(plain), OP_GRADIENT_F32)
