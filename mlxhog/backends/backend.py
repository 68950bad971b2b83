"""The Backend protocol: one framework on one device, inside one worker process.

A backend owns the model's parameters as arrays of its framework. They are slices of one flat array
with the arena's layout, the `inbox`. The strategy fills the inbox from the arena (a snapshot, or a
predicted read), calls `refresh`, and requests a gradient. With live reads the inbox is the arena
itself, so the strategy neither fills nor refreshes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Slot
from mlxhog.base.mapped import BFLOAT16
from mlxhog.data.batch import IGNORED, Batch
from mlxhog.errors import DataError
from mlxhog.models.families import ModelConfig
from mlxhog.models.sampled_head import SampledHead
from mlxhog.optim.gradients import Rows
from mlxhog.optim.rule import Coefficients

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Grads = dict[str, "Float32 | Rows"]
State = Any  # arrays of the framework; callers pass it back and never use its content

WEIGHTS = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16}
"""Types of read-only parameters in a backend, and of matrix products."""

QUANTIZED_BITS = {"8bit": 8, "4bit": 4}
"""Bits of the elements of large matrices in MLX; all other parameters stay float32."""

NO_TABLES: Mapping[str, Float32] = MappingProxyType({})
"""The tables of n-grams of a model that has none."""

NAMES = ("mlx:gpu", "mlx:cpu", "torch:mps", "torch:cpu")


@dataclass(frozen=True)
class Evaluation:
    """Loss over a batch: the sum in nats over `targets` counted tokens."""

    nats: float
    targets: int


class WeightHolder(Protocol):
    """The part of a backend that holds a model's weights, for readers of weights."""

    inbox: Float32

    def bind(
        self,
        model: ModelConfig,
        slots: Mapping[str, Slot],
        n_floats: int,
        live: Float32 | None,
        sampled: SampledHead | None = None,
        tables: Mapping[str, Float32] = NO_TABLES,
    ) -> None:
        """Lay the model's parameters over one flat array.

        Args:
            model: the architecture.
            slots: position of each parameter, in floats from the start of the flat array.
            n_floats: length of the flat array.
            live: the arena's parameters, (n_floats,) float32, to alias instead of copying.
            sampled: draws the words over which `loss_and_grads` takes the loss, for a head that is
                not tied; None is all words. Evaluation always uses all words.
            tables: of n-grams, by name, which are read where they are.

        Raises:
            ConfigError: `live` is not None, and this framework cannot alias host memory here.
        """

    def load(
        self, model: ModelConfig, tensors: Mapping[str, NDArray[Any]], *, weights: str = "float32"
    ) -> list[str]:
        """Load a model's parameters read-only, instead of `bind`.

        If the framework computes in host memory and a tensor already has the right type, it is used
        in place, so a mapped file is not copied; else it is copied piece by piece.

        Args:
            model: the architecture.
            tensors: name -> array of any float type; the backend keeps a reference. Tables of
                n-grams are read where they are, and stay float32.
            weights: type of the weights in the backend, one of `WEIGHTS` or `QUANTIZED_BITS`.

        Returns:
            Names of the tensors with NaN or an infinity.

        Raises:
            ConfigError: this backend cannot compute with such weights.
        """

    def refresh(self) -> None:
        """Copy the inbox to the device; does nothing if they share memory."""


class Backend(WeightHolder, Protocol):
    """One framework on one device. Not thread-safe: one worker process owns it.

    Attributes:
        name: such as "torch:cpu".
        params: arrays of the framework by name, which `bind` lays over the inbox.
        forward_share: share of its forward pass in the time of the newest gradient. None before
            the first one, and where both passes are one graph that is computed at once: on a GPU,
            and compiled. There a wait between them would slow every step.
    """

    name: str
    forward_share: float | None
    params: dict[str, Any]

    def check_kernels(self) -> dict[str, str]:
        """Check each operator that has Metal kernels against the framework's plain operator.

        The plain one is used from now on where there is a fault. Call it before `bind`.

        Returns:
            The fault by operator; see `mlxhog.backends.self_check`.
        """

    def loss_and_grads(self, batch: Batch) -> tuple[float, Grads]:
        """Mean cross entropy in nats, and its gradient.

        Gradients are C-contiguous float32 arrays in the parameters' shapes. The gradient of a
        sampled head is `Rows`, and so are those of tables of n-grams, and that of an embedding,
        unless it is tied to the head.
        No later call changes them: their steps may be added meanwhile.

        Raises:
            DataError: a token or a label is outside the vocabulary.
        """

    def polar(
        self, xs: Sequence[Float32], scales: Sequence[float], coefficients: Coefficients
    ) -> list[Float32]:
        """Return `scale` times each x (r, c) with its singular values brought near 1, in float32.

        Computed on this device, all matrices of one shape at once. `mlxhog.optim.muon` has the
        steps; `coefficients` are those of its quintics.
        """

    def evaluate(self, batch: Batch) -> Evaluation:
        """Loss of a batch at the inbox's parameters; raises as `loss_and_grads` does."""

    def predictions(self, tokens: Int32) -> Int32:
        """The most likely next id at every position of `tokens`, (B, S), from the start state.

        Raises:
            DataError: there is no token, or a token is outside the vocabulary.
        """

    def logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """Logits after the last of `tokens` (B, S), as (B, V) float32, and the new state.

        `tokens` follow `state`; None is the start state. The old state stays valid.

        Raises:
            DataError: there is no token, or a token is outside the vocabulary.
        """

    def every_logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """As `logits`, but after each of `tokens` (B, S): (B, S, V) float32.

        Raises:
            DataError: there is no token, or a token is outside the vocabulary.
        """

    def stack_states(self, states: Sequence[State]) -> State:
        """One state with the rows of the states of several batches, in their order."""

    def take_state(self, state: State, rows: Sequence[int]) -> State:
        """The state of some rows of a batch, in the order of `rows`."""

    def close(self) -> None:
        """Drop every reference to the inbox."""


def check_tokens(tokens: NDArray[np.integer[Any]], vocab_size: int) -> None:
    """Check tokens (B, S).

    Raises:
        DataError: there are no tokens, or a token is outside the vocabulary; the message names its
            position.
    """
    if tokens.ndim != 2 or not tokens.size:
        raise DataError(
            f"tokens have shape {tokens.shape}, expected (B, S) with at least one sequence and one "
            "position; begin an empty text with the BOS token"
        )
    _check_ids("token", tokens, vocab_size)


def check_batch(batch: Batch, vocab_size: int) -> None:
    """Check the tokens and labels of a batch.

    Raises:
        DataError: see `check_tokens`; or the labels have another shape.
    """
    check_tokens(batch.x, vocab_size)
    if batch.y.shape != batch.x.shape:
        raise DataError(
            f"labels have shape {batch.y.shape}, tokens {batch.x.shape}; give every position a "
            f"label, {IGNORED} where there is nothing to predict"
        )
    _check_ids("label", np.where(batch.y == IGNORED, 0, batch.y), vocab_size)


def _check_ids(what: str, ids: NDArray[np.integer[Any]], vocab_size: int) -> None:
    if ids.min() >= 0 and ids.max() < vocab_size:
        return
    row, position = np.argwhere((ids < 0) | (ids >= vocab_size))[0]
    raise DataError(
        f"{what} {ids[row, position]} at position {position} of sequence {row} is outside the "
        f"vocabulary of {vocab_size} ids; use the model's own tokenizer"
    )
