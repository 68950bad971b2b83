"""Inference in a backend: losses, logits and decoding, without gradients.

The model is computed by the functions of `lm`; on a CPU a native decoder computes single tokens
without the framework.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.backends import frozen
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.base import mapped
from mlxhog.data.batch import IGNORED, Batch
from mlxhog.errors import DataError
from mlxhog.models import families, lm, lm_native, ngrams
from mlxhog.models.adapters import merged
from mlxhog.models.families import ModelConfig
from mlxhog.models.lm_native import NativeDecoder
from mlxhog.models.ops.frozen import FrozenWeight
from mlxhog.models.ops.kernels import choose
from mlxhog.models.ops.operators import Ops
from mlxhog.optim.gradients import Float32, Int32

State = Any  # arrays of the framework, opaque to callers


@dataclass(frozen=True)
class BatchLoss:
    """Loss over a batch: the sum in nats over its `targets`."""

    nats: float
    targets: int


class InferenceModel(ABC):
    """A model's parameters in one framework on one device; see `Backend`."""

    name: str  # such as "torch:cpu"
    model: ModelConfig
    params: dict[str, Any]  # arrays of the framework by name
    tables: Mapping[str, Any] = {}  # of n-grams, by name, which stay in NumPy

    def __init__(
        self, framework: str, device: str, kernels: str, threads: int, share: GPUShare,
        bf16_matmuls: bool = False,
    ) -> None:  # fmt: skip
        self.name = f"{framework}:{device}"
        self.on_gpu = device != "cpu"
        self.kernels = kernels
        self._eager = frozenset[str]()  # operators whose Metal kernels failed their check
        self._framework, self._device = framework, device
        self._threads, self._share, self.bf16_matmuls = threads, share, bf16_matmuls
        self._decoder: NativeDecoder | None = None

    # -- implemented by a framework ---------------------------------------------------------------

    @abstractmethod
    def _load_tensor(self, tensor: NDArray[Any]) -> tuple[Any, bool]:
        """Return a read-only array of the framework, and whether every element is finite."""

    @abstractmethod
    def _frozen_weight(self, value: FrozenWeight, is_base: bool) -> Any:
        """Return a weight in NumPy's arrays as the operators take it."""

    @abstractmethod
    def _tokens(self, tokens: Int32) -> Any:
        """Return ids as an array of the framework, in its dtype of row indices."""

    @abstractmethod
    def _on_host(self, array: Any) -> NDArray[Any]:
        """Evaluate an array of the framework, and return it as a C-contiguous NumPy array."""

    @abstractmethod
    def _from_host(self, array: Float32) -> Any:
        """Return a NumPy array as an array of the framework on the device."""

    @abstractmethod
    def _no_grad(self) -> AbstractContextManager[Any]:
        """Disable gradients in the block."""

    def _evaluated(self, state: State) -> State:
        """Evaluate a lazy state, so that another thread may use it, and return it."""
        return state

    # -- the model --------------------------------------------------------------------------------

    def load(
        self, model: ModelConfig, tensors: Mapping[str, NDArray[Any]], *, weights: str = "float32"
    ) -> list[str]:
        """Load a model's parameters read-only.

        Tensors have any float dtype. If the framework computes in host memory and a tensor already
        has the right dtype, it is used in place, so a mapped file is not copied; else it is copied
        piece by piece. N-gram tables are read where they are, and stay float32. `weights` is one of
        `frozen.FORMATS`, of all but an adapter and the modules that are trained whole with it.

        Returns:
            Names of the tensors with NaN or an infinity.

        Raises:
            ConfigError: this backend cannot compute with such weights.
        """
        not_finite = self._load(model, tensors, families.param_spec(model), weights)
        self._decoder = self._native_decoder(merges=True)
        return not_finite

    def _load(
        self, model: ModelConfig, tensors: Mapping[str, NDArray[Any]], names: Iterable[str],
        weights: str, *, is_base: bool = False,
    ) -> list[str]:  # fmt: skip
        self.close()
        self.model, not_finite = model, list[str]()
        self._grams = ngrams.of(model)
        own = () if self._grams is None else self._grams.specs
        self.tables = {name: tensors[name] for name in own}
        adapted = set[str]() if model.adapter is None else families.trainable_spec(model).keys()
        for name in names:
            tensor = tensors[name]
            if name in self.tables:
                continue
            is_held = is_base or (weights != "float32" and name not in adapted)
            if is_held and frozen.is_reduced(model, name):
                value = frozen.weight(model, tensors, name, weights)
                self.params[name] = self._frozen_weight(value, is_base)
                finite = (is_base and mapped.is_mapped(tensor)) or mapped.is_finite(tensor)
            else:
                self.params[name], finite = self._load_tensor(tensor)
            if not finite:
                not_finite.append(name)
        return not_finite

    def with_adapter(
        self, model: ModelConfig, tensors: Mapping[str, NDArray[Any]]
    ) -> tuple[Self, list[str]]:
        """Return a model with an adapter that shares all other weights of this one.

        `model` is the loaded one with an adapter, whose parameters are in `tensors` and stay
        float32. The second result is that of `load`.

        Concurrency: both models are for the thread of this one.
        """
        other, not_finite = copy.copy(self), list[str]()
        other.model, other.params, other._decoder = model, dict(self.params), None
        other.tables, other._grams = dict(self.tables), ngrams.of(model)
        for name in families.trainable_spec(model):
            if name in other.tables:
                other.tables[name], finite = tensors[name], mapped.is_finite(tensors[name])
            else:
                other.params[name], finite = other._load_tensor(tensors[name])
            if not finite:
                not_finite.append(name)
        return other, not_finite

    def close(self) -> None:
        """Drop the parameters."""
        self._decoder, self.params = None, {}

    def _ops(self) -> Ops:
        return choose(self._framework, self.kernels, self._device, eager=self._eager)

    def _index(self, tokens: Int32, state: State | None) -> dict[str, Int32]:
        """Return the table rows that tokens after a state read; none without tables."""
        if self._grams is None:
            return {}
        before = None if state is None else state[0][0]
        if not (before is None or isinstance(before, np.ndarray)):
            before = self._on_host(before)
        return self._grams.rows_of(tokens, before)

    def _rows(self, tokens: Int32, state: State | None) -> Float32 | None:
        """Return the rows of the n-grams that end at each of `tokens`; None without tables."""
        if self._grams is None:
            return None
        return self._grams.gather(self.tables, self._index(tokens, state))

    # -- losses and logits ------------------------------------------------------------------------

    def evaluate(self, batch: Batch) -> BatchLoss:
        """Return the loss of a batch, computed in pieces that fit the device.

        Raises:
            DataError: as `loss_and_grads`.
        """
        check_batch(batch, self.model.vocab_size)
        nats = 0.0
        for part in self._share.rows(batch) if self.on_gpu else (batch,):
            with self._no_grad():  # one piece
                ids, labels = self._tokens(part.x), self._tokens(part.y)
                rows = self._on_device(self._rows(part.x, None))
                own, _ = lm.loss(self.model, self.params, ids, labels, ops=self._ops(), rows=rows)
                nats += float(self._on_host(own).item())
        return BatchLoss(nats=nats, targets=int((batch.y >= 0).sum()))

    def predictions(self, tokens: Int32) -> Int32:
        """Return the most likely next id at every position of `tokens`, (B, S).

        Raises:
            DataError: there is no token, or a token is outside the vocabulary.
        """
        check_tokens(tokens, self.model.vocab_size)
        with self._no_grad():
            logits, _ = self._forward(tokens, None)
            return self._on_host(logits.argmax(-1)).astype(np.int32)

    def _on_device(self, rows: Float32 | None) -> Any:
        return None if rows is None else self._from_host(rows)

    def _forward(self, tokens: Int32, state: State | None, **how: Any) -> tuple[Any, State]:
        """Return logits of tokens after a state, and the next state, as framework arrays."""
        how |= {"ops": self._ops(), "rows": self._on_device(self._rows(tokens, state))}
        ids, state = self._tokens(tokens), self._unpacked(state)
        return lm.logits(self.model, self.params, ids, state, **how)

    def _spans(self, shape: tuple[int, ...]) -> Iterable[slice]:
        """Return the ranges of positions that are computed at a time: all of them on a CPU."""
        return self._share.spans(shape) if self.on_gpu else (slice(None),)

    def logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """Return the logits after the last of `tokens` (B, S), (B, V) float32, and the new state.

        `tokens` follow `state`; None is the initial state. The old state stays valid.

        Raises:
            DataError: there is no token, or a token is outside the vocabulary.
        """
        check_tokens(tokens, self.model.vocab_size)
        if self._decoder is not None and tokens.shape[1] == 1:
            state, rows = self._packed(state), self._rows(tokens, state)
            return self._decoder.step(tokens[:, 0], state, None if rows is None else rows[:, 0])
        for logits, after in self._pieces(tokens, state, last=True):
            result = logits[:, -1], after
        return result

    def _pieces(
        self, tokens: Int32, state: State | None, **how: Any
    ) -> Iterator[tuple[Float32, State]]:
        """Yield the logits of each piece of tokens (B, S), and the state after it."""
        for span in self._spans(tokens.shape):
            with self._no_grad():
                logits, state = self._forward(tokens[:, span], state, **how)
                piece = self._on_host(logits), self._evaluated(state)
            yield piece

    def all_logits(
        self, tokens: Int32, state: State | None, hidden: list[Float32] | None = None
    ) -> tuple[Float32, State]:
        """Return the logits after each of `tokens` (B, S), (B, S, V), and the new state.

        `hidden` receives the residual stream (B, S, d) after the embedding, every block and the
        final norm.
        """
        check_tokens(tokens, self.model.vocab_size)
        parts, trace = list[Float32](), list[Any]()
        how = {} if hidden is None else {"hidden": trace}
        for logits, after in self._pieces(tokens, state, **how):
            parts.append(logits)
            last = after
        if hidden is not None:
            xs, n = [self._on_host(x) for x in trace], len(trace) // len(parts)
            hidden += [np.concatenate(xs[k::n], axis=1) for k in range(n)]
        return np.concatenate(parts, axis=1), last

    def state_arrays(self, state: State) -> list[list[NDArray[Any]]]:
        """Return the arrays of a state by block, without the ids of n-gram tables."""
        blocks = self._unpacked(state)[-len(self.model.layout.blocks) :]
        return [[self._on_host(part) for part in block] for block in blocks]

    def stack_states(self, states: Sequence[State]) -> State:
        """Concatenate the states of several batches along the batch axis."""
        if self._decoder is not None and any(map(self._is_packed, states)):
            blocks = zip(*map(self._packed, states), strict=True)
            return [tuple(map(np.concatenate, zip(*block, strict=True))) for block in blocks]
        with self._no_grad():
            unpacked = list(map(self._unpacked, states))
            return self._evaluated(lm.stack_states(unpacked, self._ops().xp))

    def select_state(self, state: State, rows: Sequence[int]) -> State:
        """Return the state of some rows of a batch, in the order of `rows`."""
        if self._is_packed(state):
            return [tuple(part[list(rows)] for part in block) for block in state]
        with self._no_grad():
            return self._evaluated(lm.select_state(state, rows, self._ops().xp))

    def _native_decoder(self, *, merges: bool = False) -> NativeDecoder | None:
        """Return the native decoder for single tokens; None off a CPU or without float32.

        It knows no adapters. So it `merges` one into copies of its targets, if none of the
        parameters will change, and is None otherwise.
        """
        model, adapter = self.model, self.model.adapter
        if self.on_gpu or (adapter is not None and not merges):
            return None
        if any("float32" not in str(x.dtype) for x in self.params.values()):
            return None
        params = {name: self._on_host(value) for name, value in self.params.items()}
        if adapter is not None:
            model = replace(model, adapter=None)
            own = families.param_spec(model).keys() & params.keys()
            params = {name: merged(adapter, name, params[name], params) for name in own}
        how: dict[str, Any] = {"framework": self._framework, "kernels": self.kernels}
        return lm_native.decoder(model, params, threads=self._threads, **how)

    # A state is that of `lm`, or the decoder's packed one in NumPy, converted on demand.

    def _is_packed(self, state: State) -> bool:
        """Whether a decoder packed a state; its weights may have been replaced by others since."""
        return bool(state and state[-1]) and isinstance(state[-1][0], np.ndarray)

    def _packed(self, state: State) -> State:
        if state is None or self._decoder is None or self._is_packed(state):
            return state
        return lm_native.pack(self.model, [tuple(map(self._on_host, block)) for block in state])

    def _unpacked(self, state: State) -> State:
        if not self._is_packed(state):
            return state
        blocks = lm_native.unpack(self.model, state)
        return [tuple(map(self._from_host, block)) for block in blocks]


def check_tokens(tokens: NDArray[np.integer[Any]], vocab_size: int) -> None:
    """Raise a DataError unless there are tokens (B, S), in the vocabulary."""
    if tokens.ndim != 2 or not tokens.size:
        raise DataError(
            f"tokens have shape {tokens.shape}, expected (B, S) with at least one sequence and one "
            "position; begin an empty text with the BOS token"
        )
    _check_ids("token", tokens, vocab_size)


def check_batch(batch: Batch, vocab_size: int) -> None:
    """Raise a DataError unless the tokens and labels of a batch are in the vocabulary."""
    check_tokens(batch.x, vocab_size)
    _check_ids("label", np.where(batch.y == IGNORED, 0, batch.y), vocab_size)


def _check_ids(what: str, ids: NDArray[np.integer[Any]], vocab_size: int) -> None:
    if ids.min() >= 0 and ids.max() < vocab_size:
        return
    row, position = np.argwhere((ids < 0) | (ids >= vocab_size))[0]
    raise DataError(
        f"{what} {ids[row, position]} at position {position} of sequence {row} is outside the "
        f"vocabulary of {vocab_size} ids; use the model's own tokenizer"
    )
