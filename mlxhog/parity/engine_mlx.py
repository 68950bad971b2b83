"""MLX's side: the models as `Engine` wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import numpy as np

from mlxhog.models import lm
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.kernels import Ops, choose
from mlxhog.models.ops.native import adapter_mlx as native_mlx
from mlxhog.parity.engines import Forward, State
from mlxhog.parity.faults import replaced
from mlxhog.parity.subject import Array


class MLXEngine:
    """One device and one form of the operators; see `Engine`."""

    def __init__(self, device: str, kernels: str, threads: int) -> None:
        mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
        native_mlx.set_threads(threads)
        self._device, self._kernels = device, kernels

    def load(self, cfg: ModelConfig, params: Mapping[str, Array]) -> None:
        """See `Engine.load`."""
        self._cfg = cfg
        self._params = {name: mx.array(value) for name, value in params.items()}

    def forward(self, tokens: Array, state: State | None = None) -> Forward:
        """See `Engine.forward`."""
        hidden: list[mx.array] = []
        ops, ids = self._ops(), mx.array(tokens)
        logits, state = lm.forward(
            self._cfg,
            self._params,
            lm.embed(self._cfg, self._params, ids, ops.xp),
            state,
            ops=ops,
            starts=lm.starts(self._cfg, ids),
            hidden=hidden,
        )
        mx.eval(logits, hidden, state)
        return Forward(_host(logits), [_host(x) for x in hidden], state)

    def differentiate(self, tokens: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """See `Engine.differentiate`."""
        ops, ids, labels = self._ops(), mx.array(tokens), mx.array(targets)

        def loss_of(params: Mapping[str, mx.array]) -> Any:
            return lm.loss_from_embedding(
                self._cfg,
                params,
                lm.embed(self._cfg, params, ids, ops.xp),
                labels,
                ops=ops,
                starts=lm.starts(self._cfg, ids),
            )

        loss, grads = mx.value_and_grad(loss_of)(self._params)
        mx.eval(loss, grads)
        return _host(loss).item(), {name: _host(g) for name, g in grads.items()}

    def parts(self, state: State) -> list[list[Array]]:
        """See `Engine.parts`."""
        return [[_host(part) for part in block] for block in state]

    def apply(
        self,
        call: Callable[[Any, Mapping[str, Any]], tuple[Any, Any]],
        inputs: Mapping[str, Array],
        weight: Array | None = None,
    ) -> tuple[Array, list[Array], dict[str, Array]]:
        """See `Engine.apply`."""
        ops = self._ops()
        arrays = {name: mx.array(value) for name, value in inputs.items()}
        y, others = call(ops, arrays)
        grads: dict[str, mx.array] = {}
        if weight is not None:
            w = mx.array(weight)
            grads = mx.grad(lambda xs: (call(ops, xs)[0] * w).sum())(arrays)
        found = {name: _host(g) for name, g in grads.items()}
        return _host(y), [_host(x) for x in others], found

    def off(self, operator: str, offset: Callable[[Array], Array]) -> AbstractContextManager[None]:
        """See `Engine.off`."""
        ops = self._ops()

        def wrong(y: mx.array) -> mx.array:
            return y + mx.stop_gradient(mx.array(offset(np.array(y))))

        return replaced(ops, operator, wrong)

    def _ops(self) -> Ops[mx.array]:
        return choose("mlx", self._kernels, self._device)


def _host(x: mx.array) -> Array:
    return np.ascontiguousarray(np.array(x))
