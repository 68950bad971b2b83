"""PyTorch's side: the models as `Engine` wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from mlxhog.models import lm
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.kernels import Ops, choose
from mlxhog.parity.engines import Forward, State
from mlxhog.parity.faults import replaced
from mlxhog.parity.subject import Array


class TorchEngine:
    """One device and one form of the operators; see `Engine`."""

    def __init__(self, device: str, kernels: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._device, self._kernels = torch.device(device), kernels

    def load(self, cfg: ModelConfig, params: Mapping[str, Array]) -> None:
        """See `Engine.load`."""
        self._cfg = cfg
        self._params = {name: self._array(value) for name, value in params.items()}

    def forward(self, tokens: Array, state: State | None = None) -> Forward:
        """See `Engine.forward`."""
        hidden: list[torch.Tensor] = []
        ops, ids = self._ops(), self._array(tokens).long()
        with torch.inference_mode():
            logits, state = lm.forward(
                self._cfg,
                self._params,
                lm.embed(self._cfg, self._params, ids, ops.xp),
                state,
                ops=ops,
                starts=lm.starts(self._cfg, ids),
                hidden=hidden,
            )
        return Forward(_host(logits), [_host(x) for x in hidden], state)

    def differentiate(self, tokens: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """See `Engine.differentiate`."""
        ops, ids = self._ops(), self._array(tokens).long()
        leaves = {name: value.clone().requires_grad_() for name, value in self._params.items()}
        loss = lm.loss_from_embedding(
            self._cfg,
            leaves,
            lm.embed(self._cfg, leaves, ids, ops.xp),
            self._array(targets).long(),
            ops=ops,
            starts=lm.starts(self._cfg, ids),
        )
        grads = torch.autograd.grad(loss, list(leaves.values()))
        return loss.item(), {name: _host(g) for name, g in zip(leaves, grads, strict=True)}

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
        arrays = {name: self._array(value) for name, value in inputs.items()}
        leaves = {name: x.requires_grad_() for name, x in arrays.items() if x.is_floating_point()}
        y, others = call(ops, arrays)
        grads: dict[str, Array] = {}
        if weight is not None:
            scalar = (y * self._array(weight)).sum()
            made = torch.autograd.grad(
                scalar, list(leaves.values()), allow_unused=True, materialize_grads=True
            )  # what is not used has a gradient of zero
            grads = {name: _host(g) for name, g in zip(leaves, made, strict=True)}
        return _host(y), [_host(x) for x in others], grads

    def off(self, operator: str, offset: Callable[[Array], Array]) -> AbstractContextManager[None]:
        """See `Engine.off`."""
        ops = self._ops()
        return replaced(ops, operator, lambda y: y + self._array(offset(_host(y))))

    def _ops(self) -> Ops[torch.Tensor]:
        return choose("torch", self._kernels, self._device.type)

    def _array(self, x: Array) -> torch.Tensor:
        return torch.tensor(x, device=self._device)


def _host(x: torch.Tensor) -> Array:
    found: Array = x.detach().cpu().contiguous().numpy()
    return found
