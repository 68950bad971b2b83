"""Times of successive gradients of a simulated worker: rows of distributions, and recorded times.

constant       always the same
exponential    a least time and an exponential delay on top, the usual model of stragglers
(Lee et al. 2018, arXiv:1512.02673)
lognormal      a mean and a coefficient of variation: a product of many small disturbances
pareto         P(T > t) = (least / t)^shape: rarely, very late; a shape of 2 has no variance
markov         fast and slow spells that last for several gradients
recorded       the times of a worker in the order of their record; not read from text
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.base.quantities import parse_duration_s, parse_number
from mlxhog.errors import DataError, did_you_mean

_DRAWN_AT_ONCE = 256


class Form(NamedTuple):
    """A kind of times, by its numbers, of which the first `times` are times."""

    words: str
    times: int
    mean: Callable[..., float]
    draw: Callable[..., Any]
    """(rng, *numbers) -> many independent times, or an iterator of successive ones."""
    legal: Callable[..., bool] = lambda *others: True
    wanted: str = ""


def _lognormal(rng: np.random.Generator, mean: float, cv: float) -> NDArray[np.float64]:
    variance = math.log1p(cv**2)
    return mean * rng.lognormal(-variance / 2, math.sqrt(variance), _DRAWN_AT_ONCE)


def _mean_of_spells(fast: float, slow: float, to_slow: float, to_fast: float) -> float:
    return (to_fast * fast + to_slow * slow) / (to_slow + to_fast)


def _spells(
    rng: np.random.Generator, fast: float, slow: float, to_slow: float, to_fast: float
) -> Iterator[float]:
    """Yield spells; the first is as likely slow as any later one."""
    is_slow = rng.random() < to_slow / (to_slow + to_fast)
    while True:
        yield slow if is_slow else fast
        if rng.random() < (to_fast if is_slow else to_slow):
            is_slow = not is_slow


def _recorded(rng: np.random.Generator, *seconds: float) -> Iterator[float]:
    """Yield the record from a random time on, repeated, so that slow spells keep their lengths."""
    return itertools.cycle(np.roll(seconds, -int(rng.integers(len(seconds)))).tolist())


FORMS = {
    "constant": Form("TIME", 1, lambda time: time, lambda rng, time: np.full(1, time)),
    "exponential": Form(
        "LEAST:MEAN_DELAY", 2, lambda least, delay: least + delay,
        lambda rng, least, delay: least + delay * rng.standard_exponential(_DRAWN_AT_ONCE),
    ),
    "lognormal": Form(
        "MEAN:CV", 1, lambda mean, cv: mean, _lognormal,
        lambda cv: 0 <= cv < math.inf, "a CV of 0 or more",
    ),
    "pareto": Form(
        "LEAST:SHAPE", 1, lambda least, shape: least * shape / (shape - 1),
        lambda rng, least, shape: least * (1.0 + rng.pareto(shape, _DRAWN_AT_ONCE)),
        lambda shape: 1 < shape < math.inf, "a SHAPE above 1, so that a mean exists",
    ),
    "markov": Form(
        "FAST:SLOW:TO_SLOW:TO_FAST", 2,
        _mean_of_spells, _spells,
        lambda *chances: all(0 < one <= 1 for one in chances), "chances above 0, at most 1",
    ),
}  # fmt: skip
"""By kind, those that `parse` reads."""

RECORDED = Form("SECONDS", 1 << 62, lambda *seconds: float(np.mean(seconds)), _recorded)


@dataclass(frozen=True)
class ComputeTime:
    """Times of successive gradients, in seconds.

    Attributes:
        kind: one of `FORMS`, or "recorded".
        numbers: of its kind.
        held_up: probability that a gradient, at random, takes longer, and by which factor: another
            program runs now and then.

    Raises:
        DataError: a number is out of its range.
    """

    kind: str
    numbers: tuple[float, ...]
    held_up: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Check the numbers."""
        form, numbers = self._form, self.numbers
        times, others = numbers[: form.times], numbers[form.times :]
        if not times:
            raise DataError("no compute time was measured; run at least one step")
        if not all(0 <= one < math.inf for one in times) or not form.legal(*others):
            wanted = " and ".join(filter(None, ("times of 0 s or more", form.wanted)))
            raise DataError(f"{self.kind} times of {numbers[:8]}: wanted {wanted}")

    @property
    def _form(self) -> Form:
        return FORMS.get(self.kind, RECORDED)

    @property
    def mean_s(self) -> float:
        """Expected time."""
        probability, factor = self.held_up
        return self._form.mean(*self.numbers) * (1 + probability * (factor - 1))

    def successive(self, rng: np.random.Generator) -> Iterator[float]:
        """Yield one time after the other, without end."""
        probability, factor = self.held_up
        while True:
            drawn = self._form.draw(rng, *self.numbers)
            for one in drawn.tolist() if isinstance(drawn, np.ndarray) else drawn:
                yield one * (factor if probability and rng.random() < probability else 1.0)

    def scaled(self, factor: float) -> ComputeTime:
        """Every time multiplied by a factor: 2 for a worker half as fast."""
        times = self._form.times
        scaled = (one * factor for one in self.numbers[:times])
        return replace(self, numbers=(*scaled, *self.numbers[times:]))


def times_of(kind: str, *numbers: float) -> ComputeTime:
    """Return times of a kind, as in `times_of("lognormal", 0.1, 0.2)`."""
    return ComputeTime(kind, numbers)


def parse(text: str) -> ComputeTime:
    """Read a time model such as "constant:20ms", "exponential:1s:2s" or "lognormal:1:0.2".

    Raises:
        ValueError: it is not a time model; the message lists all forms.
        DataError: a parameter is out of its range.
    """
    kind, *words = text.strip().split(":")
    if kind not in FORMS:
        raise ValueError(f"wanted one of {forms()}; got {text!r}{did_you_mean(kind, FORMS)}")
    form = FORMS[kind]
    if len(words) != form.words.count(":") + 1:
        raise ValueError(f"wanted {kind}:{form.words}; got {text!r}")
    try:
        times = map(parse_duration_s, words[: form.times])
        return ComputeTime(kind, (*times, *map(parse_number, words[form.times :])))
    except ValueError as error:
        raise ValueError(f"wanted {kind}:{form.words}; in {text!r}, {error}") from None


def forms() -> str:
    """List what `parse` reads, for people."""
    return ", ".join(f"{kind}:{form.words}" for kind, form in FORMS.items())
