"""What a framework has to offer for its side to be computed: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from mlxhog.models.families import ModelConfig
from mlxhog.parity.subject import Array

State = Any
"""The engine's own arrays; callers hand it back, or ask for `parts`."""


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


class ModelEngine(Protocol):
    """Computes a model in the process that made it. Holds one at a time."""

    def load(self, cfg: ModelConfig, params: Mapping[str, Array]) -> None:
        """Take a model's parameters, float32 under our names; a copy is made."""

    def forward(self, tokens: Array, state: State | None = None) -> Forward:
        """Compute tokens (B, S) int32 from the start, or from a state of an earlier call."""

    def differentiate(self, tokens: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """Return the mean loss in nats, and its gradient by parameter, each in its full shape."""

    def parts(self, state: State) -> list[list[Array]]:
        """Return a state as arrays, a list per block."""


class Engine(ModelEngine, Protocol):
    """Computes with one framework: models, and operators alone."""

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

    def off(self, operator: str, offset: Callable[[Array], Array]) -> AbstractContextManager[None]:
        """Let the first result y of an operator be y + offset(y) until the block ends.

        Gradients are those of y.
        """
