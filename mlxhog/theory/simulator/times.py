"""Times of successive gradients of a simulated worker: distributions, and recorded times.

    constant       always the same
    exponential    a least time and an exponential delay on top, the usual model of stragglers
    lognormal      a mean and a coefficient of variation
    pareto         a least time and a tail that falls with a power: rarely, very late
    markov         fast and slow spells that last for several gradients
    measured       drawn uniformly from measured times
    recorded       the times of a worker in the order of their record

`parse` reads the first five from text.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import DataError, did_you_mean
from mlxhog.files.quantities import parse_duration_s, parse_number

Float64 = NDArray[np.float64]
_DRAWN_AT_ONCE = 256


class ComputeTime(Protocol):
    """Times of successive gradients, in seconds."""

    @property
    def mean_s(self) -> float:
        """Expected time."""

    def successive(self, rng: np.random.Generator) -> Iterator[float]:
        """Yield one time after the other, without end."""

    def scaled(self, factor: float) -> ComputeTime:
        """Every time multiplied by a factor: 2 for a worker half as fast."""

    def to_json(self) -> dict[str, Any]:
        """Return the distribution as JSON types, for the inputs of a prediction."""


class Independent(ABC):
    """Times that do not depend on each other."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: int) -> Float64:
        """Return `size` independent times, (size,)."""

    def successive(self, rng: np.random.Generator) -> Iterator[float]:
        """Yield one time after the other, without end."""
        while True:
            yield from self.draw(rng, _DRAWN_AT_ONCE).tolist()


@dataclass(frozen=True)
class Constant(Independent):
    """Always the same time."""

    seconds: float

    def __post_init__(self) -> None:
        """Check the time."""
        _check_time("constant time", self.seconds)

    @property
    def mean_s(self) -> float:
        """The time."""
        return self.seconds

    def draw(self, rng: np.random.Generator, size: int) -> Float64:
        """Return the time, (size,) times."""
        return np.full(size, self.seconds)

    def scaled(self, factor: float) -> Constant:
        """Return another constant time."""
        return Constant(self.seconds * factor)

    def to_json(self) -> dict[str, Any]:
        """Return kind and time."""
        return {"kind": "constant", "seconds": self.seconds}


@dataclass(frozen=True)
class ShiftedExponential(Independent):
    """A least time, and an exponential delay with a given mean on top: the usual straggler model.

    Source: Lee et al. 2018, arXiv:1512.02673.
    """

    least_s: float
    mean_delay_s: float

    def __post_init__(self) -> None:
        """Check the times."""
        _check_time("least time", self.least_s)
        _check_time("mean delay", self.mean_delay_s)

    @property
    def mean_s(self) -> float:
        """Least time plus mean delay."""
        return self.least_s + self.mean_delay_s

    def draw(self, rng: np.random.Generator, size: int) -> Float64:
        """Return independent times, (size,)."""
        return self.least_s + self.mean_delay_s * rng.standard_exponential(size)

    def scaled(self, factor: float) -> ShiftedExponential:
        """Scale the least time as well as the delay."""
        return ShiftedExponential(self.least_s * factor, self.mean_delay_s * factor)

    def to_json(self) -> dict[str, Any]:
        """Return kind and parameters."""
        return {
            "kind": "shifted exponential",
            "least_s": self.least_s,
            "mean_delay_s": self.mean_delay_s,
        }


@dataclass(frozen=True)
class LogNormal(Independent):
    """Times whose logarithm is normal: a product of many small disturbances.

    Attributes:
        mean: of the times, in seconds.
        cv: their standard deviation over their mean.
    """

    mean: float
    cv: float

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_time("mean time", self.mean)
        if not 0 <= self.cv < math.inf:
            raise DataError(f"a coefficient of variation of {self.cv}: wanted 0 or more")

    @property
    def mean_s(self) -> float:
        """The mean."""
        return self.mean

    def draw(self, rng: np.random.Generator, size: int) -> Float64:
        """Return independent times, (size,)."""
        variance = math.log1p(self.cv**2)
        return self.mean * rng.lognormal(-variance / 2, math.sqrt(variance), size)

    def scaled(self, factor: float) -> LogNormal:
        """Scale the mean; the shape stays."""
        return LogNormal(self.mean * factor, self.cv)

    def to_json(self) -> dict[str, Any]:
        """Return kind and parameters."""
        return {"kind": "lognormal", "mean_s": self.mean, "cv": self.cv}


@dataclass(frozen=True)
class Pareto(Independent):
    """P(T > t) = (least_s / t)^shape for t >= least_s: the smaller the shape, the longer the tail.

    Up to a shape of 2 the variance is infinite; at 1 the mean is, too, so the shape is above 1.
    """

    least_s: float
    shape: float

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_time("least time", self.least_s)
        if not 1 < self.shape < math.inf:
            raise DataError(
                f"a Pareto shape of {self.shape}: wanted above 1, so that a mean exists"
            )

    @property
    def mean_s(self) -> float:
        """The mean, least_s shape / (shape - 1)."""
        return self.least_s * self.shape / (self.shape - 1)

    def draw(self, rng: np.random.Generator, size: int) -> Float64:
        """Return independent times, (size,)."""
        return self.least_s * (1.0 + rng.pareto(self.shape, size))

    def scaled(self, factor: float) -> Pareto:
        """Scale the least time; the shape stays."""
        return Pareto(self.least_s * factor, self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return kind and parameters."""
        return {"kind": "pareto", "least_s": self.least_s, "shape": self.shape}


@dataclass(frozen=True)
class Markov:
    """Spells of fast and of slow gradients, such as beside a program that runs now and then.

    Attributes:
        fast: times in a fast spell.
        slow: times in a slow one.
        to_slow: probability, after each fast gradient, that the next is slow.
        to_fast: probability, after each slow gradient, that the next is fast.
    """

    fast: ComputeTime
    slow: ComputeTime
    to_slow: float
    to_fast: float

    def __post_init__(self) -> None:
        """Check the probabilities."""
        for name in ("to_slow", "to_fast"):
            if not 0 < getattr(self, name) <= 1:
                raise DataError(
                    f"{name} = {getattr(self, name)}: wanted a probability above 0, at most 1"
                )

    @property
    def slow_share(self) -> float:
        """Share of the gradients that are slow."""
        return self.to_slow / (self.to_slow + self.to_fast)

    @property
    def mean_s(self) -> float:
        """Over both kinds of spells."""
        return (1 - self.slow_share) * self.fast.mean_s + self.slow_share * self.slow.mean_s

    def successive(self, rng: np.random.Generator) -> Iterator[float]:
        """Yield one time after the other; the first spell is as likely slow as any later one."""
        fast, slow = self.fast.successive(rng), self.slow.successive(rng)
        is_slow = rng.random() < self.slow_share
        while True:
            yield next(slow if is_slow else fast)
            if rng.random() < (self.to_fast if is_slow else self.to_slow):
                is_slow = not is_slow

    def scaled(self, factor: float) -> Markov:
        """Scale the times of either kind; spells keep their numbers of gradients."""
        return Markov(
            self.fast.scaled(factor), self.slow.scaled(factor), self.to_slow, self.to_fast
        )

    def to_json(self) -> dict[str, Any]:
        """Return kind and parameters."""
        return {
            "kind": "markov",
            "fast": self.fast.to_json(),
            "slow": self.slow.to_json(),
            "to_slow": self.to_slow,
            "to_fast": self.to_fast,
        }


@dataclass(frozen=True)
class HeldUpTimes:
    """Times of which some, at random, are longer by a factor: another program runs now and then.

    Attributes:
        time: of a gradient that is not held up.
        probability: that a gradient is held up.
        factor: of the time of such a gradient.
    """

    time: ComputeTime
    probability: float
    factor: float

    @property
    def mean_s(self) -> float:
        """Over both kinds."""
        return self.time.mean_s * (1 + self.probability * (self.factor - 1))

    def successive(self, rng: np.random.Generator) -> Iterator[float]:
        """Yield one time after the other, without end."""
        for seconds in self.time.successive(rng):
            yield seconds * (self.factor if rng.random() < self.probability else 1.0)

    def scaled(self, factor: float) -> HeldUpTimes:
        """Scale all times."""
        return HeldUpTimes(self.time.scaled(factor), self.probability, self.factor)

    def to_json(self) -> dict[str, Any]:
        """Return kind and parameters."""
        return {
            "kind": "held up",
            "time": self.time.to_json(),
            "probability": self.probability,
            "factor": self.factor,
        }


class MeasuredTimes(Independent):
    """Times drawn uniformly and independently from measured ones: without slow spells."""

    kind = "measured"

    def __init__(self, seconds: Sequence[float] | Float64) -> None:
        """Keep the measured times.

        Raises:
            DataError: there is no time, or one is negative or not finite.
        """
        self.seconds = np.asarray(seconds, np.float64)
        if not self.seconds.size:
            raise DataError("no compute time was measured; run at least one step")
        for value in (self.seconds.min(), self.seconds.max(), self.seconds.mean()):
            _check_time("measured time", float(value))

    @property
    def mean_s(self) -> float:
        """Mean of the measured times."""
        return float(self.seconds.mean())

    def draw(self, rng: np.random.Generator, size: int) -> Float64:
        """Return independent times, (size,)."""
        return rng.choice(self.seconds, size)

    def scaled(self, factor: float) -> MeasuredTimes:
        """Scale every measured time."""
        return type(self)(self.seconds * factor)

    def to_json(self) -> dict[str, Any]:
        """Return kind, count and quartiles."""
        low, median, high = (float(q) for q in np.quantile(self.seconds, (0.25, 0.5, 0.75)))
        return {
            "kind": self.kind,
            "count": len(self.seconds),
            "mean_s": self.mean_s,
            "quartiles_s": [low, median, high],
        }


class RecordedTimes(MeasuredTimes):
    """Times in the order of their record, from a random one on, repeated without end.

    Slow spells keep their lengths.
    """

    kind = "recorded"

    def successive(self, rng: np.random.Generator) -> Iterator[float]:
        """Yield one time after the other, without end."""
        first = int(rng.integers(len(self.seconds)))
        return itertools.cycle(np.roll(self.seconds, -first).tolist())


def _check_time(name: str, seconds: float) -> None:
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{name} of {seconds} s: wanted a time of 0 s or more")


# -- from text -------------------------------------------------------------------------------------

_s, _n = parse_duration_s, parse_number
FORMS: dict[str, tuple[str, Callable[[list[str]], ComputeTime]]] = {
    "constant": ("constant:TIME", lambda w: Constant(_s(w[0]))),
    "exponential": (
        "exponential:LEAST:MEAN_DELAY",
        lambda w: ShiftedExponential(_s(w[0]), _s(w[1])),
    ),
    "lognormal": ("lognormal:MEAN:CV", lambda w: LogNormal(_s(w[0]), _n(w[1]))),
    "pareto": ("pareto:LEAST:SHAPE", lambda w: Pareto(_s(w[0]), _n(w[1]))),
    "markov": (
        "markov:FAST:SLOW:TO_SLOW:TO_FAST",
        lambda w: Markov(Constant(_s(w[0])), Constant(_s(w[1])), _n(w[2]), _n(w[3])),
    ),
}
"""By kind: its form, and the function that reads its words."""


def parse(text: str) -> ComputeTime:
    """Read a time model such as "constant:20ms", "exponential:1s:2s" or "lognormal:1:0.2".

    Raises:
        ValueError: it is not a time model; the message lists all forms.
        DataError: a parameter is out of its range.
    """
    kind, *words = text.strip().split(":")
    if kind not in FORMS:
        forms = ", ".join(form for form, _ in FORMS.values())
        raise ValueError(f"wanted one of {forms}; got {text!r}{did_you_mean(kind, FORMS)}")
    form, make = FORMS[kind]
    if len(words) != form.count(":"):
        raise ValueError(f"wanted {form}; got {text!r}")
    try:
        return make(words)
    except ValueError as error:
        raise ValueError(f"wanted {form}; in {text!r}, {error}") from None
