"""NumPy's side in float64: the references of `models/` as `Engine` wants them, for models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxhog.models import lm_numpy
from mlxhog.models.families import ModelConfig
from mlxhog.parity.engines import Forward, State
from mlxhog.parity.subject import Array


class NumPyEngine:
    """The float64 reference; see `Engine`."""

    def load(self, cfg: ModelConfig, params: Mapping[str, Array]) -> None:
        """See `Engine.load`; keeps the arrays as they are, and writes none."""
        self._cfg, self._params = cfg, params

    def forward(self, tokens: Array, state: State | None = None) -> Forward:
        """See `Engine.forward`."""
        hidden: list[Any] = []
        logits, state = lm_numpy.forward(
            self._cfg,
            self._params,
            lm_numpy.embed(self._cfg, self._params, tokens),
            state,
            starts=lm_numpy.starts(self._cfg, tokens),
            hidden=hidden,
        )
        return Forward(logits, hidden, state)

    def differentiate(self, tokens: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """See `Engine.differentiate`."""
        return lm_numpy.differentiate(self._cfg, self._params, tokens, targets)

    def loss(self, tokens: Array, targets: Array) -> float:
        """Return the mean loss in nats."""
        return lm_numpy.loss(self._cfg, self._params, tokens, targets)

    def parts(self, state: State) -> list[list[Array]]:
        """See `Engine.parts`."""
        return [list(block) for block in state]
