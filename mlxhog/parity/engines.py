"""Engines, which compute a side's results: NumPy arrays in, NumPy arrays out.

`NumPyEngine` runs the float64 references of models, `RoundingEngine` the same with every
intermediate result rounded to float32. `FrameworkEngine` runs models and single operators by one
framework, on one device and with one form of the operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxhog.backends import precision
from mlxhog.backends.autodiff import MLXArrays, TorchArrays
from mlxhog.models import lm, lm_numpy, ngrams
from mlxhog.models.families import ModelConfig
from mlxhog.models.ngrams import Carried
from mlxhog.models.ops.kernels import choose
from mlxhog.models.ops.operators import Ops
from mlxhog.parity.subject import Array

State = Any
"""Arrays of the engine; callers pass it to the next call, or to `parts`."""


@dataclass(frozen=True)
class Forward:
    """One pass through a model.

    Attributes:
        logits: (B, S, V), after the cap.
        hidden: (B, S, d) after the embedding, every block and the final norm.
        state: after the last position.
    """

    logits: Array
    hidden: Sequence[Array]
    state: State


class FrameworkEngine:
    """One framework on one device; holds one model at a time.

    Args:
        framework: "torch" or "mlx"; imported here.
        device: "cpu", "mps" or "gpu".
        kernels: form of the operators.
        threads: on the CPU.
    """

    def __init__(self, framework: str, device: str, kernels: str, threads: int) -> None:
        self._framework = (TorchArrays if framework == "torch" else MLXArrays)(device, threads)
        self._name, self._device, self._kernels = framework, device, kernels

    def load(self, cfg: ModelConfig, params: Mapping[str, Array]) -> None:
        """Copy a model's parameters, float32 under our names; tables stay where they are."""
        self._cfg, self._tables = cfg, params
        self._params = {
            name: self._array(value) for name, value in params.items() if not ngrams.is_table(name)
        }

    def forward(self, tokens: Array, state: State | None = None) -> Forward:
        """Compute tokens (B, S) int32 from the start, or from a state of an earlier call."""
        hidden: list[Any] = []
        before, state = _parted(state)
        ops, ids = self._ops(), self._framework.indices(tokens)
        rows = self._rows(tokens, before)
        with self._framework.without_gradient():
            logits, state = lm.forward(
                self._cfg,
                self._params,
                self._embedded(self._params, ids, rows, ops),
                state,
                ops=ops,
                starts=lm.starts(self._cfg, ids),
                hidden=hidden,
            )
        self._framework.evaluate(logits, hidden, state)
        after = _carried(self._cfg, tokens, before, state)
        return Forward(self._host(logits), [self._host(x) for x in hidden], after)

    def _rows(self, tokens: Array, before: Array | None) -> Array | None:
        """The rows of the n-grams that end in each token; None without tables."""
        if (tables := ngrams.of(self._cfg)) is None:
            return None
        return tables.gather(self._tables, tables.rows_of(tokens, before))

    def _embedded(self, params: Mapping[str, Any], ids: Any, rows: Any, ops: Ops) -> Any:
        x = lm.embed(self._cfg, params, ids, ops.xp)
        return x if rows is None else lm.add_ngrams(params, x, self._array(rows), ops)

    def differentiate(self, tokens: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """Return the mean loss in nats, and its gradient by parameter, each in its full shape.

        That of tables is the gradient of the rows that were read, under `ngrams.ROWS`.
        """
        ops, ids = self._ops(), self._framework.indices(tokens)
        labels = self._framework.indices(targets)

        rows = self._rows(tokens, None)
        read = {} if rows is None else {ngrams.ROWS: self._array(rows)}

        def loss_of(params: Mapping[str, Any]) -> Any:
            x = lm.embed(self._cfg, params, ids, ops.xp)
            return lm.loss_from_embedding(
                self._cfg,
                params,
                lm.add_ngrams(params, x, params[ngrams.ROWS], ops) if read else x,
                labels,
                ops=ops,
                starts=lm.starts(self._cfg, ids),
            )

        loss, grads = self._framework.value_and_grad(loss_of, self._params | read)
        return self._host(loss).item(), {name: self._host(g) for name, g in grads.items()}

    def parts(self, state: State) -> list[list[Array]]:
        """Return a state as arrays, a list per block."""
        return [[self._host(part) for part in block] for block in _parted(state)[1]]

    def apply(
        self,
        call: Callable[[Any, Mapping[str, Any]], tuple[Any, Any]],
        inputs: Mapping[str, Array],
        weight: Array | None = None,
    ) -> tuple[Array, list[Array], dict[str, Array]]:
        """Call operators on arrays of the framework, and differentiate them.

        Args:
            call: (operators, arrays by name) -> (result, other results).
            inputs: the arrays.
            weight: of the result, in the scalar sum(result * weight); None for no gradient.

        Returns:
            The result, the other results, and the gradient of the scalar by input.
        """
        ops = self._ops()
        arrays = precision.uploaded(self._framework, inputs)
        y, others = call(ops, self._framework.leaves(arrays))
        grads: dict[str, Any] = {}
        if weight is not None:
            w = self._array(weight)
            _, grads = self._framework.value_and_grad(
                lambda xs: (call(ops, xs)[0] * w).sum(), arrays
            )
        gradient = {name: self._host(g) for name, g in grads.items()}
        return self._host(y), [self._host(x) for x in others], gradient

    def _ops(self) -> Ops:
        return choose(self._name, self._kernels, self._device)

    def _array(self, x: Array) -> Any:
        return self._framework.array(x)

    def _host(self, x: Any) -> Array:
        return self._framework.host(x)


class NumPyEngine:
    """The references of models in float64; methods as of `FrameworkEngine`."""

    def load(self, cfg: ModelConfig, params: Mapping[str, Array]) -> None:
        """Take a model's parameters; they are neither copied nor written."""
        self._cfg, self._params = cfg, params

    def forward(self, tokens: Array, state: State | None = None) -> Forward:
        """Compute tokens from the start, or from a state of an earlier call."""
        hidden: list[Any] = []
        before, state = _parted(state)
        logits, state = lm_numpy.forward(
            self._cfg,
            self._params,
            lm_numpy.embed(self._cfg, self._params, tokens, before),
            state,
            starts=lm_numpy.starts(self._cfg, tokens),
            hidden=hidden,
        )
        return Forward(logits, hidden, _carried(self._cfg, tokens, before, state))

    def differentiate(self, tokens: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """Return the mean loss in nats, and its gradient by parameter."""
        return lm_numpy.differentiate(self._cfg, self._params, tokens, targets)

    def loss(self, tokens: Array, targets: Array) -> float:
        """Return the mean loss in nats."""
        return lm_numpy.loss(self._cfg, self._params, tokens, targets)

    def parts(self, state: State) -> list[list[Array]]:
        """Return a state as arrays, a list per block."""
        return [list(block) for block in _parted(state)[1]]


class RoundingEngine(NumPyEngine):
    """The references of models, with every intermediate result rounded to float32."""

    def load(self, cfg: ModelConfig, params: Mapping[str, Array]) -> None:
        """Take a model's parameters, which are not rounded."""
        super().load(cfg, {n: x.astype(np.float64).view(_Rounding) for n, x in params.items()})


class _Rounding(np.ndarray[Any, Any]):
    """Float64 numbers; results that NumPy computes from them are rounded to float32, and so on."""

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any
    ) -> Any:
        if out is not None:
            kwargs["out"] = tuple(map(_plain, out))
        return _rounded(
            getattr(ufunc, method)(*map(_plain, inputs), **kwargs), in_place=out is not None
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _rounded(super().__array_function__(function, types, args, kwargs))


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, _Rounding) else x


def _rounded(y: Any, *, in_place: bool = False) -> Any:
    if isinstance(y, tuple):
        return tuple(_rounded(one, in_place=in_place) for one in y)
    if not isinstance(y, np.ndarray | np.floating) or y.dtype != np.float64:
        return y
    with np.errstate(over="ignore"):  # beyond float32: the noise is infinite then
        near = np.asarray(y).astype(np.float32).astype(np.float64)
    if in_place:
        np.asarray(y)[...] = near
    return near.view(_Rounding)


def _parted(state: State | None) -> tuple[Any, Any]:
    """The ids before, None without tables or at the start, and the state of the blocks."""
    return state if isinstance(state, Carried) else (None, state)


def _carried(cfg: ModelConfig, tokens: Array, before: Array | None, state: State) -> State:
    """The state after tokens, with the ids before the next ones if the model has tables."""
    if (tables := ngrams.of(cfg)) is None:
        return state
    before = tables.nothing_before(len(tokens)) if before is None else before
    return Carried(ngrams.last_of(tokens, before), state)


ModelEngine = FrameworkEngine | NumPyEngine
"""Computes a model in the process that made it."""
