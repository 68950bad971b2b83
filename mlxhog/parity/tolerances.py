"""The tolerances: how far two sides may differ, and why, in one table.

What is allowed between a tensor and its exact value is the sum of

1. what rounding makes of the inputs: `roundings` times the movement that the reference shows when
   each of its inputs is rounded once more (`measure`), or where that is more, as much of
   the largest entry of the wanted tensor as the table says (`of_largest`);
2. what it makes of terms that cancel at any input: `of_all` of the largest entry of all tensors of
   that kind. A gradient that ought to vanish (behind a closed gate) is measured by the others.
   Between our own CPU backends a gradient is allowed less, where the reference shows (`noise`)
   that the terms of this one are smaller;
3. what it makes of the result itself: a few times the spacing of float32 at its largest entry,
   `LAST_PLACES`, and for a parameter after some steps one more for every step;
4. for a parameter after some steps, what its optimizer makes of 2. in its gradients
   (`optimizers.AMPLIFICATION`);
5. `atol`.

Two sides of float32 are each off by that, and may differ by twice as much. Where no condition is
known (families that NumPy has no gradient of), the table says all.

Conditions: how far results move when every input is rounded once more. A denominator that nearly
cancels enlarges every rounding error, whoever computes, and steps of an optimizer enlarge it again:
of a model with 8 layers, one rounding of the parameters moved the third gradient by 1 % of it. So
the reference computes everything again, from parameters that are off by 1, 16 and 32 half units in
the last place of float32, and the steps of every optimizer from there on. The largest movement per
half unit is a result's condition; tolerances grow with it.

The larger amounts, each in a direction and in the opposite one, are there for what is not smooth:
the slope of relu and selu at 0, or of a maximum whose sides change places. An entry within a few
roundings of such a place has either gradient in float32, and a single rounding would not show it.
One selu in 200 random models was 3e-7 from 0, and moved its gradient by 2 % of the largest.

Rounding the inputs says nothing of sums that cancel at any input, like the gradient of a gate that
the normaliser divides out. Those are what `Tolerance.of_all` is for. How large their terms are is
measured as well, one gradient at a time: the reference computes it again with every result on the
way rounded to float32, at three inputs, and the largest movement of an entry is the noise of this
gradient. Errors of the CPU backends in 100 random models were up to 7 times that, or up to 0.2
roundings of the largest gradient where the reference's terms cancel exactly. Without it a wrong
sign passed in one model of 200: of an entry that every backend knew to 1/200, in a gradient of
1/40,000 of the largest, which `of_all` alone allowed to be off by 28 times what any of them was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mlxhog.parity.subject import Array, Results, parameter_after


@dataclass(frozen=True)
class Tolerance:
    """Allowed difference, see above."""

    reason: str
    atol: float = 0.0
    of_largest: float = 0.0
    of_all: float = 0.0
    roundings: float = 64.0
    """Of every input, that the computation may amount to. Seen: 20, in logits computed step by step
    and over the whole sequence (architecture tiny with seed 2, off by 2.9e-4)."""


@dataclass(frozen=True)
class TensorScale:
    """What the allowed difference of a tensor is relative to.

    Attributes:
        largest: its largest entry, or of a parameter after some steps the longest way moved.
        of_all: the same over all tensors of the kind.
        value: its largest entry in any case.
        steps: of the optimizer that led there; 0 for other tensors.
        gradient: what its errors are multiplied with: largest entry of all gradients, times what
            the optimizer makes of an error in all steps together.
        noise: of a gradient, see above; None where it is not known.
    """

    largest: float
    of_all: float
    value: float
    steps: int = 0
    gradient: float = 0.0
    noise: float | None = None


LAST_PLACES = 2

EXACT = Tolerance("a choice, not a number")

FLOAT32 = {
    "hidden": Tolerance("float32 rounding of sums over the width", atol=1e-5, of_largest=2e-5),
    "logits": Tolerance(
        "transformers and xlstm differ from their own float64 by up to 2.3e-5 on logits of order 4",
        atol=1e-4,
    ),
    "loss": Tolerance("float32 rounding of a mean of order 4", atol=1e-5),
    "state": Tolerance(
        "C and n carry the scale exp(-m), so only their size relative to the largest means a thing",
        atol=1e-5,
        of_largest=1e-4,
    ),
    "states": Tolerance("as state, after every position", atol=1e-5, of_largest=1e-4),
    "grad": Tolerance(
        "reordering chunks alone moves xlstm's float32 gradients by 1.4e-4 of a tensor's largest "
        "entry, and a stabiliser held constant by 1e-5; tensors behind a closed gate are noise of "
        "the others",
        of_largest=2e-3,
        of_all=1e-7,
    ),
    "after": Tolerance(
        "relative to the way moved, gradients within their own tolerance; AdamW divides by them, "
        "softened by its eps; and float32 rounding of the parameter itself",
        atol=2e-6,
        of_largest=1e-2,
    ),
    "init": Tolerance("float32 rounding of values up to 12", atol=2e-6),
    "h": Tolerance("float32 rounding of a cell alone", atol=1e-6, of_largest=2e-5),
    "y": Tolerance("float32 rounding of one operator", atol=1e-6, of_largest=3e-6),
    "operator": Tolerance("units in the last place of a well-conditioned result, operators.py"),
    "step": Tolerance("units of the parameter's rounding per step, optimizers.py"),
    "greedy_ids": EXACT,
}

MEASURED = FLOAT32 | {
    "grad": Tolerance(
        "64 times what one rounding of the parameters moves it, the xlstm package's stabiliser "
        "held constant (1e-5 of the largest entry), and 64 roundings of the largest gradient, of "
        "terms that cancel behind the normaliser whatever the parameters (seen: 32)",
        of_largest=3e-5,
        of_all=64 * 2.0**-24,
    ),
    "after": Tolerance(
        "256 times what one rounding of the parameters moves the way they take: every step "
        "enlarges it by a factor of its own, which three tries know roughly (seen: 52); and the "
        "rounding of the parameter at every step. The optimizer alone is compared as `step`",
        of_largest=1e-4,
        of_all=2e-6,
        roundings=256.0,
    ),
}
"""In place of `FLOAT32` where the condition is known."""

FLOAT64 = {
    kind: Tolerance("two float64 programs", atol=1e-9, of_largest=1e-9)
    for kind in FLOAT32
    if kind != "greedy_ids"
} | {
    "greedy_ids": EXACT,
    "grad": Tolerance("two float64 programs", atol=1e-11, of_largest=1e-8),
}


FORMS = FLOAT64 | {
    kind: Tolerance(
        "two float64 programs, one with the parallel form of the cell, where eps enters at another "
        "scale: up to 5e-7 of an output, before later layers",
        atol=1e-6,
        of_largest=2e-6,
    )
    for kind in ("hidden", "logits", "loss", "grad")
}

TABLES = {"float32": FLOAT32, "float64": FLOAT64, "forms": FORMS}
"""By what two sides are: one in float32 at least, both in float64, or that with different forms."""


STEP = 2.0
"""Units of a parameter's rounding that one step of an optimizer may be off by: it rounds the
parameter once or twice, half a unit each, and the step itself. Seen: 0.9."""
PLUGIN_STEP = 16.0
"""The same for an optimizer of a plugin, which may enlarge rounding errors of its state."""


def of(kind: str, precision: str) -> Tolerance:
    """Return the tolerance of a kind of tensor between two sides; a key of `TABLES`."""
    return TABLES[precision][kind]


def allowed(
    kind: str, precision: str, sizes: TensorScale, condition: float | None
) -> tuple[float, str]:
    """Return the largest difference that is no disagreement, and the reason.

    Args:
        kind: of tensor.
        precision: a key of `TABLES`.
        sizes: of the wanted tensor.
        condition: what one rounding of the inputs moves it, as a share of its largest entry; None
            where that is not known, and between two float64 programs, for which it says nothing.
    """
    if precision == "float64" or kind == "greedy_ids":
        condition = None
    measured = condition is not None and precision == "float32"
    tolerance = MEASURED[kind] if measured else of(kind, precision)
    share = max(tolerance.of_largest, tolerance.roundings * (condition or 0.0))
    last_place = 0.0
    if precision == "float32" and kind != "greedy_ids":
        last_place = (LAST_PLACES + sizes.steps) * float(np.spacing(np.float32(sizes.value)))
    of_all = tolerance.of_all * sizes.of_all
    if measured and sizes.noise is not None:
        of_all = min(of_all, max(NOISE * sizes.noise, LEAST_OF_ALL * sizes.of_all))
    most = share * sizes.largest + of_all + tolerance.atol + last_place
    if measured:
        most += MEASURED["grad"].of_all * sizes.gradient
    return most, tolerance.reason


PREFIX = "condition/"
ROUNDING = 2.0**-24
AMOUNTS = (1, 16, -16, 32, -32)
NOISE = 16.0  # times the noise of a gradient, that its error may be; seen: 7
LEAST_OF_ALL = 4.0 * ROUNDING  # of the largest gradient, that any error may be; seen: 0.2
NOISE_PREFIX = "noise/"
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


def measure_noise(
    inputs: Mapping[str, Array],
    exact: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    rounding: Callable[[Mapping[str, Array]], Mapping[str, Array]],
) -> Iterator[tuple[str, Array]]:
    """Yield how far any entry of a gradient moves where every result on the way is rounded.

    Args:
        inputs: what gradients are computed from; roundings at others beside these are measured, so
            that one that happens to be small does not count.
        exact: computes them.
        rounding: computes them, rounding each result to float32.
    """
    noise: dict[str, float] = {}
    for amount in (0, *AMOUNTS[:2]):
        moved = rounded(inputs, amount)
        near = rounding(moved)
        for name, grad in exact(moved).items():
            off = float(np.abs(near[name] - grad).max(initial=0.0))
            known = np.isfinite(off)  # not where a result is beyond float32
            noise[name] = max(noise.get(name, 0.0), off if known else math.inf)
    for name, off in noise.items():
        yield f"{PREFIX}{NOISE_PREFIX}grad/{name}", np.asarray(off)


def split(results: Results) -> tuple[dict[str, Array], dict[str, float]]:
    """Return the results of a side, and the conditions among them by the name of their result."""
    others = {name: value for name, value in results.items() if not name.startswith(PREFIX)}
    conditions = {
        name.removeprefix(PREFIX): float(value)
        for name, value in results.items()
        if name.startswith(PREFIX)
    }
    return others, conditions


def condition_of(name: str, conditions: Mapping[str, float]) -> float | None:
    """Return the condition of a result, or of what it stands for; None where it is not known."""
    parameter = parameter_after(name)
    rest = name.partition("/")[2] if parameter is None else parameter
    for candidate in (name, *(before + rest for before in _OTHER_NAMES)):
        if candidate in conditions:
            return conditions[candidate]
    return None
