"""The sizes that every launch of the mLSTM kernels has, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Argument
from mlxhog.metal.kernels.arguments import sizes

LONGEST_CHUNK = 64
"""Keys and scores of a longer chunk would not fit 32 KiB of threadgroup memory."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """B sequences of S positions in chunks of L, NH heads of widths DK and DV."""

    B: int
    S: int
    NH: int
    L: int
    DK: int = 0
    DV: int = 0

    def __post_init__(self) -> None:
        """Refuse what the kernels cannot run."""
        if not 1 <= self.L <= LONGEST_CHUNK:
            raise ShapeError(
                f"mLSTM kernels got chunks of {self.L} positions and take 1 to {LONGEST_CHUNK}, "
                "whose keys fit threadgroup memory; choose a chunk in that range, "
                "which changes no result"
            )
        if self.B * self.NH * (self.NC + 1) * self.DK * self.DV >= 2**32:
            raise ShapeError(
                f"mLSTM kernels index with 32 bits, and the states of {self.NC + 1} chunk borders, "
                f"(B, NH, NC + 1, DK, DV) = {self.state_shape}, are too many elements; "
                "run fewer sequences at once"
            )

    @property
    def NC(self) -> int:
        """Number of chunks, the last of which may be shorter."""
        return -(-self.S // self.L)

    @property
    def state_shape(self) -> tuple[int, int, int, int, int]:
        """Of the matrices C before every chunk and after the last."""
        return self.B, self.NH, self.NC + 1, self.DK, self.DV

    def scalars(self, names: tuple[Argument, ...]) -> dict[str, int]:
        """The scalars that a kernel takes, by name."""
        return {argument.name: getattr(self, argument.name) for argument in names}


GATE_SIZES = sizes("B NH S L")
ALL_SIZES = sizes("B NH S L DK DV")


def round_up(x: int, multiple: int) -> int:
    """Return the next multiple, so that lockstep groups are whole."""
    return math.ceil(x / multiple) * multiple
