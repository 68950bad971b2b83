"""Attention of several heads to the last positions alone: keys j < t - window are out of sight.

Everything else is as in `mh_attention.py`.

Sources: Beltagy et al. 2020, Longformer, arXiv:2004.05150; mad-lab.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layers.mh_attention import MHAttention


@dataclass(frozen=True, kw_only=True)
class MHSlidingAttention(MHAttention):
    """Numbers of the layer: those of `MHAttention`, and how far back a position sees."""

    name: ClassVar[str] = "mh-sliding-attention"

    window: int = 32

    def sight(self) -> int | None:
        """Return how many positions back keys are in sight."""
        return self.window

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        super().check(d)
        if self.window < 0:
            raise ConfigError(f"window is {self.window}; a position sees 0 or more before it")

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """Return the sizes of the keys and values of the window and the position itself."""
        return super().state(d, min(length, self.window + 1))
