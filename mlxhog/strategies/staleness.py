"""The worker and the age of each step of strategy `sim`, a function of its number.

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

from mlxhog.config.rules import Forms, positive

_MOST_AGE = 4095
_CUT = 1e-3


def _age(text: str) -> int:
    age = int(text)
    if not 0 <= age <= _MOST_AGE:
        raise ValueError
    return age


def _weights(text: str) -> list[float]:
    pairs = [part.split("=") for part in text.split(",")]
    by_age = {_age(age): positive(weight) for age, weight in pairs}
    return [by_age.get(age, 0.0) for age in range(max(by_age) + 1)]


_SIMULATED_FORMS = Forms(
    "fixed:N, uniform:LOW:HIGH, geometric:MEAN, histogram:AGE=WEIGHT,... or speed:SECONDS,... with "
    f"whole ages from 0 to {_MOST_AGE}, and weights and seconds above 0",
    {},
    fixed=(_age,),
    uniform=(_age, _age),
    geometric=(positive,),
    histogram=(_weights,),
    speed=(lambda text: list(map(positive, text.split(","))),),
)


class SimulatedStep(NamedTuple):
    """The worker of a step, from 0, and the age of its parameters in steps."""

    worker: int
    staleness: int


@dataclass(frozen=True)
class SimulatedStaleness:
    """A rule of `sim(staleness=)`; the module has their table.

    Attributes:
        kind: its name.
        numbers: N; LOW and HIGH; MEAN; the weights of ages 0, 1, ...; the seconds.
        workers: number of simulated workers; in all rules but speed, step t is worker t mod P's.
    """

    kind: str
    numbers: tuple[float, ...]
    workers: int

    @classmethod
    def parse(cls, text: str) -> SimulatedStaleness:
        """Read a rule; a ValueError if it cannot be read."""
        kind, numbers = _SIMULATED_FORMS.read(text)
        if kind in ("histogram", "speed"):
            (numbers,) = numbers
        workers = {"fixed": int(numbers[0]) + 1, "speed": len(numbers)}.get(kind, 1)
        rule = cls(kind, tuple(numbers), workers)
        if rule.most > _MOST_AGE or (kind == "uniform" and numbers[0] > numbers[1]):
            raise ValueError(f"wanted {_SIMULATED_FORMS.expected}; got {text!r}")
        return rule

    @cached_property
    def most(self) -> int:
        """The largest possible age."""
        if self.kind == "geometric":
            return math.ceil(math.log(_CUT) / math.log(1.0 - 1.0 / (1.0 + self.numbers[0])))
        if self.kind == "histogram":
            return len(self.numbers) - 1
        if self.kind == "speed":  # while one computes, each other one ends at most this number
            return max(
                sum(math.floor(own / other) + 1 for q, other in enumerate(self.numbers) if q != p)
                for p, own in enumerate(self.numbers)
            )
        return int(self.numbers[-1])

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
        self._read_at = [0] * len(rule.numbers)
        heapq.heapify(self._ends)

    def at(self, step: int) -> SimulatedStep:
        """The step of a number, from 0."""
        rule = self._rule
        if rule.kind != "speed":
            return SimulatedStep(step % rule.workers, min(step, self._draw(step)))
        while len(self._steps) <= step:  # the first worker to end its gradient begins another
            now = len(self._steps)
            end, worker = self._ends[0]
            heapq.heapreplace(self._ends, (end + rule.numbers[worker], worker))
            self._steps.append(SimulatedStep(worker, min(now - self._read_at[worker], rule.most)))
            self._read_at[worker] = now + 1
        return self._steps[step]

    def _draw(self, step: int) -> int:
        kind, numbers = self._rule.kind, self._rule.numbers
        if kind == "fixed":
            return int(numbers[0])
        drawn = Random(f"mlxhog-sim-1|{self._seed}|{step}").random()
        if kind == "uniform":
            low, high = map(int, numbers)
            return low + int(drawn * (high - low + 1))
        if kind == "geometric":
            own = math.log(1.0 - drawn) / math.log(1.0 - 1.0 / (1.0 + numbers[0]))
            return min(self._rule.most, int(own))
        total = list(itertools.accumulate(numbers))
        return bisect.bisect_right(total, drawn * total[-1])
