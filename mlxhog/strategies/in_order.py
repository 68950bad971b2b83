"""Updates in a fixed order: the gradient of step t is taken at the parameters after step t - tau.

    round_robin  step t belongs to worker t mod P, and tau = P - 1: a worker applies its update,
                 copies the parameters, and computes its next gradient while the others have their
                 turns (Langford, Smola, Zinkevich 2009, Slow Learners are Fast, arXiv:0911.0491)
    sim          one process simulates the workers; `--sim-staleness` is the rule of tau. Each
                 simulated worker has its own optimizer state. With tau = 0 it is `serial`, with
                 `fixed:N` round_robin of N + 1 workers, bit for bit

No two workers write at once: with a budget of steps or tokens reruns are equal bit for bit, and one
worker is the serial run. With `predict=last` the snapshots are extrapolated by N updates.

The snapshots are in the arena: a process that replaces a dead one computes the very same gradient.
Each turn is opened by the worker that has the turn P before it. When none is opened (for a
checkpoint, or at the end) the open turns finish, and a checkpoint keeps the snapshots, so a pause
or a resume changes nothing.

    segment                        dtype    meaning
    turns.after.0 .. turns.after.D float32  parameters after step k, of the last D + 1 steps: in
                                            k mod (D + 1), D being the largest tau; 0 is the start

The words (see also `rounds.py`): every turn below `open_below` is open; the tokens of this call;
the version of each snapshot.

The rules of tau:

    fixed:N             every gradient has staleness N, as in `round_robin` with N + 1 workers
    uniform:LOW:HIGH    drawn from LOW to HIGH
    geometric:MEAN      drawn with probability p (1 - p)^tau, p = 1 / (1 + MEAN), and cut where one
                        in a thousand would be larger
    histogram:0=10,2=5  drawn with weights, such as the histogram of a run's result
    speed:1,1,4         staleness of lock-free workers that take these times for a gradient

Each draw has a generator of its own, keyed by seed and step. Step t has at most staleness t.
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
from mlxhog.strategies import prediction
from mlxhog.strategies.delays import DelayFeedbackOptions, Delays, StaleGradientOptions
from mlxhog.strategies.prediction import PredictingReader, PredictionOptions
from mlxhog.strategies.rounds import Numbered, NumberedWorker, StepRecord
from mlxhog.strategies.strategy import IndependentSteps, Segments
from mlxhog.strategies.worker import BatchSize, Idle, Lease, WriteResult

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.layout import Parameter
    from mlxhog.arena.words import Words
    from mlxhog.strategies.context import Context

MAX_NAP_S = 2e-4
_MAX_STALENESS = 4095
_CUT = 1e-3  # chance of the ages that geometric leaves out


def _staleness(text: str) -> int:
    if not 0 <= (tau := int(text)) <= _MAX_STALENESS:
        raise ValueError
    return tau


def _weights(text: str) -> list[float]:
    pairs = [part.split("=") for part in text.split(",")]
    weights = {_staleness(tau): positive(weight) for tau, weight in pairs}
    return [weights.get(tau, 0.0) for tau in range(max(weights) + 1)]


_FORMS = Forms(
    "fixed:N, uniform:LOW:HIGH, geometric:MEAN, histogram:STALENESS=WEIGHT,... or "
    f"speed:SECONDS,... with whole numbers up to {_MAX_STALENESS}, and weights and seconds above 0",
    {},
    fixed=(_staleness,),
    uniform=(_staleness, _staleness),
    geometric=(positive,),
    histogram=(_weights,),
    speed=(lambda text: list(map(positive, text.split(","))),),
)


class SimulatedStep(NamedTuple):
    """The worker of a step, from 0, and the staleness of its gradient."""

    worker: int
    staleness: int


class StalenessTrace:
    """The steps of a run by a rule of `sim(staleness=)`, or a ValueError.

    Of P simulated `workers` step t is that of t mod P, but for the rule speed. `most` is the
    largest staleness.
    """

    def __init__(self, rule: str, seed: int = 0) -> None:
        self._kind, numbers = _FORMS.read(rule)
        if self._kind in ("histogram", "speed"):
            (numbers,) = numbers
        self._numbers: list[float] = numbers
        self._seed = seed
        self.workers = {"fixed": int(numbers[0]) + 1, "speed": len(numbers)}.get(self._kind, 1)
        try:
            self.most = self._largest()
        except ArithmeticError:  # as in geometric:1e17
            self.most = _MAX_STALENESS + 1
        if self.most > _MAX_STALENESS or (self._kind == "uniform" and numbers[0] > numbers[1]):
            raise ValueError(f"wanted {_FORMS.expected}; got {rule!r}")
        if self._kind == "speed":
            exponent = math.frexp(max(numbers))[1]  # no number of gradients takes inf then
            self._numbers = [math.ldexp(own, -exponent) for own in numbers]
            self._restart()

    def _largest(self) -> int:
        numbers = self._numbers
        if self._kind == "geometric":
            self._decay = math.log(numbers[0] / (1.0 + numbers[0]))  # also where 1 + mean is 1
            return math.ceil(math.log(_CUT) / self._decay)
        if self._kind == "histogram":
            return len(numbers) - 1
        if self._kind == "speed":  # while one computes, each other one ends at most this number
            return max(
                sum(math.floor(own / other) + 1 for q, other in enumerate(numbers) if q != p)
                for p, own in enumerate(numbers)
            )
        return int(numbers[-1])

    def at(self, step: int) -> SimulatedStep:
        if self._kind != "speed":
            return SimulatedStep(step % self.workers, min(step, self._draw(step)))
        if step < self._next - len(self._steps):
            self._restart()
        while self._next <= step:  # the first worker to end its gradient begins another
            _, worker = heapq.heappop(self._ends)
            staleness = min(self._next - self._read_at[worker], self.most)
            self._steps.append(SimulatedStep(worker, staleness))
            self._next += 1
            self._done[worker], self._read_at[worker] = self._done[worker] + 1, self._next
            heapq.heappush(self._ends, ((self._done[worker] + 1) * self._numbers[worker], worker))
        return self._steps[step - self._next]

    def _restart(self) -> None:
        self._next, self._done = 0, [0] * self.workers
        self._read_at = [0] * self.workers
        self._ends = sorted((own, worker) for worker, own in enumerate(self._numbers))
        self._steps = deque[SimulatedStep](maxlen=self.most + 2)  # back to a worker's last one

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
        record = prediction.record(arena, strategy.run, strategy.in_flight)
        self._targets = {
            slot: replace(context.target(slot), record=record)
            for slot in (strategy.state_slots(arena) if context.workers == 1 else (context.slot,))
        }
        self._delays = Delays(context, workers=strategy.trace.workers)
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
        k = (self._turn - strategy.trace.at(self._turn).staleness) % strategy.in_flight
        context.entry.version_read = self._words["version", k]
        context.backend.copy_in(context.arena.segment(strategy.past()[k]), context.threads)

    def write(self, grads: Grads, lease: Lease, size: BatchSize) -> WriteResult:
        """Wait for the turn, apply the update, copy the parameters, pass the turn on."""
        context, words, turn, strategy = self.context, self._words, self._turn, self.strategy
        entry, end = context.entry, turn + context.workers
        grads = self._delays.compensated(grads)  # of one process: it waits for none
        norm = context.norm(grads)
        context.wait_until(lambda: strategy.turn(words) == turn, max_s=MAX_NAP_S)
        is_next = words["open_below"] == end and context.workers > 1  # one process opens in `claim`
        if is_next and end < self._end and not (context.is_over() or context.paused()):
            words["open_below"] = end + 1
        context.seqlock.begin_update()
        version, worker = context.arena.counters.load("version"), strategy.trace.at(turn).worker
        staleness = version - entry.version_read
        is_stale = self._delays.factor(staleness) == 0.0
        applies = math.isfinite(norm) and not is_stale
        opt_step = context.arena.workers.entry(worker + 1).opt_step + applies
        tokens = words["tokens"] + size.tokens

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

        record = self.apply_once(lease, (opt_step, version + applies, tokens, applies), apply)
        context.seqlock.end_update()
        staleness = max(0, record.version - record.applied - entry.version_read)
        return WriteResult(record.applied, staleness, record.version, is_stale)


@dataclass(frozen=True, kw_only=True)
class InOrder(Numbered):
    """Updates in a fixed order, of workers or of one process that simulates them."""

    Worker: ClassVar[type[Any]] = InOrderWorker
    repeats: ClassVar[bool] = True
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True
    run_words: ClassVar[str] = "open_below tokens"

    def constraints(self) -> Constraints:
        return (
            (isinstance(self, PredictionOptions) and self.predict == "own", "predict",
             "own, but updates in a fixed order have none and last only; set one of them"),
        )  # fmt: skip

    @cached_property
    def trace(self) -> StalenessTrace:
        """The worker and the staleness of each step, by its number."""
        return StalenessTrace(f"fixed:{self.workers - 1}")

    @property
    def slots(self) -> int:
        return self.trace.workers

    @property
    def in_flight(self) -> int:
        """Largest number of gradients that are computed at once."""
        return self.trace.most + 1

    def word_groups(self, n_params: int) -> dict[str, tuple[int, str]]:
        return {**super().word_groups(n_params), "copy": (self.in_flight, "version")}

    def past(self) -> tuple[str, ...]:
        """Return the segments of the parameters after each of the last steps."""
        return tuple(f"turns.after.{k}" for k in range(self.in_flight))

    def segments(self, spec: Mapping[str, Parameter]) -> Segments:
        return {**super().segments(spec), **prediction.segments(self.run, self.in_flight)}

    def kept_segments(self) -> tuple[str, ...]:
        return (*self.past(), *prediction.segments(self.run, self.in_flight))

    def state_slots(self, arena: Arena) -> tuple[int, ...]:
        return tuple(range(1, self.slots + 1))

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        super().begin(arena, position)
        words, version = self.words(arena), arena.counters.load("version")
        versions = [version] * self.in_flight if position is None else position["versions"]
        for k, own in zip(range(self.in_flight), versions, strict=True):
            words["version", k] = own
        words["open_below"] = words["first"]
        if position is None:  # staleness begins at 0
            updates.snapshot(arena.segment(self.past()[0]), arena.params)

    def same(self) -> dict[str, Any]:
        return {**super().same(), "in_flight": self.in_flight}

    def position(self, arena: Arena) -> dict[str, Any]:
        words = self.words(arena)
        versions = [words["version", k] for k in range(self.in_flight)]
        return {**(super().position(arena) or {}), "versions": versions}

    def turn(self, words: Words) -> int:
        """Return the next step; exact for the worker whose turn it is."""
        return sum(self.each(words, "steps"))

    def between_steps(self, arena: Arena) -> bool:
        words = self.words(arena)
        return self.turn(words) == words["open_below"]

    def since(self, step: int) -> int:
        """Count the steps after the same worker's previous one, this one included."""
        worker, earlier = self.trace.at(step).worker, range(step - 1, -1, -1)
        return next((step - k for k in earlier if self.trace.at(k).worker == worker), step + 1)

    def store_counts(self, arena: Arena, words: Words, rank: int, record: StepRecord) -> None:
        """Store the counts of a step, and copy the parameters; the last word passes the turn."""
        step = (record.steps - 1) * self.workers + rank
        arena.workers.entry(self.trace.at(step).worker + 1).opt_step = record.opt_step
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
class RoundRobin(PredictionOptions, DelayFeedbackOptions, IndependentSteps, InOrder):
    """Workers that apply in turn."""

    name: ClassVar[str] = "round_robin"
    about: ClassVar[str] = "workers apply their updates in turn, each with staleness P - 1"


@dataclass(frozen=True, kw_only=True)
class Sim(DelayFeedbackOptions, PredictionOptions, StaleGradientOptions, InOrder):
    """One process that simulates workers."""

    name: ClassVar[str] = "sim"
    about: ClassVar[str] = "one process simulates workers whose gradients have a chosen staleness"
    one_process: ClassVar[bool] = True

    staleness: str = option(
        "fixed:1", "staleness of each gradient: fixed:N, uniform:LOW:HIGH, geometric:MEAN, "
        "histogram:0=10,1=80 (staleness=weight), or speed:1,1,4 (seconds for a gradient of each "
        "simulated worker); fixed:N simulates N + 1 workers, the others but speed one",
        flat="sim_staleness", train_only=True, reads=StalenessTrace,
    )  # fmt: skip

    def constraints(self) -> Constraints:
        return (
            (self.predict == "last" and not self.staleness.startswith("fixed:"), "predict",
             f"last extrapolates by a fixed staleness, and that is {self.staleness}; set "
             "staleness=fixed:N, or leave predict out"),
        )  # fmt: skip

    @cached_property
    def trace(self) -> StalenessTrace:
        return StalenessTrace(self.staleness, self.run.seed)

    def steppers(self, workers: int) -> int:
        return StalenessTrace(self.staleness).workers

    def check_workers(self) -> None:
        if self.workers > 1:
            raise ConfigError(
                f"strategy sim simulates its workers in one process, and workers asks for "
                f"{self.workers}; name one, such as --workers mlx:cpu, or take the simulated "
                "strategy itself"
            )
