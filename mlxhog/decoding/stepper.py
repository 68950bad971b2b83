"""A backend's model in its recurrent form, as `generate` wants it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog.backends import Backend, State


@dataclass(frozen=True)
class BackendStepper:
    """A backend's model, read token by token with its recurrent state."""

    backend: Backend

    def init(self, batch: int) -> State | None:
        """Return the state before the first token; the backend makes it for any batch."""
        return None

    def step(
        self, tokens: NDArray[np.int32], state: State | None
    ) -> tuple[NDArray[np.float32], State | None]:
        """Read tokens (B, S), and return logits (B, V) after the last, and the state."""
        return self.backend.logits(tokens, state)
