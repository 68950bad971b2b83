"""Rules spelt `WORD:NUMBER`: of late gradients, sparse steps, slow workers, simulated staleness.

Step size by `staleness_lr` of a gradient that comes tau updates late, with P workers (with
`--overlap` P is one more, since the worker's own last step comes in between, too):

    staleness_lr      step size
    none              lr
    linear:C          lr / (1 + C tau); C is 0.5 by default
    exp:D             lr D^tau; D is 0.9 by default
    delay_adaptive    lr min(1, (P - 1) / tau): lr up to the usual age, and less for older gradients
    drop:T            lr up to tau = T, and 0 beyond; T is 2 P by default

Sources: linear, Zhang et al. 2015, arXiv:1511.05950 (there lr / tau); delay_adaptive and drop,
Koloskova et al. 2022, arXiv:2206.08307, and Mishchenko et al. 2022, arXiv:2206.07638, whose rules
know the smoothness of the objective. lr / P and lr / sqrt(P), which do not depend on tau, are
`lr_workers`.

The staleness and the worker of each step of strategy `sim`, a function of its number:

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, Literal, NamedTuple

from mlxhog.base.quantities import parse_duration_s, parse_number
from mlxhog.errors import ConfigError

Reader = Callable[[str], Any]
"""Returns a number of a rule, or raises ValueError."""


def _number(is_legal: Callable[[float], bool]) -> Reader:
    def read(text: str) -> float:
        number = parse_number(text)
        if not is_legal(number):
            raise ValueError
        return number

    return read


_positive, _any = _number(lambda x: x > 0), _number(lambda x: x >= 0)
_share = _number(lambda x: 0 <= x <= 1)


class _Forms:
    """The legal texts `WORD:NUMBER:NUMBER` of an option.

    Args:
        expected: description of them.
        usual: the number of a word that stands alone.
        readers: word -> readers of its numbers.
    """

    def __init__(
        self, expected: str, usual: Mapping[str, float | None], **readers: Sequence[Reader]
    ) -> None:
        self.expected, self._usual, self._readers = expected, usual, readers

    def read(self, text: str) -> tuple[str, list[Any]]:
        """Return word and numbers of a text.

        Raises:
            ValueError: the word is unknown, or a number is missing or not legal.
        """
        word, *parts = text.split(":")
        if not parts and word in self._usual:
            return word, [self._usual[word]]
        try:
            readers = self._readers[word]
            return word, [read(part) for read, part in zip(readers, parts, strict=True)]
        except (KeyError, OverflowError, ValueError):
            raise ValueError(f"wanted {self.expected}; got {text!r}") from None


_LATE_FORMS = _Forms(
    "none, linear:C with C >= 0, exp:D with 0 <= D <= 1, delay_adaptive, or drop:T with T >= 0",
    {"linear": 0.5, "exp": 0.9, "drop": None},
    none=(), linear=(_any,), exp=(_share,), delay_adaptive=(), drop=(_any,),
)  # fmt: skip
_COMPENSATION_FORMS = _Forms(
    "none, constant:F or adaptive:F with F > 0",
    {"constant": 0.04, "adaptive": 2.0},
    none=(), constant=(_positive,), adaptive=(_positive,),
)  # fmt: skip
_SELECTION_FORMS = _Forms(
    "none, topk:F with a share 0 < F <= 1, or threshold:F with F > 0",
    {},
    none=(), topk=(_number(lambda x: 0 < x <= 1),), threshold=(_positive,),
)  # fmt: skip


@dataclass(frozen=True)
class StalenessRule:
    """A rule of `staleness_lr`.

    Attributes:
        kind: none, linear, exp, delay_adaptive or drop.
        number: its C, D or T; None if it has none, and for drop with T = 2 P.
    """

    kind: str
    number: float | None = None

    @classmethod
    def parse(cls, text: str) -> StalenessRule:
        """Read "none", "linear:0.5", "exp", "delay_adaptive" or "drop:8".

        Raises:
            ValueError: none of these.
        """
        kind, numbers = _LATE_FORMS.read(text)
        return cls(kind, *numbers)

    def factor(self, staleness: int, workers: int) -> float:
        """Factor of lr, in [0, 1]; 0 leaves the gradient out.

        Args:
            staleness: updates by others between the read and the write, >= 0.
            workers: P, >= 1.
        """
        number = self.number or 0.0
        if self.kind == "linear":
            return 1.0 / (1.0 + number * staleness)
        if self.kind == "exp":
            return float(number**staleness)
        if self.kind == "delay_adaptive":
            usual = max(1, workers - 1)
            return min(1.0, usual / staleness) if staleness else 1.0
        if self.kind == "drop":
            return float(staleness <= (2 * workers if self.number is None else self.number))
        return 1.0


@dataclass(frozen=True)
class Compensation:
    """A rule of `delay_compensation`.

    Source: Zheng et al. 2017, DC-ASGD, arXiv:1609.08326.

    Attributes:
        factor: lambda.
        adaptive: whether it is divided by the root of the gradient's mean square.
    """

    factor: float
    adaptive: bool

    @classmethod
    def parse(cls, text: str) -> Compensation | None:
        """Read "none", "constant:0.04" or "adaptive:2"; the numbers may be left out.

        Raises:
            ValueError: none of these.
        """
        kind, factor = _COMPENSATION_FORMS.read(text)
        return cls(factor[0], kind == "adaptive") if factor else None


@dataclass(frozen=True)
class Selection:
    """A rule for one parameter at a time; of a row-sparse step it chooses from the touched rows.

    kind "topk": the ceil(share * elements) of largest magnitude, at least one; among equals the
    first. Source: Stich, Cordonnier and Jaggi 2018, arXiv:1809.07599.
    kind "threshold": every element of magnitude >= share * lr. The unit is the step size, so the
    written part does not depend on the schedule; AdamW's steps are about 1 unit, SGD's are the
    gradient. Related: Strom 2015, Interspeech (there a fixed number).

    Zeros are never written.
    """

    kind: Literal["topk", "threshold"]
    share: float

    @classmethod
    def parse(cls, text: str) -> Selection | None:
        """Read "none", "topk:0.01" or "threshold:2".

        Raises:
            ValueError: none of these.
        """
        kind, share = _SELECTION_FORMS.read(text)
        return cls("topk" if kind == "topk" else "threshold", *share) if share else None


# -- workers that are slowed down ------------------------------------------------------------------

_SLOW_FORMS = _Forms(
    "RANK=FACTOR, RANK=random:PROBABILITY:FACTOR or RANK=late:TIME for each worker, such as "
    "0=1.5,1=random:0.2:3 (ranks from 0, factors at least 1, probabilities up to 1)",
    {},
    factor=(_number(lambda x: x >= 1),),
    random=(_share, _number(lambda x: x >= 1)),
    late=(lambda text: _any(str(parse_duration_s(text))),),
)


@dataclass(frozen=True)
class Slowdown:
    """How one worker is slowed down on purpose, for experiments and tests.

    Attributes:
        factor: of the time of a gradient, at least 1.
        probability: that a gradient takes this time.
        late_s: seconds of training before it takes its first batch.
    """

    factor: float = 1.0
    probability: float = 1.0
    late_s: float = 0.0

    def factor_of(self, seed: int, rank: int, step: int) -> float:
        """The factor of one gradient: a function of these numbers, the same on every machine."""
        if self.probability == 1:
            return self.factor
        drawn = Random(f"mlxhog-slow-1|{seed}|{rank}|{step}").random()
        return self.factor if drawn < self.probability else 1.0


def parse_slowdowns(text: str | None) -> Mapping[int, Slowdown]:
    """Return the slowdowns by rank; None names no worker.

    Raises:
        ValueError: a part cannot be read, or a rank appears twice.
    """
    slowdowns: dict[int, Slowdown] = {}
    for part in [] if text is None else text.split(","):
        rank, equals, how = part.strip().partition("=")
        how = how if how.startswith(("random:", "late:")) else f"factor:{how}"
        if not (equals and rank.isdecimal()):
            raise ValueError(f"wanted {_SLOW_FORMS.expected}; got {part.strip()!r}")
        kind, numbers = _SLOW_FORMS.read(how)
        if int(rank) in slowdowns:
            raise ValueError(f"worker {int(rank)} appears in {text!r} twice; keep one")
        fields = {
            "factor": ("factor",), "random": ("probability", "factor"), "late": ("late_s",)
        }  # fmt: skip
        slowdowns[int(rank)] = Slowdown(**dict(zip(fields[kind], numbers, strict=True)))
    return slowdowns


def check_ranks(text: str | None, workers: int) -> None:
    """Refuse ranks beyond the workers of the run.

    Raises:
        ConfigError: there are fewer workers.
    """
    for rank in parse_slowdowns(text):
        if rank >= workers:
            ranks = "rank 0" if workers == 1 else f"ranks 0 to {workers - 1}"
            raise ConfigError(
                f"slow names worker {rank}, and the run has {workers} with {ranks}; name one of "
                "these, or raise --workers"
            )


# -- simulated staleness ---------------------------------------------------------------------------

_MOST_AGE = 4095
_CUT = 1e-3


def _age(text: str) -> int:
    age = int(text)
    if not 0 <= age <= _MOST_AGE:
        raise ValueError
    return age


def _weights(text: str) -> list[float]:
    pairs = [part.split("=") for part in text.split(",")]
    by_age = {_age(age): _positive(weight) for age, weight in pairs}
    return [by_age.get(age, 0.0) for age in range(max(by_age) + 1)]


_SIMULATED_FORMS = _Forms(
    "fixed:N, uniform:LOW:HIGH, geometric:MEAN, histogram:AGE=WEIGHT,... or speed:SECONDS,... with "
    f"whole ages from 0 to {_MOST_AGE}, and weights and seconds above 0",
    {},
    fixed=(_age,),
    uniform=(_age, _age),
    geometric=(_positive,),
    histogram=(_weights,),
    speed=(lambda text: list(map(_positive, text.split(","))),),
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
        """Read a rule.

        Raises:
            ValueError: it cannot be read.
        """
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
        if self.kind in ("fixed", "uniform"):
            return int(self.numbers[-1])
        if self.kind == "geometric":
            return math.ceil(math.log(_CUT) / math.log(1.0 - self._stop))
        if self.kind == "histogram":
            return len(self.numbers) - 1
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
        self._read_at = [0] * max(rule.workers, len(rule.numbers))
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
            staleness = now - self._read_at[worker]
            self._read_at[worker] = now + 1
            self._steps.append(SimulatedStep(worker, min(staleness, rule.most)))
        return self._steps[step]

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
        total = list(itertools.accumulate(rule.numbers))
        return bisect.bisect_right(total, drawn * total[-1])
