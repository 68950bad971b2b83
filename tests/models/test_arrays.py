"""The array functions are the same in both frameworks, as NumPy says."""

import numpy as np

from mlxhog.models.ops.kernels import CHOICES, arrays, choose
from tests.pairs import each_of

X = np.linspace(-2.0, 2.0, 12).reshape(3, 4)
EXPRESSIONS = {
    "zeros": (lambda xp, x: xp.zeros((2, 0, 3), like=x), np.zeros((2, 0, 3))),
    "full": (lambda xp, x: xp.full((2,), 3, "int32", like=x), np.full(2, 3)),
    "like": (lambda xp, x: xp.ones_like(x) + xp.zeros_like(x) + xp.full_like(x, 2), X * 0 + 3),
    "arange": (lambda xp, x: xp.arange(2, 5, like=x), np.arange(2, 5)),
    "exp": (lambda xp, x: xp.exp(x), np.exp(X)),
    "log": (lambda xp, x: xp.log(xp.abs(x)), np.log(np.abs(X))),
    "sin": (lambda xp, x: xp.sin(x), np.sin(X)),
    "sigmoid": (lambda xp, x: xp.sigmoid(x), 1 / (1 + np.exp(-X))),
    "abs": (lambda xp, x: xp.abs(x), np.abs(X)),
    "softmax": (lambda xp, x: xp.softmax(x), np.exp(X) / np.exp(X).sum(-1, keepdims=True)),
    "bounds": (lambda xp, x: xp.minimum(xp.maximum(x, -1), 1.5), X.clip(-1, 1.5)),
    "greater": (lambda xp, x: xp.maximum(x, -x), np.abs(X)),
    "tanh": (lambda xp, x: xp.tanh(x), np.tanh(X)),
    "log_sigmoid": (lambda xp, x: xp.log_sigmoid(x), -np.logaddexp(0.0, -X)),
    "logsumexp": (lambda xp, x: xp.logsumexp(x, -1), np.log(np.exp(X).sum(-1))),
    "cumsum": (lambda xp, x: xp.cumsum(x, 1), X.cumsum(1)),
    "sums from there": (
        lambda xp, x: xp.cumsum(x, 1, reverse=True),
        X[:, ::-1].cumsum(1)[:, ::-1],
    ),
    "cummax": (lambda xp, x: xp.cummax(x, 1), np.maximum.accumulate(X, 1)),
    "cummin": (lambda xp, x: xp.cummin(-x, 1), np.minimum.accumulate(-X, 1)),
    "least from there": (
        lambda xp, x: xp.cummin(x, 1, reverse=True),
        np.minimum.accumulate(X[:, ::-1], 1)[:, ::-1],
    ),
    "amax": (lambda xp, x: xp.amax(x, 0), X.max(0)),
    "where": (lambda xp, x: xp.where(x > 0, x, 7.0), np.where(X > 0, X, 7.0)),
    "sort": (lambda xp, x: xp.sort(xp.stop_gradient(-x)), np.sort(-X)),
    "linear": (lambda xp, x: xp.linear(x, x, x[:, 0]), X @ X.T + X[:, 0]),
    "linears": (lambda xp, x: xp.linear(x[:, None], x[:, None]), (X * X).sum(1)[:, None, None]),
    "einsum": (lambda xp, x: xp.einsum("ij,kj->ki", x, x + 1), (X @ (X + 1).T).T),
    "concatenate": (lambda xp, x: xp.concatenate([x, x], 1), np.concatenate([X, X], 1)),
    "stack": (lambda xp, x: xp.stack([x, x], 1), np.stack([X, X], 1)),
    "unstack": (lambda xp, x: xp.unstack(x, 1)[2], X[:, 2]),
    "permute": (lambda xp, x: xp.permute(x[None], (2, 0, 1)), X[None].transpose(2, 0, 1)),
    "moveaxis": (lambda xp, x: xp.moveaxis(x[None], -1, 0), np.moveaxis(X[None], -1, 0)),
    "diagonal": (lambda xp, x: xp.diagonal(x[:, :3], 0, -2, -1), X[:, :3].diagonal()),
    "tril": (lambda xp, x: xp.tril(x, -1), np.tril(X, -1)),
    "split": (lambda xp, x: xp.split(x, 2, -1)[1], X[:, 2:]),
    "split at": (lambda xp, x: xp.split(x, [3], -1)[1], X[:, 3:]),
    "halves": (lambda xp, x: xp.halves(x[:2])[1], X[1:2]),
    "tile": (lambda xp, x: xp.tile(x, (1, 2)), np.tile(X, (1, 2))),
    "repeat": (lambda xp, x: xp.repeat(x, 2, 1), np.repeat(X, 2, 1)),
    "broadcast_to": (lambda xp, x: xp.broadcast_to(x[None], (2, 3, 4)), np.stack([X, X])),
    "pad": (lambda xp, x: xp.pad(x, [(1, 0), (0, 2)]), np.pad(X, [(1, 0), (0, 2)])),
    "pad with": (
        lambda xp, x: xp.pad(x, [(1, 0), (0, 2)], 7.0),
        np.pad(X, [(1, 0), (0, 2)], constant_values=7.0),
    ),
    "take_along_axis": (
        lambda xp, x: xp.take_along_axis(x, xp.int32(x * 0 + 1), 1)[:, :1],
        X[:, 1:2],
    ),
    "take": (lambda xp, x: xp.take(x, [2, 0]), X[[2, 0]]),
    "embedding": (lambda xp, x: xp.embedding(x, xp.arange(1, 3)[None]), X[None, 1:]),
    "types": (lambda xp, x: xp.astype(xp.float32(xp.bfloat16(x * 0 + 0.5)), x), X * 0 + 0.5),
}


@each_of("framework", ["torch", "mlx"])
@each_of("name", EXPRESSIONS)
def test_a_function_computes_what_numpy_does(framework, name):
    compute, expected = EXPRESSIONS[name]
    xp = arrays(framework)
    result = np.asarray(compute(xp, xp.from_numpy(X)))
    assert result.dtype.kind == expected.dtype.kind
    assert result.dtype.itemsize == 4 or name == "arange"
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@each_of("framework", ["torch", "mlx"])
@each_of("kernels", [name for name in CHOICES if name != "metal"])
def test_every_choice_of_operators_brings_them(framework, kernels):
    xp = choose(framework, kernels, "cpu").xp
    assert xp is arrays(framework)
    assert xp.framework == framework
