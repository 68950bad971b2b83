"""Times of successive gradients of a simulated worker: a row for each distribution.

constant       always the same
exponential    a least time and an exponential delay on top, the usual model of stragglers
(Lee et al. 2018, arXiv:1512.02673)
lognormal      a mean and a coefficient of variation: a product of many small disturbances
pareto         P(T > t) = (least / t)^shape: heavy-tailed; a shape of 2 has no variance
markov         fast and slow spells that last for several gradients
recorded       the times of a worker in the order of their record; not read from text
"""

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


class TimesDistribution(NamedTuple):
    """A distribution of times, by its parameters: first times, then others."""

    words: str  # names of its parameters; "" if it is not read from text
    times: int  # how many of its parameters are times
    mean: Callable[..., float]
    draw: Callable[..., Any]  # (rng, *parameters) -> many times, or an iterator of successive ones
    legal: Callable[..., bool] = lambda *others: True  # whether its other parameters are
    wanted: str = ""  # of its other parameters


def _lognormal(rng: np.random.Generator, mean: float, cv: float) -> NDArray[np.float64]:
    variance = math.log1p(cv**2)
    return mean * rng.lognormal(-variance / 2, math.sqrt(variance), _DRAWN_AT_ONCE)


def _spells(
    rng: np.random.Generator, fast: float, slow: float, to_slow: float, to_fast: float
) -> Iterator[float]:
    is_slow = rng.random() < to_slow / (to_slow + to_fast)  # the first, as often as any later one
    while True:
        yield slow if is_slow else fast
        if rng.random() < (to_fast if is_slow else to_slow):
            is_slow = not is_slow


def _recorded(rng: np.random.Generator, *seconds: float) -> Iterator[float]:
    """Yield the record from a random time on, repeated, so that slow spells keep their lengths."""
    return itertools.cycle(np.roll(seconds, -int(rng.integers(len(seconds)))).tolist())


FORMS = {
    "constant": TimesDistribution("TIME", 1, lambda time: time, lambda rng, time: np.full(1, time)),
    "exponential": TimesDistribution(
        "LEAST:MEAN_DELAY", 2, lambda least, delay: least + delay,
        lambda rng, least, delay: least + delay * rng.standard_exponential(_DRAWN_AT_ONCE),
    ),
    "lognormal": TimesDistribution(
        "MEAN:CV", 1, lambda mean, cv: mean, _lognormal,
        lambda cv: 0 <= cv < math.inf, "a CV of 0 or more",
    ),
    "pareto": TimesDistribution(
        "LEAST:SHAPE", 1, lambda least, shape: least * shape / (shape - 1),
        lambda rng, least, shape: least * (1.0 + rng.pareto(shape, _DRAWN_AT_ONCE)),
        lambda shape: 1 < shape < math.inf, "a SHAPE above 1, so that a mean exists",
    ),
    "markov": TimesDistribution(
        "FAST:SLOW:TO_SLOW:TO_FAST", 2,
        lambda fast, slow, to_slow, to_fast: (to_fast * fast + to_slow * slow)
        / (to_slow + to_fast),
        _spells,
        lambda *chances: all(0 < one <= 1 for one in chances), "chances above 0, at most 1",
    ),
    "recorded": TimesDistribution("", 1 << 62, lambda *seconds: float(np.mean(seconds)), _recorded),
}  # fmt: skip


@dataclass(frozen=True)
class ComputeTime:
    """Times of successive gradients, in seconds.

    Raises:
        DataError: a parameter is out of its range.
    """

    kind: str  # one of `FORMS`
    parameters: tuple[float, ...]  # of this distribution
    held_up: tuple[float, float] = (0.0, 1.0)  # probability, and factor, of a longer gradient

    def __post_init__(self) -> None:
        """Check the parameters."""
        form = FORMS[self.kind]
        times, others = self.parameters[: form.times], self.parameters[form.times :]
        if not times:
            raise DataError("no compute time was measured; run at least one step")
        if not all(0 <= one < math.inf for one in times) or not form.legal(*others):
            wanted = " and ".join(filter(None, ("times of 0 s or more", form.wanted)))
            raise DataError(f"{self.kind} times of {self.parameters[:8]}: wanted {wanted}")

    @property
    def mean_s(self) -> float:
        """Expected time."""
        probability, factor = self.held_up
        return FORMS[self.kind].mean(*self.parameters) * (1 + probability * (factor - 1))

    def successive(self, rng: np.random.Generator) -> Iterator[float]:
        """Yield one time after the other, without end."""
        probability, factor = self.held_up
        while True:
            drawn = FORMS[self.kind].draw(rng, *self.parameters)
            for one in drawn.tolist() if isinstance(drawn, np.ndarray) else drawn:
                yield one * (factor if probability and rng.random() < probability else 1.0)

    def scaled(self, factor: float) -> "ComputeTime":
        """Every time multiplied by a factor: 2 for a worker half as fast."""
        times = FORMS[self.kind].times
        scaled = (one * factor for one in self.parameters[:times])
        return replace(self, parameters=(*scaled, *self.parameters[times:]))


def times_of(kind: str, *parameters: float) -> ComputeTime:
    """Return times of a kind, as in `times_of("lognormal", 0.1, 0.2)`."""
    return ComputeTime(kind, parameters)


def parse(text: str) -> ComputeTime:
    """Read times such as "constant:20ms", "exponential:1s:2s" or "lognormal:1:0.2".

    Raises:
        ValueError: another form; the message lists all.
        DataError: a parameter is out of its range.
    """
    kind, *words = text.strip().split(":")
    form = FORMS.get(kind)
    if form is None or not form.words:
        raise ValueError(f"wanted one of {forms()}; got {text!r}{did_you_mean(kind, FORMS)}")
    expected = f"wanted {kind}:{form.words}"
    if len(words) != form.words.count(":") + 1:
        raise ValueError(f"{expected}; got {text!r}")
    try:
        times = map(parse_duration_s, words[: form.times])
        return ComputeTime(kind, (*times, *map(parse_number, words[form.times :])))
    except ValueError as error:
        raise ValueError(f"{expected}; in {text!r}, {error}") from None


def forms() -> str:
    """List what `parse` reads, for people."""
    return ", ".join(f"{kind}:{form.words}" for kind, form in FORMS.items() if form.words)
