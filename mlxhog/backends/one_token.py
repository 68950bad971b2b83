"""One-token steps of a CPU backend without its framework, and the states that go with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlxhog.backends.backend import Float32, Int32
from mlxhog.models.lm_native import Decoder


class OneToken:
    """Steps of a native decoder between those of `lm`.

    A state is `lm`'s, a tuple of arrays per block, or the decoder's, one NumPy array; each is
    converted where the other computes next.

    Args:
        decoder: the native step.
        to_host: an array of the framework as NumPy's.
        to_framework: the other way.
    """

    def __init__(
        self,
        decoder: Decoder,
        to_host: Callable[[Any], Float32],
        to_framework: Callable[[Float32], Any],
    ) -> None:
        """See the class."""
        self._decoder, self._to_host, self._to_framework = decoder, to_host, to_framework

    def logits(self, tokens: Int32, state: Any) -> tuple[Float32, Float32]:
        """Read tokens (B, 1); return the logits (B, V) and the state, as the decoder's."""
        before = self._decoder.init_state(len(tokens)) if state is None else self.packed(state)
        return self._decoder.step(tokens[:, 0], before)

    def packed(self, state: Any) -> Float32:
        """Return a state of either kind as the decoder's."""
        if isinstance(state, np.ndarray):
            return state
        return self._decoder.pack([[self._to_host(part) for part in block] for block in state])

    def unpacked(self, state: Any) -> Any:
        """Return a state of either kind as `lm`'s."""
        if not isinstance(state, np.ndarray):
            return state
        blocks = self._decoder.unpack(state)
        return [tuple(self._to_framework(part) for part in block) for block in blocks]

    def stack_states(self, states: Sequence[Any]) -> Float32:
        """See `Backend.stack_states`."""
        return np.concatenate([self.packed(state) for state in states])

    def take_state(self, state: Any, rows: Sequence[int]) -> Float32:
        """See `Backend.take_state`."""
        return self.packed(state)[list(rows)]
