"""Both twins behind one interface of NumPy arrays, so that a test says what holds for each.

`TWINS` has every framework with every kind of kernels that is built.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
import torch
from numpy.typing import NDArray

from mlxhog.models import lm_mlx, lm_torch
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.kernels import MODULES, choose

Array = NDArray[Any]
Params = Mapping[str, Array]
State = tuple[Array, ...]

mx.set_default_device(mx.cpu)


class Twin(Protocol):
    @property
    def kernels(self) -> str: ...

    def logits(
        self, cfg: ModelConfig, params: Params, tokens: Array, state: Any = None
    ) -> tuple[Array, list[State]]:
        """Logits and last state; `state` as returned by `zero_state` or by an earlier call."""

    def zero_state(self, cfg: ModelConfig, B: int) -> Any: ...

    def hidden(self, cfg: ModelConfig, params: Params, tokens: Array) -> list[Array]:
        """The residual stream after the embedding and each block, then after the last norm."""

    def loss_and_grads(
        self,
        cfg: ModelConfig,
        params: Params,
        tokens: Array,
        labels: Array,
        masks: Params | None = None,
    ) -> tuple[float, dict[str, Array]]: ...

    def sum_loss(self, cfg: ModelConfig, params: Params, tokens: Array, labels: Array) -> float: ...

    def op(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call one of the ops with NumPy arguments."""

    def op_grads(self, scalar: Callable[[Any, Any], Any], inputs: Params) -> dict[str, Array]:
        """Gradient of `scalar(ops, arrays by name)` with respect to every input that it reaches."""

    def array(self, x: Array) -> Any:
        """An array of the framework."""

    def numpy(self, x: Any) -> Array:
        """A NumPy array of one of the framework."""


@dataclass(frozen=True)
class TorchTwin:
    kernels: str

    def array(self, x: Array) -> Any:
        return _torch(x)

    def numpy(self, x: Any) -> Array:
        return np.asarray(x.numpy())

    def logits(
        self, cfg: ModelConfig, params: Params, tokens: Array, state: Any = None
    ) -> tuple[Array, list[State]]:
        p, ids = _torch(params), torch.tensor(tokens)
        y, new = lm_torch.forward(
            cfg,
            p,
            lm_torch.embed(cfg, p, ids),
            None if state is None else _torch(state),
            kernels=self.kernels,
            starts=lm_torch.starts(cfg, ids),
        )
        return y.numpy(), [tuple(part.numpy() for part in block) for block in new]

    def zero_state(self, cfg: ModelConfig, B: int) -> Any:
        return [tuple(part.numpy() for part in s) for s in lm_torch.init_state(cfg, B)]

    def hidden(self, cfg: ModelConfig, params: Params, tokens: Array) -> list[Array]:
        p, hidden = _torch(params), list[Any]()
        x = lm_torch.embed(cfg, p, torch.tensor(tokens))
        lm_torch.forward(cfg, p, x, kernels=self.kernels, hidden=hidden)
        return [x.numpy() for x in hidden]

    def loss_and_grads(
        self,
        cfg: ModelConfig,
        params: Params,
        tokens: Array,
        labels: Array,
        masks: Params | None = None,
    ) -> tuple[float, dict[str, Array]]:
        p = {name: value.requires_grad_() for name, value in _torch(params).items()}
        ids = torch.tensor(tokens)
        loss = lm_torch.loss_from_embedding(
            cfg,
            p,
            lm_torch.embed(cfg, p, ids),
            torch.tensor(labels),
            kernels=self.kernels,
            starts=lm_torch.starts(cfg, ids),
            masks=_torch(masks),
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item(), {name: value.grad.numpy() for name, value in p.items()}

    def sum_loss(self, cfg: ModelConfig, params: Params, tokens: Array, labels: Array) -> float:
        p = _torch(params)
        x = lm_torch.embed(cfg, p, torch.tensor(tokens))
        return lm_torch.sum_loss(cfg, p, x, torch.tensor(labels), kernels=self.kernels).item()

    def op(self, name: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(choose("torch", self.kernels, "cpu"), name)(
            *_torch(args), **_torch(kwargs)
        )
        return _numpy(result)

    def op_grads(self, scalar: Callable[[Any, Any], Any], inputs: Params) -> dict[str, Array]:
        arrays = {name: value.requires_grad_() for name, value in _torch(inputs).items()}
        scalar(choose("torch", self.kernels, "cpu"), arrays).backward()
        return {name: v.grad.numpy() for name, v in arrays.items() if v.grad is not None}


@dataclass(frozen=True)
class MlxTwin:
    kernels: str

    def array(self, x: Array) -> Any:
        return _mlx(x)

    def numpy(self, x: Any) -> Array:
        return np.array(x)

    def logits(
        self, cfg: ModelConfig, params: Params, tokens: Array, state: Any = None
    ) -> tuple[Array, list[State]]:
        p, ids = _mlx(params), mx.array(tokens)
        y, new = lm_mlx.forward(
            cfg,
            p,
            lm_mlx.embed(cfg, p, ids),
            None if state is None else _mlx(state),
            kernels=self.kernels,
            starts=lm_mlx.starts(cfg, ids),
        )
        return np.array(y), [tuple(np.array(part) for part in block) for block in new]

    def zero_state(self, cfg: ModelConfig, B: int) -> Any:
        return [tuple(np.array(part) for part in s) for s in lm_mlx.init_state(cfg, B)]

    def hidden(self, cfg: ModelConfig, params: Params, tokens: Array) -> list[Array]:
        p, hidden = _mlx(params), list[Any]()
        x = lm_mlx.embed(cfg, p, mx.array(tokens))
        lm_mlx.forward(cfg, p, x, kernels=self.kernels, hidden=hidden)
        return [np.array(x) for x in hidden]

    def loss_and_grads(
        self,
        cfg: ModelConfig,
        params: Params,
        tokens: Array,
        labels: Array,
        masks: Params | None = None,
    ) -> tuple[float, dict[str, Array]]:
        ids = mx.array(tokens)

        def loss_of(p: Any) -> Any:
            return lm_mlx.loss_from_embedding(
                cfg,
                p,
                lm_mlx.embed(cfg, p, ids),
                mx.array(labels),
                kernels=self.kernels,
                starts=lm_mlx.starts(cfg, ids),
                masks=_mlx(masks),
            )

        loss, grads = mx.value_and_grad(loss_of)(_mlx(params))
        return loss.item(), {name: np.array(value) for name, value in grads.items()}

    def sum_loss(self, cfg: ModelConfig, params: Params, tokens: Array, labels: Array) -> float:
        p = _mlx(params)
        x = lm_mlx.embed(cfg, p, mx.array(tokens))
        total = lm_mlx.sum_loss(cfg, p, x, mx.array(labels), kernels=self.kernels)
        return float(np.array(total))

    def op(self, name: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(choose("mlx", self.kernels, "cpu"), name)(*_mlx(args), **_mlx(kwargs))
        return _numpy(result)

    def op_grads(self, scalar: Callable[[Any, Any], Any], inputs: Params) -> dict[str, Array]:
        ops = choose("mlx", self.kernels, "cpu")
        grads = mx.grad(lambda arrays: scalar(ops, arrays))(_mlx(inputs))
        return {name: np.array(value) for name, value in grads.items()}


def _torch(x: Any) -> Any:
    return _map(x, torch.tensor)


def _mlx(x: Any) -> Any:
    return _map(x, mx.array)


def _map(x: Any, convert: Callable[[Array], Any]) -> Any:
    """Convert every array in a tree of tuples, lists and mappings; float64 becomes float32."""
    if isinstance(x, np.ndarray):
        return convert(x.astype(np.float32) if x.dtype == np.float64 else x)
    if isinstance(x, Mapping):
        return {key: _map(value, convert) for key, value in x.items()}
    if isinstance(x, Sequence) and not isinstance(x, str):
        return tuple(_map(value, convert) for value in x)
    return x


def _numpy(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(_numpy(value) for value in x)
    return x.numpy() if isinstance(x, torch.Tensor) else np.array(x)


def _built() -> dict[str, Twin]:
    make: dict[str, type[TorchTwin] | type[MlxTwin]] = {"torch": TorchTwin, "mlx": MlxTwin}
    return {
        f"{framework}-{kernels}": make[framework](kernels)
        for (framework, kernels), module in MODULES.items()
        if importlib.util.find_spec(module) is not None
    }


TWINS = _built()
