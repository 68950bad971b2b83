"""A model or an op in either framework with NumPy arrays, so that a test says what holds for each.

`TWINS` has every framework with every kind of kernels that is built.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import torch

from mlxhog.models import lm
from mlxhog.models.families import param_spec
from mlxhog.models.layers.layer import ForwardContext
from mlxhog.models.ops.eager.ops_float64 import OPS
from mlxhog.models.ops.kernels import MODULES, choose
from tests.tolerances import GRADIENT_ANY_F32, assert_close

mx.set_default_device(mx.cpu)


@dataclass(frozen=True)
class Twin:
    """One framework with one kind of kernels, on the CPU.

    The kernels "float64" are the reference, with arrays of torch in float64.
    """

    framework: str
    kernels: str

    @property
    def ops(self):
        if self.kernels == "float64":
            return OPS
        return choose(self.framework, self.kernels, "cpu")

    def array(self, x):
        """The framework's array; of every array in a tree, in which float64 becomes float32."""
        if self.kernels == "float64":
            return _map(x, lambda a: torch.tensor(a.astype("f8") if a.dtype.kind == "f" else a))
        convert = torch.tensor if self.framework == "torch" else mx.array
        return _map(x, lambda a: convert(a.astype("f4") if a.dtype == np.float64 else a))

    def numpy(self, x):
        if isinstance(x, tuple | list):
            return tuple(self.numpy(value) for value in x)
        return x.detach().numpy() if self.framework == "torch" else np.array(x)

    def logits(self, cfg, params, tokens, state=None):
        """Logits and last state; `state` as returned by `zero_state` or by an earlier call."""
        state = None if state is None else self.array(state)
        p, ids = self.array(params), self.array(tokens)
        y, new = lm.logits(cfg, p, ids, state, ops=self.ops)
        return self.numpy(y), [self.numpy(block) for block in new]

    def zero_state(self, cfg, B):
        return [self.numpy(block) for block in lm.init_state(cfg, B, self.ops.xp)]

    def hidden(self, cfg, params, tokens, state=None):
        """The residual stream after the embedding and each block, then after the last norm."""
        p, hidden = self.array(params), list[Any]()
        state = None if state is None else self.array(state)
        lm.logits(cfg, p, self.array(tokens), state, ops=self.ops, hidden=hidden)
        return [self.numpy(x) for x in hidden]

    def loss_and_grads(self, cfg, params, tokens, labels, masks=None, state=None):
        ids, targets = self.array(tokens), self.array(labels)
        how = {"masks": self.array(masks), "state": state and self.array(state)}

        def loss_of(p):
            return lm.mean_loss(cfg, p, ids, targets, ops=self.ops, **how)

        return self._value_and_grads(loss_of, params)

    def op(self, name, *args, **kwargs):
        return self.numpy(getattr(self.ops, name)(*self.array(args), **self.array(kwargs)))

    def op_grads(self, scalar, inputs):
        """Gradient of `scalar(ops, arrays by name)` with respect to every input that it reaches."""
        return self._value_and_grads(lambda p: scalar(self.ops, p), inputs)[1]

    def results(self, call, inputs, fixed=None):
        """Results of `call(ops, arrays by name)`, in a list: outputs, then states."""
        arrays = self.array(inputs) | self.array(fixed or {})
        return [self.numpy(y) for y in _flat(call(self.ops, arrays))]

    def run(self, call, inputs, fixed=None, weights=None):
        """The results, and the gradient of their weighted sum by every input that it reaches."""
        results, constant = self.results(call, inputs, fixed), self.array(fixed or {})
        if weights is None:
            rng = np.random.default_rng(9)
            weights = [rng.standard_normal(y.shape, np.float32) for y in results]
        factors = [self.array(np.asarray(w)) for w in weights]

        def total(ops, p):
            ys = _flat(call(ops, p | constant))
            return sum((y * w).sum() for y, w in zip(ys, factors, strict=True))

        return results, self.op_grads(total, inputs)

    def _value_and_grads(self, scalar, inputs):
        value, grads = self.ops.xp.value_and_grad(scalar, self.array(inputs))
        return value.item(), {name: self.numpy(grad) for name, grad in grads.items()}


def _flat(results):
    if isinstance(results, tuple | list):
        return [y for part in results for y in _flat(part)]
    return [results]


def _map(x, convert):
    if isinstance(x, np.ndarray):
        return convert(x)
    if isinstance(x, Mapping):
        return {key: _map(value, convert) for key, value in x.items()}
    if isinstance(x, Sequence) and not isinstance(x, str):
        return tuple(_map(value, convert) for value in x)
    return x


TWINS = {
    f"{framework}-{kernels}": Twin(framework, kernels)
    for (framework, kernels), module in MODULES.items()
    if importlib.util.find_spec(module) is not None
}


EXACT = Twin("torch", "float64")
"""The float64 operators, position by position; see `ops_float64`."""


def start(layer, d):
    """The state of a layer before the first position, with every part left out."""
    return (None,) * sum(map(len, layer.state_shapes(d, 0).values()))


def float64(layer, p, x):
    """The output (B, S, d) of a layer in float64, as the reference computes it."""
    arrays = {name: torch.tensor(value, dtype=torch.float64) for name, value in p.items()}
    x = torch.tensor(x, dtype=torch.float64)
    y, _ = layer.forward(arrays, x, start(layer, x.shape[-1]), ForwardContext(OPS))
    return y.numpy()


def assert_agreement(cfg, params, tokens, labels):
    """All twins compute the gradients of the eager operators of torch."""
    by_twin = {
        name: twin.loss_and_grads(cfg, params, tokens, labels)[1] for name, twin in TWINS.items()
    }
    expected = by_twin.pop("torch-eager")
    for grads in by_twin.values():
        for name in param_spec(cfg):
            assert_close(grads[name], expected[name], GRADIENT_ANY_F32, label=name)
