"""How far results move when every input is rounded once more: what float32 cannot know better.

A denominator that nearly cancels enlarges every rounding error, whoever computes. So the reference
computes again, from inputs that are off by up to half a unit in the last place of float32, and
tolerances grow with the largest difference. Results that are well conditioned hardly move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from mlxhog.parity.subject import Array, Results

PREFIX = "sway/"
ROUNDING = 2.0**-24
DRAWS = 3  # one alone may miss what is cancelled
_OTHER_NAMES = ("", "recurrent/", "sequence/", "grad/")
"""Where the sway of a result stands that has none of its own: of another form of a cell, or, for a
parameter after some steps, of its gradient."""


def rounded(inputs: Mapping[str, Array], draw: int) -> dict[str, Array]:
    """Return the inputs off by up to half a unit in the last place, in float64."""
    rng = np.random.default_rng(draw)
    return {
        name: value * (1.0 + ROUNDING * rng.uniform(-1.0, 1.0, value.shape))
        for name, value in inputs.items()
    }


def measure(
    exact: Mapping[str, Array],
    inputs: Mapping[str, Array],
    compute: Callable[[Mapping[str, Array]], Iterable[tuple[str, Array]]],
) -> Iterator[tuple[str, Array]]:
    """Yield how far each result moves, as a share of its largest entry.

    Args:
        exact: results by name.
        inputs: what they are computed from.
        compute: does that again.
    """
    shares = dict.fromkeys(exact, 0.0)
    for draw in range(DRAWS):
        for name, value in compute(rounded(inputs, draw)):
            largest = float(np.abs(exact[name]).max(initial=0.0))
            way = float(np.abs(value - exact[name]).max(initial=0.0))
            shares[name] = max(shares[name], way / largest if largest > 0 else 0.0)
    for name, share in shares.items():
        yield PREFIX + name, np.asarray(share)


def split(found: Results) -> tuple[dict[str, Array], dict[str, float]]:
    """Return the results of a side, and the sways among them by the name of their result."""
    results = {name: value for name, value in found.items() if not name.startswith(PREFIX)}
    sways = {
        name.removeprefix(PREFIX): float(value)
        for name, value in found.items()
        if name.startswith(PREFIX)
    }
    return results, sways


def of(name: str, sways: Mapping[str, float]) -> float:
    """Return the sway of a result, or of what it stands for; 0 where nothing is known."""
    head, _, rest = name.partition("/")
    if head == "after":
        rest = rest.partition("/")[2]
    for candidate in (name, *(before + rest for before in _OTHER_NAMES)):
        if candidate in sways:
            return sways[candidate]
    return 0.0
