"""The staleness and the worker of each step of strategy `sim`: a function of its number.

    fixed:N             every gradient is N steps old, as in `round_robin` with N + 1 workers
    uniform:LOW:HIGH    drawn from LOW to HIGH
    geometric:MEAN      drawn with probability p (1 - p)^tau, p = 1 / (1 + MEAN), and cut where one
                        in a thousand would be older
    histogram:0=10,2=5  drawn with weights, such as the numbers of steps that a run's result shows
    speed:1,1,4         ages of lock-free workers that take these times for a gradient

Each draw has a generator of its own, keyed by seed and step, so a step's age depends only on the
two. A gradient is never older than the run: step t is at most t steps late.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import NamedTuple

from mlxhog.base.quantities import parse_number

_AGES = (
    "fixed:N, uniform:LOW:HIGH, geometric:MEAN, histogram:AGE=WEIGHT,... or "
    "speed:SECONDS,... with whole ages from 0 to 4095, and weights and seconds above 0"
)
_MOST = 4095
_CUT = 1e-3


class SimulatedStep(NamedTuple):
    """The worker of a step, from 0, and the age of its parameters in steps."""

    worker: int
    staleness: int


@dataclass(frozen=True)
class SimulatedStaleness:
    """A rule of `sim(staleness=)`; the module has their table.

    Attributes:
        kind: its name.
        numbers: N; LOW and HIGH; MEAN; the seconds.
        weights: of ages 0, 1, ... for histogram.
        workers: number of simulated workers; in all rules but speed, step t is worker t mod P's.
    """

    kind: str
    numbers: tuple[float, ...]
    weights: tuple[float, ...]
    workers: int

    @classmethod
    def parse(cls, text: str) -> SimulatedStaleness:
        """Read a rule.

        Raises:
            ValueError: it cannot be read.
        """
        kind, _, rest = text.partition(":")
        numbers, weights, workers = tuple[float, ...](), tuple[float, ...](), 1
        try:
            if kind == "fixed":
                numbers, workers = (_age(rest),), _age(rest) + 1
            elif kind == "uniform":
                low, high = map(_age, rest.split(":"))
                numbers = (low, high)[: 2 * (low <= high)]
            elif kind == "geometric":
                numbers = (_positive(rest),)
            elif kind == "histogram":
                pairs = [part.split("=") for part in rest.split(",")]
                by_age = {_age(age): _positive(weight) for age, weight in pairs}
                weights = tuple(by_age.get(age, 0.0) for age in range(max(by_age) + 1))
            elif kind == "speed":
                numbers = tuple(map(_positive, rest.split(",")))
                workers = len(numbers)
            rule = cls(kind, numbers, weights, workers)
            if not (numbers or weights) or rule.most > _MOST:
                raise ValueError
        except (OverflowError, ValueError):
            raise ValueError(f"wanted {_AGES}; got {text!r}") from None
        return rule

    @cached_property
    def most(self) -> int:
        """The largest possible age."""
        if self.kind in ("fixed", "uniform"):
            return int(self.numbers[-1])
        if self.kind == "geometric":
            return math.ceil(math.log(_CUT) / math.log(1.0 - self._stop))
        if self.kind == "histogram":
            return len(self.weights) - 1
        seconds = self.numbers  # while one computes, each other one ends at most this number
        return max(
            sum(math.floor(own / other) + 1 for q, other in enumerate(seconds) if q != p)
            for p, own in enumerate(seconds)
        )

    @property
    def _stop(self) -> float:
        return 1.0 / (1.0 + self.numbers[0])

    def course(self, seed: int) -> Course:
        """The steps of a run with this seed."""
        return Course(self, seed)


class Course:
    """The steps of one run; those of speed are computed one after another, and kept."""

    def __init__(self, rule: SimulatedStaleness, seed: int) -> None:
        """Begin before step 0."""
        self._rule, self._seed = rule, seed
        self._steps: list[SimulatedStep] = []
        self._ends = [(own, worker) for worker, own in enumerate(rule.numbers)]
        self._read_at = [0] * rule.workers
        heapq.heapify(self._ends)

    def at(self, step: int) -> SimulatedStep:
        """The step of a number, from 0."""
        rule = self._rule
        if rule.kind == "speed":
            while len(self._steps) <= step:
                self._steps.append(self._next_end(len(self._steps)))
            return self._steps[step]
        return SimulatedStep(step % rule.workers, min(step, self._draw(step)))

    def _next_end(self, step: int) -> SimulatedStep:
        """The first worker to end its gradient applies it and begins another."""
        end, worker = self._ends[0]
        heapq.heapreplace(self._ends, (end + self._rule.numbers[worker], worker))
        staleness = step - self._read_at[worker]
        self._read_at[worker] = step + 1
        return SimulatedStep(worker, min(staleness, self._rule.most))

    def _draw(self, step: int) -> int:
        rule = self._rule
        if rule.kind == "fixed":
            return int(rule.numbers[0])
        drawn = Random(f"mlxhog-sim-1|{self._seed}|{step}").random()
        if rule.kind == "uniform":
            low, high = map(int, rule.numbers)
            return low + int(drawn * (high - low + 1))
        if rule.kind == "geometric":
            return min(rule.most, int(math.log(1.0 - drawn) / math.log(1.0 - rule._stop)))
        total = list(itertools.accumulate(rule.weights))
        return bisect.bisect_right(total, drawn * total[-1])


def _age(text: str) -> int:
    age = int(text)
    if not 0 <= age <= _MOST:
        raise ValueError
    return age


def _positive(text: str) -> float:
    number = parse_number(text)
    if number <= 0:
        raise ValueError
    return number
