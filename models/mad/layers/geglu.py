"""GEGLU, the gated feed-forward layer of xLSTM's sLSTM blocks: y = W3( GELU(W1 x) * W2 x ).

Its inner width is 1.3 d, rounded up to a multiple of 64: 192 at d = 128. GELU is the exact one.

Source: Shazeer 2020, GLU Variants Improve Transformer, arXiv:2002.05202; the width of Beck et al.
2024, xLSTM, arXiv:2405.04517.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from mlxhog.models.mad.layers.swiglu import SwiGLU


@dataclass(frozen=True, kw_only=True)
class GEGLU(SwiGLU):
    """Numbers of the layer: `inner` is the width between the maps, None the one above."""

    name: ClassVar[str] = "geglu"

    def width(self, d: int) -> int:
        """Inner width at width d."""
        return 64 * math.ceil(1.3 * d / 64) if self.inner is None else self.inner
