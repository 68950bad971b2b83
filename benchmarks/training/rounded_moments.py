"""AdamW and Muon with moments rounded to bfloat16 after each update, a plug-in of `moments.py`.

The update itself is computed in float32, as a kernel would that stores its moments in bfloat16.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.config.options import option
from mlxhog.optim.elementwise import AdamW
from mlxhog.optim.muon import Muon


def rounded(values, rounding, rng):
    """Round float32 values to bfloat16, to the nearest or in proportion to the distance."""
    bits = values.view(np.uint32)
    if rounding == "stochastic":
        add = rng.integers(0, 1 << 16, bits.shape, np.uint32)
    else:
        add = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (bits + add & np.uint32(0xFFFF0000)).view(np.float32)


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """The moments of the parameters that an update has, rounded after it."""

    rounding: str = option(
        "none", "of moments to bfloat16", choices=("none", "nearest", "stochastic")
    )

    def update(self, target, pairs, step):
        super().update(target, pairs, step)
        if self.rounding == "none":
            return
        rng = np.random.default_rng((step.seed, step.count))
        for slot, _ in pairs:
            for name in self.state_segments:
                moment = target.state(name, slot)
                moment[...] = rounded(moment, self.rounding, rng)


@dataclass(frozen=True, kw_only=True)
class RoundedAdamW(Rounded, AdamW):
    """AdamW with rounded moments."""

    name: ClassVar[str] = "rounded_adamw"
    about: ClassVar[str] = "AdamW with rounded moments"


@dataclass(frozen=True, kw_only=True)
class RoundedMuon(Rounded, Muon):
    """Muon with rounded moments, those of AdamW beside it too."""

    name: ClassVar[str] = "rounded_muon"
    about: ClassVar[str] = "Muon with rounded moments"
