"""Conditioning: how far results move when every input is rounded once more.

A denominator that nearly cancels enlarges every rounding error, whoever computes, and steps of an
optimizer enlarge it again: of a model with 8 layers, one rounding of the parameters moved the third
gradient by 1 % of it. So the reference computes everything again, from parameters that are off by
1, 16 and 32 half units in the last place of float32, and the steps of every optimizer from there
on. The largest movement per half unit is a result's condition; tolerances grow with it.

The larger amounts, each in a direction and in the opposite one, are there for what is not smooth:
the slope of relu and selu at 0, or of a maximum whose sides change places. An entry within a few
roundings of such a place has either gradient in float32, and a single rounding would not show it.
One selu in 200 random models was 3e-7 from 0, and moved its gradient by 2 % of the largest.

Rounding the inputs says nothing of sums that cancel at any input, like the gradient of a gate that
the normaliser divides out. Those are what `Tolerance.of_all` is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from mlxhog.parity.subject import Array, Results, parameter_after

PREFIX = "condition/"
ROUNDING = 2.0**-24
AMOUNTS = (1, 16, -16, 32, -32)
_OTHER_NAMES = ("", "recurrent/", "sequence/", "grad/")
"""Where the condition of a result stands that has none of its own: of another form of a cell, or,
for a parameter after some steps, of its gradient."""


def rounded(inputs: Mapping[str, Array], amount: int) -> dict[str, Array]:
    """Return the inputs off by up to `amount` half units in the last place, in float64.

    The opposite amount is the opposite direction.
    """
    rng = np.random.default_rng(abs(amount))
    return {
        name: value * (1.0 + amount * ROUNDING * rng.uniform(-1.0, 1.0, value.shape))
        for name, value in inputs.items()
    }


def measure(
    exact: Mapping[str, Array],
    inputs: Mapping[str, Array],
    compute: Callable[[Mapping[str, Array]], Iterable[tuple[str, Array]]],
) -> Iterator[tuple[str, Array]]:
    """Yield how far each result moves per half unit, as a share of its largest entry.

    Of a parameter after some steps it is how far its way moves, as a share of the longest way.

    Args:
        exact: results by name.
        inputs: what they are computed from.
        compute: does that again, or a part of it.
    """
    shares: dict[str, float] = {}
    for amount in AMOUNTS:
        moved = rounded(inputs, amount)
        for name, value in compute(moved):
            parameter = parameter_after(name)
            if parameter is None:
                size, difference = exact[name], value - exact[name]
            else:
                size = exact[name] - inputs[parameter]
                difference = (value - moved[parameter]) - size
            largest = float(np.abs(size).max(initial=0.0))
            way = float(np.abs(difference).max(initial=0.0)) / abs(amount)
            shares[name] = max(shares.get(name, 0.0), way / largest if largest > 0 else 0.0)
    for name, share in shares.items():
        yield PREFIX + name, np.asarray(share)


def split(results: Results) -> tuple[dict[str, Array], dict[str, float]]:
    """Return the results of a side, and the conditions among them by the name of their result."""
    others = {name: value for name, value in results.items() if not name.startswith(PREFIX)}
    conditions = {
        name.removeprefix(PREFIX): float(value)
        for name, value in results.items()
        if name.startswith(PREFIX)
    }
    return others, conditions


def of(name: str, conditions: Mapping[str, float]) -> float | None:
    """Return the condition of a result, or of what it stands for; None where it is not known."""
    parameter = parameter_after(name)
    rest = name.partition("/")[2] if parameter is None else parameter
    for candidate in (name, *(before + rest for before in _OTHER_NAMES)):
        if candidate in conditions:
            return conditions[candidate]
    return None
