"""Options of strategies whose gradients are late, and the ages of those that `sim` applies.

How old the gradients of strategy `sim` are, and whose they are, is a function of the step:

    fixed:N             every gradient is N steps old, as in `round_robin` with N + 1 workers
    uniform:LOW:HIGH    drawn from LOW to HIGH
    geometric:MEAN      drawn with probability p (1 - p)^tau, p = 1 / (1 + MEAN), and cut where one
                        of a thousand would be older
    histogram:0=10,2=5  drawn with weights, such as the numbers of steps that a run's result shows
    speed:1,1,4         what lock-free workers would come to that take so long for a gradient

Each draw has a generator of its own, keyed by seed and step, so a step's age depends on nothing but
the two. A gradient is never older than the run: step t is at most t steps late.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from mlxhog.config.options import option
from mlxhog.config.rules import Compensation, StalenessRule
from mlxhog.files.quantities import parse_number

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig

LATE = ("hogwild", "async_ps", "ssp", "locked", "aig", "sim")
"""Strategies that `staleness_lr` and what goes with it are for."""
FED_BACK = ("hogwild", "round_robin", "sim")
"""Strategies that `delay_feedback` is for."""
SLACK = 3
"""Of ssp, where nothing is said."""

OWNERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("staleness_lr", "delay_compensation", "rescale_by_speed"), LATE),
    "delay_feedback": FED_BACK,
    "lock_scope": ("locked",),
    "slack": ("ssp",),
    "slack_notice": ("ssp",),
    "backup_workers": ("sync",),
    "sim_staleness": ("sim",),
    "sim_workers": ("sim",),
}
"""Options that only these strategies take."""

_asynchrony = partial(option, group="asynchrony")


@dataclass(frozen=True, kw_only=True)
class Asynchrony:
    """Options of strategies whose gradients are late."""

    staleness_lr: str = _asynchrony(
        "none",
        "step size of a gradient that comes tau updates late: linear:C divides it by 1 + C tau, "
        "exp:D multiplies it by D^tau, delay_adaptive by (P - 1)/tau where that is less than 1, "
        "drop:T leaves out what is later than T",
    )
    delay_compensation: str = _asynchrony(
        "none",
        "correct a late gradient g by F g g (w - w_read), as DC-ASGD: constant:F, or adaptive:F, "
        "which divides F by the root of the mean square of g",
    )
    delay_feedback: bool = _asynchrony(
        False,
        "add a step that comes tau updates late with tau/n of it in advance, and take that back "
        "with the next one; n updates come between two steps of a worker (error feedback)",
    )
    rescale_by_speed: bool = _asynchrony(
        False,
        "multiply a worker's step size by its time for a gradient, so that slow and fast workers "
        "move the parameters equally far (Rescaled ASGD)",
    )
    lock_scope: str = _asynchrony(
        "step",
        "locked: what a worker holds the lock for, the whole step or only adding it",
        choices=("step", "apply"),
    )
    slack: int | None = _asynchrony(
        None,
        "ssp: steps that a worker may be ahead of the slowest when it begins one; auto is 3",
        unit="steps",
        low=0,
        none="auto",
    )
    slack_notice: float = _asynchrony(
        30.0, "ssp: say who is slow when workers have waited for it so long", unit="s", above=0
    )
    backup_workers: int = _asynchrony(
        0,
        "sync: workers that a round does not wait for; a gradient that comes after the others' is "
        "thrown away, so text that takes long to compute counts less",
        low=0,
    )
    sim_staleness: str | None = _asynchrony(
        None,
        "sim: age of each gradient in steps: fixed:N, uniform:LOW:HIGH, geometric:MEAN, "
        "histogram:0=10,1=80 (age=weight), or speed:1,1,4 (seconds for a gradient of each "
        "simulated worker); auto is fixed:1",
        none="auto",
    )
    sim_workers: int | None = _asynchrony(
        None,
        "sim: simulated workers, each with an optimizer state of its own; auto is N + 1 for "
        "fixed:N, those of speed, else 1",
        low=1,
        high=4096,
        none="auto",
    )

    @property
    def is_adapted(self) -> bool:
        """Whether a late gradient's step is another than a fresh one's."""
        rules = (self.staleness_lr, self.delay_compensation)
        return rules != ("none", "none") or self.rescale_by_speed

    @property
    def simulated_staleness(self) -> SimulatedStaleness:
        """What `sim_staleness` and `sim_workers` say."""
        return SimulatedStaleness.parse(self.sim_staleness or "fixed:1", self.sim_workers)


def implied_strategy(config: TrainConfig) -> str | None:
    """The strategy that has what is asked for, where only one has."""
    if config.backup_workers:
        return "sync"
    if config.slack is not None:
        return "ssp"
    if config.sim_staleness is not None or config.sim_workers is not None:
        return "sim"
    if config.lock_scope != "step":
        return "locked"
    return "hogwild" if config.is_adapted or config.delay_feedback else None


def contradictions(config: TrainConfig) -> list[tuple[str, str]]:
    """Pairs (option, what it contradicts and the way out)."""
    pairs = _unreadable(config)
    if pairs:
        return pairs
    strategy = config.strategy
    if strategy == "cyclades":
        problem = (
            "is cyclades, but every gradient of a network moves all its dense parameters, so all "
            "batches conflict: one component, at the speed of serial; set strategy=serial, or "
            "round_robin, which repeats bit for bit, too; sparse problems have it: mlxhog classic "
            "svm --scheme cyclades"
        )
        return [("strategy", problem)]
    if config.is_adapted and config.blocks == "disjoint":
        problem = "disjoint writes no parameter beside others, whose updates would count as delay"
        pairs.append(("blocks", f"{problem}; leave it out, or the rule for late gradients"))
    if config.delay_compensation != "none" and config.read == "live":
        problem = "live reads keep no copy of what the gradient was taken at"
        pairs.append(("delay_compensation", f"{problem}; leave read out"))
    pairs += _of_feedback(config)
    if config.rescale_by_speed and strategy == "sim":
        pairs.append(("rescale_by_speed", "sim has one process, and one speed; leave it out"))
    if config.backup_workers and config.sync_shares == "speed":
        problem = "shares by speed already let slow workers compute less; use one of the two"
        pairs.append(("backup_workers", problem))
    return pairs + _of_reads_and_writes(config)


def _of_feedback(config: TrainConfig) -> list[tuple[str, str]]:
    """What error feedback on delay does not go together with."""
    name, pairs = "delay_feedback", []
    if not config.delay_feedback:
        return []
    if config.async_after > 0:
        problem = "is for workers that write their own late steps, without async_after"
        pairs.append((name, f"{problem}; leave one of them out"))
    if config.predict not in ("auto", "none"):
        problem = f"{config.predict} already counts on the steps that are on their way"
        pairs.append(("predict", f"{problem}; leave it out, or delay_feedback"))
    for other, asked in (
        ("sparsify", config.sparsify != "none"),
        ("blocks", config.blocks != "all"),
        ("gpu_write", config.gpu_write != "cpu"),
    ):
        if asked:
            problem = f"is {getattr(config, other)}, and only steps that the CPU writes whole are"
            pairs.append((other, f"{problem} corrected; leave it out, or delay_feedback"))
    return pairs


def _unreadable(config: TrainConfig) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    parsers: dict[str, Callable[[], object]] = {
        "staleness_lr": lambda: StalenessRule.parse(config.staleness_lr),
        "delay_compensation": lambda: Compensation.parse(config.delay_compensation),
        "sim_staleness": lambda: config.simulated_staleness,
    }
    for name, parse in parsers.items():
        try:
            parse()
        except ValueError as error:
            pairs.append((name, str(error)))
    return pairs


def _of_reads_and_writes(config: TrainConfig) -> list[tuple[str, str]]:
    """What strategies cannot do in which workers take a lock, or a turn."""
    strategy, pairs = config.strategy, []
    if strategy not in LATE or strategy == "hogwild":
        return []
    if config.read == "live" and strategy in ("async_ps", "ssp", "sim"):
        pairs.append(("read", f"live, but {strategy} computes with copies; leave read out"))
    if config.write == "racy":
        problem = f"racy, but in {strategy} no other process writes beside a worker; leave it out"
        pairs.append(("write", problem))
    if strategy == "aig" and (config.write == "cas" or config.gpu_write != "cpu"):
        name = "write" if config.write == "cas" else "gpu_write"
        problem = f"{getattr(config, name)}, but aig writes under the locks of what it touches"
        pairs.append((name, f"{problem}; leave it out"))
    if strategy in ("async_ps", "ssp") and config.moments == "shared":
        problem = f"shared, but {strategy} has one optimizer state anyway; leave it out"
        pairs.append(("moments", problem))
    return pairs


_AGES = (
    "fixed:N, uniform:LOW:HIGH, geometric:MEAN, histogram:AGE=WEIGHT,... or "
    "speed:SECONDS,... with whole ages from 0 to 4095, and weights and seconds above 0"
)
_MOST = 4095
_CUT = 1e-3


class Turn(NamedTuple):
    """Whose gradient a step applies, from 0, and how many steps ago its parameters were read."""

    worker: int
    staleness: int


@dataclass(frozen=True)
class SimulatedStaleness:
    """A rule of `sim_staleness`; the module has their table.

    Attributes:
        kind: its name.
        numbers: N; LOW and HIGH; MEAN; the seconds.
        weights: of ages 0, 1, ... for histogram.
        workers: simulated; of all but speed, step t is that of worker t mod P.
    """

    kind: str
    numbers: tuple[float, ...]
    weights: tuple[float, ...]
    workers: int

    @classmethod
    def parse(cls, text: str, workers: int | None = None) -> SimulatedStaleness:
        """Read a rule, for so many workers or as many as it says.

        Raises:
            ValueError: it cannot be read, or speed names another number of workers.
        """
        kind, _, rest = text.partition(":")
        try:
            rule = cls._parsed(kind, rest)
        except (KeyError, ValueError):
            raise ValueError(f"wanted {_AGES}; got {text!r}") from None
        if workers is None or workers == rule.workers:
            return rule
        if kind == "speed":
            raise ValueError(
                f"speed names {rule.workers} workers and sim_workers is {workers}; leave it out"
            )
        return cls(rule.kind, rule.numbers, rule.weights, workers)

    @classmethod
    def _parsed(cls, kind: str, rest: str) -> SimulatedStaleness:
        if kind == "fixed":
            age = _age(rest)
            return cls(kind, (age,), (), age + 1)
        if kind == "uniform":
            low, high = map(_age, rest.split(":"))
            if low > high:
                raise ValueError
            return cls(kind, (low, high), (), 1)
        if kind == "geometric":
            mean = _positive(rest)
            rule = cls(kind, (mean,), (), 1)
            _age(str(rule.most))
            return rule
        if kind == "histogram":
            pairs = [part.split("=") for part in rest.split(",")]
            weights = {_age(age): _positive(weight) for age, weight in pairs}
            every = tuple(weights.get(age, 0.0) for age in range(max(weights) + 1))
            return cls(kind, (), every, 1)
        if kind == "speed":
            seconds = tuple(_positive(part) for part in rest.split(","))
            rule = cls(kind, seconds, (), len(seconds))
            _age(str(rule.most))
            return rule
        raise KeyError(kind)

    @cached_property
    def most(self) -> int:
        """The largest age that can come up."""
        if self.kind in ("fixed", "uniform"):
            return int(self.numbers[-1])
        if self.kind == "geometric":
            return math.ceil(math.log(_CUT) / math.log(1.0 - self._stop))
        if self.kind == "histogram":
            return len(self.weights) - 1
        seconds = self.numbers  # while one computes, each other ends so many gradients at most
        return max(
            sum(math.floor(own / other) + 1 for q, other in enumerate(seconds) if q != p)
            for p, own in enumerate(seconds)
        )

    @property
    def _stop(self) -> float:
        return 1.0 / (1.0 + self.numbers[0])

    def course(self, seed: int) -> Course:
        """The turns of a run with this seed."""
        return Course(self, seed)


class Course:
    """The turns of one run, by step; of speed they are computed one after another, and kept."""

    def __init__(self, rule: SimulatedStaleness, seed: int) -> None:
        """Begin before step 0."""
        self._rule, self._seed = rule, seed
        self._turns: list[Turn] = []
        self._ends = [(own, worker) for worker, own in enumerate(rule.numbers)]
        self._read_at = [0] * rule.workers
        heapq.heapify(self._ends)

    def at(self, step: int) -> Turn:
        """The turn of a step, from 0."""
        rule = self._rule
        if rule.kind == "speed":
            while len(self._turns) <= step:
                self._turns.append(self._next_end(len(self._turns)))
            return self._turns[step]
        return Turn(step % rule.workers, min(step, self._draw(step)))

    def _next_end(self, step: int) -> Turn:
        """Whoever ends its gradient next applies it and begins another; of equals the first."""
        end, worker = self._ends[0]
        heapq.heapreplace(self._ends, (end + self._rule.numbers[worker], worker))
        staleness = step - self._read_at[worker]
        self._read_at[worker] = step + 1
        return Turn(worker, min(staleness, self._rule.most))

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
