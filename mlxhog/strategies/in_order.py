"""Steps in a fixed order: step t is taken at the parameters after step t - tau.

    round_robin  step t belongs to worker t mod P, and tau = P - 1: a worker adds its step, copies
                 the parameters for its next gradient, and computes that while the others have
                 their turns (Langford, Smola, Zinkevich 2009, Slow Learners are Fast,
                 arXiv:0911.0491)
    sim          one process simulates the workers; `--sim-staleness` is the rule of tau. Each
                 simulated worker has its own optimizer state. With tau = 0 it is `serial`, with
                 `fixed:N` round_robin of N + 1 workers, bit for bit

No two workers write at once: with a budget of steps or tokens reruns are equal bit for bit, and one
worker is the serial run. With `predict=last` the copies are extrapolated by N steps like the last
ones (`look_ahead.py`).

The copies are in the arena: a process that replaces a dead one computes the very same gradient.
Turns are opened one by one, each by the worker that has the turn P before it. When none is opened
(for a checkpoint, or at the end) the open turns run out, and the copies stay unchanged. A
checkpoint keeps them, so a pause or a resume changes nothing.

    segment                        dtype    meaning
    turns.after.0 .. turns.after.D float32  parameters after step k, of the last D + 1 steps: in
                                            k mod (D + 1), D being the largest tau; 0 is the begin

The words (see also `rounds.py`): every turn below `open_below` is open; the tokens of this call;
the version of each copy.

The rules of tau:

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
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mlxhog.config.components import Constraints
from mlxhog.config.options import option
from mlxhog.config.rules import Forms, positive
from mlxhog.errors import ConfigError
from mlxhog.optim import updates
from mlxhog.optim.gradients import Grads
from mlxhog.strategies import look_ahead
from mlxhog.strategies.delays import DelayFeedbackOptions, Delays, StaleGradientOptions
from mlxhog.strategies.look_ahead import LookAhead, PredictingReader
from mlxhog.strategies.rounds import Numbered, NumberedWorker, StepRecord
from mlxhog.strategies.strategy import IndependentSteps, Segments
from mlxhog.strategies.worker import Idle, Lease, WriteResult

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.layout import Parameter
    from mlxhog.arena.words import Words
    from mlxhog.strategies.context import Context

MAX_NAP_S = 2e-4
_MAX_AGE = 4095
_CUT = 1e-3  # chance of the ages that geometric leaves out


def _age(text: str) -> int:
    age = int(text)
    if not 0 <= age <= _MAX_AGE:
        raise ValueError
    return age


def _weights(text: str) -> list[float]:
    pairs = [part.split("=") for part in text.split(",")]
    by_age = {_age(age): positive(weight) for age, weight in pairs}
    return [by_age.get(age, 0.0) for age in range(max(by_age) + 1)]


_FORMS = Forms(
    "fixed:N, uniform:LOW:HIGH, geometric:MEAN, histogram:AGE=WEIGHT,... or speed:SECONDS,... with "
    f"whole ages from 0 to {_MAX_AGE}, and weights and seconds above 0",
    {},
    fixed=(_age,),
    uniform=(_age, _age),
    geometric=(positive,),
    histogram=(_weights,),
    speed=(lambda text: list(map(positive, text.split(","))),),
)


def _multiples(unit: float, limit: float, also_limit: bool = True) -> int:
    """Return how many of unit, 2 unit, ... are below a limit, or equal to it, as floats."""
    n = int(limit / unit)
    while (n + 1) * unit <= limit:
        n += 1
    while n and (n * unit > limit or (n * unit == limit and not also_limit)):
        n -= 1
    return n


class SimulatedStep(NamedTuple):
    """The worker of a step, from 0, and the age of its parameters in steps."""

    worker: int
    staleness: int


class Course:
    """The steps of a run by a rule of `sim(staleness=)`, or a ValueError.

    Of P simulated `workers` step t is that of t mod P, but for the rule speed. No age is above
    `most`.
    """

    def __init__(self, rule: str, seed: int = 0) -> None:
        self._kind, numbers = _FORMS.read(rule)
        if self._kind in ("histogram", "speed"):
            (numbers,) = numbers
        self._numbers: list[float] = numbers
        self._seed = seed
        self.workers = {"fixed": int(numbers[0]) + 1, "speed": len(numbers)}.get(self._kind, 1)
        self.most = int(numbers[-1])
        if self._kind == "geometric":
            self._decay = math.log(1.0 - 1.0 / (1.0 + numbers[0]))
            self.most = math.ceil(math.log(_CUT) / self._decay)
        elif self._kind == "histogram":
            self.most = len(numbers) - 1
        elif self._kind == "speed":  # while one computes, each other one ends at most this number
            self.most = max(
                sum(math.floor(own / other) + 1 for q, other in enumerate(numbers) if q != p)
                for p, own in enumerate(numbers)
            )
        if self.most > _MAX_AGE or (self._kind == "uniform" and numbers[0] > numbers[1]):
            raise ValueError(f"wanted {_FORMS.expected}; got {rule!r}")
        self._window = self.most + 2  # steps kept of speed: back to a worker's previous one
        if self._kind == "speed":
            exponent = math.frexp(max(numbers))[1]  # no number of gradients takes inf then
            self._numbers = [math.ldexp(own, -exponent) for own in numbers]
            self._seek(0)

    def at(self, step: int) -> SimulatedStep:
        if self._kind != "speed":
            return SimulatedStep(step % self.workers, min(step, self._draw(step)))
        if not self._next - len(self._steps) <= step <= self._next + self._window:
            self._seek(step)
        while self._next <= step:  # the first worker to end its gradient begins another
            _, worker = heapq.heappop(self._ends)
            age = min(self._next - self._read_at[worker], self.most)
            self._steps.append(SimulatedStep(worker, age))
            self._next += 1
            self._done[worker], self._read_at[worker] = self._done[worker] + 1, self._next
            heapq.heappush(self._ends, ((self._done[worker] + 1) * self._numbers[worker], worker))
        return self._steps[step - self._next]

    def _seek(self, step: int) -> None:
        """Set the state to that about a window before a step.

        Steps are in the order of their ends. A worker's n-th one ends after n of its gradients.
        """
        numbers, earlier = self._numbers, max(0, step - self._window)
        time = earlier / sum(1.0 / own for own in numbers)  # before which about so many end
        self._done = [_multiples(own, time) for own in numbers]
        self._next = sum(self._done)
        self._ends = sorted(
            ((n + 1) * own, w) for w, (n, own) in enumerate(zip(self._done, numbers, strict=True))
        )
        self._read_at = [  # the steps that have ended by the worker's last end
            sum(_multiples(other, n * own, v <= w) for v, other in enumerate(numbers))
            for w, (n, own) in enumerate(zip(self._done, numbers, strict=True))
        ]
        self._steps = deque[SimulatedStep](maxlen=self._window)

    def _draw(self, step: int) -> int:
        numbers = self._numbers
        if self._kind == "fixed":
            return int(numbers[0])
        drawn = Random(f"mlxhog-sim-1|{self._seed}|{step}").random()
        if self._kind == "uniform":
            low, high = numbers
            return int(low + int(drawn * (high - low + 1)))
        if self._kind == "geometric":
            return min(self.most, int(math.log(1.0 - drawn) / self._decay))
        total = list(itertools.accumulate(numbers))
        return bisect.bisect_right(total, drawn * total[-1])


# -- steps -------------------------------------------------------------------------------------


class InOrderWorker(NumberedWorker):
    """One worker's turns, or those of all simulated workers."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        strategy, arena = self.strategy, context.arena
        record = look_ahead.record(arena, strategy.run, strategy.in_flight)
        self._targets = {
            slot: replace(context.target(slot), record=record)
            for slot in (strategy.state_slots(arena) if context.workers == 1 else (context.slot,))
        }
        self._delays = Delays(context, workers=strategy.course.workers)
        self._turn = 0
        self._end = self._words["first"] + self._limit

    def claim(self) -> Lease | Idle:
        context, words, strategy = self.context, self._words, self.strategy
        own = self._turn = words["steps", context.rank] * context.workers + context.rank
        if own >= (end := words["open_below"]):
            if end >= self._end or context.is_over():
                return Idle.DONE
            if not own == strategy.turn(words) == end or context.paused():
                return Idle.WAIT
            # No turn is open: the worker whose turn it is opens one for each.
            words["open_below"] = min(own + context.workers, self._end)
        return self.lease()

    def read(self) -> None:
        context, strategy = self.context, self.strategy
        k = (self._turn - strategy.course.at(self._turn).staleness) % strategy.in_flight
        context.entry.version_read = self._words["version", k]
        context.backend.take(context.arena.segment(strategy.past()[k]), context.threads)

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Wait for the turn, add the step, copy the parameters, pass the turn on."""
        context, words, turn, strategy = self.context, self._words, self._turn, self.strategy
        entry, end = context.entry, turn + context.workers
        grads = self._delays.compensated(grads)  # of one process: it waits for none
        norm = context.norm(grads)
        context.wait_until(lambda: strategy.turn(words) == turn, max_s=MAX_NAP_S)
        is_next = words["open_below"] == end and context.workers > 1  # one process opens in `claim`
        if is_next and end < self._end and not (context.is_over() or context.paused()):
            words["open_below"] = end + 1
        context.marks.begin_update()
        version, worker = context.arena.counters.load("version"), strategy.course.at(turn).worker
        staleness = version - entry.version_read
        late = self._delays.factor(staleness) == 0.0
        applies = math.isfinite(norm) and not late
        opt_step = context.arena.workers.entry(worker + 1).opt_step + applies
        tokens = words["tokens"] + samples * context.run.seq_len

        def apply(record: StepRecord) -> None:
            lr = context.lr_at(turn - words["first"], words["tokens"], version)
            context.optimizer.step(
                self._targets[worker + 1],
                grads,
                lr=self._delays.rate(lr, staleness),
                step=record.opt_step,
                seed=entry.version_read * 65_537 + worker + 1,
                grad_scale=context.grad_scale(norm),
                shared_step=context.shared_step(),
                feedback=self._delays.feedback(staleness, since=strategy.since(turn)),
            )

        record = self.once(lease, (opt_step, version + applies, tokens, applies), apply)
        context.marks.end_update()
        staleness = max(0, record.version - record.applied - entry.version_read)
        return WriteResult(record.applied, staleness, record.version, too_late=late)


@dataclass(frozen=True, kw_only=True)
class InOrder(Numbered):
    """Steps in a fixed order, of workers or of one process that simulates them."""

    Worker: ClassVar[type[Any]] = InOrderWorker
    repeats: ClassVar[bool] = True
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True
    run_words: ClassVar[str] = "open_below tokens"

    def constraints(self) -> Constraints:
        return (
            (isinstance(self, LookAhead) and self.predict == "own", "predict",
             "own, but steps in order have none and last only; set one of them"),
        )  # fmt: skip

    @cached_property
    def course(self) -> Course:
        """The worker and the staleness of each step, by its number: of workers that take turns."""
        return Course(f"fixed:{self.workers - 1}")

    @property
    def slots(self) -> int:
        return self.course.workers

    @property
    def in_flight(self) -> int:
        """Most gradients that are computed at once: a gradient, and the steps it does not see."""
        return self.course.most + 1

    def word_groups(self, n_params: int) -> dict[str, tuple[int, str]]:
        return {**super().word_groups(n_params), "copy": (self.in_flight, "version")}

    def past(self) -> tuple[str, ...]:
        """Segments of the parameters after each of the last steps."""
        return tuple(f"turns.after.{k}" for k in range(self.in_flight))

    def segments(self, spec: Mapping[str, Parameter]) -> Segments:
        return {**super().segments(spec), **look_ahead.segments(self.run, self.in_flight)}

    def kept_segments(self) -> tuple[str, ...]:
        return (*self.past(), *look_ahead.segments(self.run, self.in_flight))

    def state_slots(self, arena: Arena) -> tuple[int, ...]:
        return tuple(range(1, self.slots + 1))

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        super().begin(arena, position)
        words, version = self.words(arena), arena.counters.load("version")
        versions = [version] * self.in_flight if position is None else position["versions"]
        for k, own in zip(range(self.in_flight), versions, strict=True):
            words["version", k] = own
        words["open_below"] = words["first"]
        if position is None:  # the age of a gradient begins at 0
            updates.snapshot(arena.segment(self.past()[0]), arena.params)

    def same(self) -> dict[str, Any]:
        return {**super().same(), "in_flight": self.in_flight}

    def position(self, arena: Arena) -> dict[str, Any]:
        words = self.words(arena)
        versions = [words["version", k] for k in range(self.in_flight)]
        return {**(super().position(arena) or {}), "versions": versions}

    def turn(self, words: Words) -> int:
        """The next step. Workers step one by one, so it is exact for the worker that has it."""
        return sum(self.each(words, "steps"))

    def between_steps(self, arena: Arena) -> bool:
        words = self.words(arena)
        return self.turn(words) == words["open_below"]

    def since(self, step: int) -> int:
        """Steps after the same worker's previous one, up to and with this."""
        worker, earlier = self.course.at(step).worker, range(step - 1, -1, -1)
        return next((step - k for k in earlier if self.course.at(k).worker == worker), step + 1)

    def take_in(self, arena: Arena, words: Words, rank: int, record: StepRecord) -> None:
        """Store the counts of a step, copy the parameters; the last word passes the turn on."""
        step = (record.steps - 1) * self.workers + rank
        arena.workers.entry(self.course.at(step).worker + 1).opt_step = record.opt_step
        arena.counters.store("version", record.version)
        words["tokens"] = record.tokens
        k = (step + 1) % self.in_flight
        reader = PredictingReader(arena, self.run, self.in_flight)
        copy, n = arena.segment(self.past()[k]), arena.layout.n_dense
        reader.read(copy[:n])
        updates.snapshot(copy[n:], arena.params[n:])
        words["version", k] = record.version
        words["steps", rank] = record.steps


@dataclass(frozen=True, kw_only=True)
class RoundRobin(LookAhead, DelayFeedbackOptions, IndependentSteps, InOrder):
    """Workers that apply in turn."""

    name: ClassVar[str] = "round_robin"
    about: ClassVar[str] = "workers apply their updates in turn, each with staleness P - 1"


@dataclass(frozen=True, kw_only=True)
class Sim(DelayFeedbackOptions, LookAhead, StaleGradientOptions, InOrder):
    """One process that simulates workers."""

    name: ClassVar[str] = "sim"
    about: ClassVar[str] = "one process simulates workers whose gradients have a chosen age"
    one_process: ClassVar[bool] = True

    staleness: str = option(
        "fixed:1", "age of each gradient in steps: fixed:N, uniform:LOW:HIGH, geometric:MEAN, "
        "histogram:0=10,1=80 (age=weight), or speed:1,1,4 (seconds for a gradient of each "
        "simulated worker); fixed:N simulates N + 1 workers, the others but speed one",
        flat="sim_staleness", train_only=True, reads=Course,
    )  # fmt: skip

    def constraints(self) -> Constraints:
        return (
            (self.predict == "last" and not self.staleness.startswith("fixed:"), "predict",
             f"last looks ahead by a fixed age, and staleness is {self.staleness}; set "
             "staleness=fixed:N, or leave predict out"),
        )  # fmt: skip

    @cached_property
    def course(self) -> Course:
        return Course(self.staleness, self.run.seed)

    def steppers(self, workers: int) -> int:
        return Course(self.staleness).workers

    def check_workers(self) -> None:
        if self.workers > 1:
            raise ConfigError(
                f"strategy sim simulates its workers in one process, and workers asks for "
                f"{self.workers}; name one, such as --workers mlx:cpu, or take the simulated "
                "strategy itself"
            )
