"""The sizes that every launch of the mLSTM kernels has, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Argument

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


def sizes(*names: str) -> tuple[Argument, ...]:
    """Declare sizes as scalar arguments."""
    return tuple(Argument(name=name, dtype="uint32", scalar=True) for name in names)


def arrays(*names: str) -> tuple[Argument, ...]:
    """Declare float32 arrays."""
    return tuple(Argument(name=name) for name in names)


GATE_SIZES = sizes("B", "NH", "S", "L")
ALL_SIZES = sizes("B", "NH", "S", "L", "DK", "DV")


def check(kernel: str, given: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the shapes of arrays with those that the other arguments ask for.

    Raises:
        ShapeError: one differs; nothing has been launched.
    """
    for name, shape in wanted.items():
        found = tuple(given[name].shape)
        if found != shape:
            raise ShapeError(
                f"{kernel}: {name} has shape {found}, the other arguments ask for {shape}; "
                "pass arrays of one sequence, heads and chunk size"
            )


def round_up(x: int, multiple: int) -> int:
    """Return the next multiple, so that lockstep groups are whole."""
    return math.ceil(x / multiple) * multiple
