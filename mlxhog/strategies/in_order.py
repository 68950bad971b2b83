"""Steps in a fixed order: step t is taken at the parameters after step t - tau.

    round_robin  step t belongs to worker t mod P, and tau = P - 1: a worker adds its step, copies
                 the parameters for its next gradient, and computes that while the others have
                 their turns (Langford, Smola, Zinkevich 2009, Slow Learners are Fast,
                 arXiv:0911.0491)
    sim          one process simulates the workers; `--sim-staleness` is the rule of tau
                 (`staleness.py`). Each simulated worker has its own optimizer state. With tau = 0
                 it is `serial`, with `fixed:N` round_robin of N + 1 workers, bit for bit

No two workers write at once, and a run is a function of its configuration: with a budget of steps
or tokens, reruns are equal bit for bit, and one worker is the serial run. With `predict=last` the
copies are extrapolated by N steps like the last ones (`look_ahead.py`).

The copies are in the arena: a process that replaces a dead one computes the very same gradient.
Turns are opened one by one, each by the worker that ends the turn P before it. When none is opened
(the budget is used up, or the arena is to hold still for a checkpoint) the open turns run out, and
the copies stay unchanged. A checkpoint keeps them, so a pause or a resume changes nothing.

    segment                        dtype    meaning
    turns.after.0 .. turns.after.D float32  parameters after step k, of the last D + 1 steps: in
                                            k mod (D + 1), D being the largest tau; 0 is the begin

The words: the turn, which is the next step; every turn below `open_below` is open; the first turn
and the tokens of this call; the version of each copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from mlxhog.config.choices import Rules
from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.optim import updates
from mlxhog.optim.delay_feedback import FedBack
from mlxhog.optim.gradients import Grads
from mlxhog.strategies import look_ahead
from mlxhog.strategies.delays import Delays, LateSteps
from mlxhog.strategies.look_ahead import LookAhead
from mlxhog.strategies.rounds import Numbered, NumberedWorker, StepRecord
from mlxhog.strategies.staleness import Course, SimulatedStaleness
from mlxhog.strategies.strategy import Apart
from mlxhog.strategies.worker import Idle, Lease, WriteResult

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.ledger import Ledger
    from mlxhog.arena.words import Words
    from mlxhog.strategies.context import Context

LONGEST_NAP_S = 2e-4


class InOrderWorker(NumberedWorker):
    """One worker's turns, or those of all simulated workers."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        strategy, arena = self.strategy, context.arena
        record = look_ahead.record(arena, strategy.config, strategy.in_flight)
        self._targets = {
            slot: replace(context.target(slot), record=record)
            for slot in (strategy.state_slots(arena) if context.workers == 1 else (context.slot,))
        }
        self._delays = Delays(context, workers=strategy.rule.workers)
        self._first = self._words["first"]
        self._turn = 0

    def claim(self) -> Lease | Idle:
        """Lease the ticket of this worker's next turn, if it is open."""
        context, words = self.context, self._words
        turn, open_below = words["turn"], words["open_below"]
        own = turn + (context.rank - turn) % context.workers
        if own >= open_below:
            if self._is_over(open_below):
                return Idle.DONE
            if not own == turn == open_below or context.paused():
                return Idle.WAIT
            self._open(turn + context.workers)  # no turn is open: open one for each worker
        number = context.arena.counters.load("first_ticket") + own - self._first
        self._turn = own
        return self.lease(number) or Idle.WAIT

    def _is_over(self, open_below: int) -> bool:
        context, limit = self.context, self.context.step_limit
        used_up = limit is not None and open_below - self._first >= limit
        return used_up or context.stopping() or context.used_up()

    def _open(self, end: int) -> None:
        """Open all turns below `end` within the budget. Only for the worker whose turn it is."""
        limit = self.context.step_limit
        self._words["open_below"] = end if limit is None else min(end, self._first + limit)

    def read(self) -> None:
        """Load the parameters of the age of this step."""
        context, strategy = self.context, self.strategy
        k = (self._turn - strategy.course.at(self._turn).staleness) % strategy.in_flight
        context.entry.version_read = self._words["version", k]
        copy = context.arena.segment(strategy.past()[k])
        updates.snapshot(context.backend.inbox, copy, threads=context.threads)
        context.backend.refresh()

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Wait for the turn, add the step, copy the parameters, pass the turn on."""
        context, words, turn = self.context, self._words, self._turn
        entry, version = context.entry, context.arena.counters.load
        grads = self._delays.compensated(grads)  # of one process: it waits for none
        norm = context.norm(grads)
        context.wait_until(lambda: words["turn"] == turn, longest_s=LONGEST_NAP_S)
        context.marks.begin_update()
        staleness = version("version") - entry.version_read
        late = self._delays.is_too_late(staleness)
        applies = math.isfinite(norm) and not late
        worker = self.strategy.course.at(turn).worker

        def counts() -> tuple[int, int, int, bool]:
            opt_step = context.arena.workers.entry(worker + 1).opt_step + applies
            tokens = words["tokens"] + samples * context.config.seq_len
            return opt_step, version("version") + applies, tokens, applies

        def apply(record: StepRecord) -> None:
            lr = context.lr_at(turn - self._first, words["tokens"], version("version"))
            context.optimizer.step(
                self._targets[worker + 1],
                grads,
                lr=self._delays.rate(lr, staleness),
                step=record.opt_step,
                seed=entry.version_read * 65_537 + worker + 1,
                grad_scale=context.grad_scale(norm),
                shared_step=context.shared_steps() + 1,
                feedback=self._delays.feedback(staleness, since=self.strategy.since(turn)),
            )

        record = self.once(lease, counts, apply)
        self.strategy.take_in(context.arena, words, turn, record)
        context.marks.end_update()
        end = turn + context.workers
        is_next = words["open_below"] == end and context.workers > 1  # one process opens in `claim`
        if is_next and not (self._is_over(end) or context.paused()):
            self._open(end + 1)
        entry.ticket = -1
        words["turn"] = turn + 1
        staleness = max(0, record.version - record.applied - entry.version_read)
        return WriteResult(record.applied, staleness, record.version, too_late=late)


@dataclass(frozen=True, kw_only=True)
class InOrder(Numbered):
    """Steps in a fixed order, of workers or of one process that simulates them."""

    Worker: ClassVar[type[Any]] = InOrderWorker
    repeats: ClassVar[bool] = True
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True

    @property
    def rule(self) -> SimulatedStaleness:
        """The worker and the staleness of each step: here of workers that take turns."""
        return SimulatedStaleness.parse(f"fixed:{self.workers - 1}")

    @cached_property
    def course(self) -> Course:
        """The worker and the staleness of each step, by its number."""
        return self.rule.course(self.config.seed)

    @property
    def slots(self) -> int:
        """One for each worker, for its optimizer state, even if it is simulated."""
        return self.rule.workers

    @property
    def in_flight(self) -> int:
        """Most gradients that are computed at once: a gradient, and the steps it does not see."""
        return self.rule.most + 1

    def groups(self) -> dict[str, tuple[int, str]]:
        """The words of the table above."""
        return {"run": (1, "turn open_below first tokens"), "copy": (self.in_flight, "version")}

    def kept_segments(self) -> tuple[str, ...]:
        """The parameters after each of the last steps, and what looking ahead needs."""
        return (*self.past(), *look_ahead.segments(self.config, self.in_flight))

    def past(self) -> tuple[str, ...]:
        """Segments of the parameters after each of the last steps."""
        return tuple(f"turns.after.{k}" for k in range(self.in_flight))

    def state_slots(self, arena: Arena) -> tuple[int, ...]:
        """Those of the workers."""
        return tuple(range(1, self.slots + 1))

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        """Begin with the arena's parameters, or where it was left off."""
        words, version = self.words(arena), arena.counters.load("version")
        if position is None:  # the age of a gradient begins at 0
            position = {"turn": 0, "versions": [version] * self.in_flight}
            updates.snapshot(arena.segment(self.past()[0]), arena.params)
        for name in ("turn", "open_below", "first"):
            words[name] = position["turn"]
        for k, own in enumerate(position["versions"]):
            words["version", k] = own

    def same(self) -> dict[str, Any]:
        """The number of copies, too: another rule keeps others."""
        return {**super().same(), "in_flight": self.in_flight}

    def position(self, arena: Arena) -> dict[str, Any]:
        """The number of the turn, and the versions of all copies."""
        words = self.words(arena)
        versions = [words["version", k] for k in range(self.in_flight)]
        return {"turn": words["turn"], "versions": versions}

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        """Turns of this call that are over; each is a step."""
        words = self.words(arena)
        return words["turn"] - words["first"]

    def between_steps(self, arena: Arena) -> bool:
        """Whether no turn is open."""
        words = self.words(arena)
        return words["turn"] == words["open_below"]

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """End the turn of a worker that died after its step."""
        words = self.words(arena)
        turn = words["turn"]
        number = arena.counters.load("first_ticket") + turn - words["first"]
        if record := self.unfinished(words, turn % self.workers, ledger, number):
            self.take_in(arena, words, turn, record)
            words["turn"] = turn + 1
        super().settle(arena, ledger)

    def since(self, step: int) -> int:
        """Steps after the same worker's previous one up to this, this one included."""
        worker, earlier = self.course.at(step).worker, range(step - 1, -1, -1)
        return next((step - k for k in earlier if self.course.at(k).worker == worker), step + 1)

    def take_in(self, arena: Arena, words: Words, step: int, record: StepRecord) -> None:
        """Store the counts of a step's record, and copy; doing it twice changes nothing."""
        arena.workers.entry(self.course.at(step).worker + 1).opt_step = record.opt_step
        arena.counters.store("version", record.version)
        words["tokens"] = record.tokens
        k = (step + 1) % self.in_flight
        reader = look_ahead.reader(arena, self.config, self.in_flight)
        reader.read(arena.segment(self.past()[k]))
        words["version", k] = record.version


@dataclass(frozen=True, kw_only=True)
class RoundRobin(LookAhead, FedBack, Apart, InOrder):
    """Workers that apply in turn."""

    name: ClassVar[str] = "round_robin"
    about: ClassVar[str] = "workers add their steps in turn, each P - 1 updates late"

    rules: ClassVar[Rules] = (
        ("predict", "predict=own", "own, but round_robin has none and last only; set one of them"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sim(FedBack, LookAhead, LateSteps, InOrder):
    """One process that simulates workers."""

    name: ClassVar[str] = "sim"
    about: ClassVar[str] = "one process simulates workers whose gradients have a chosen age"
    one_process: ClassVar[bool] = True

    staleness: str = option(
        "fixed:1",
        "age of each gradient in steps: fixed:N, uniform:LOW:HIGH, geometric:MEAN, "
        "histogram:0=10,1=80 (age=weight), or speed:1,1,4 (seconds for a gradient of each "
        "simulated worker); fixed:N simulates N + 1 workers, the others but speed one",
        flat="sim_staleness",
        train_only=True,
        reads=SimulatedStaleness.parse,
    )

    rules: ClassVar[Rules] = (
        ("predict", "predict=own", "own, but sim has none and last only; set one of them"),
        ("predict", "predict=last & sim_staleness!=fixed:*",
         "last looks ahead by a fixed age, and staleness is {sim_staleness}; set "
         "staleness=fixed:N, or leave predict out"),
    )  # fmt: skip

    @property
    def rule(self) -> SimulatedStaleness:
        """The worker and the age of each step's gradient."""
        return SimulatedStaleness.parse(self.staleness)

    def steppers(self, workers: int) -> int:
        """The simulated workers."""
        return self.rule.workers

    def check_workers(self) -> None:
        """Refuse a second process.

        Raises:
            ConfigError: there is one.
        """
        if self.workers > 1:
            raise ConfigError(
                f"strategy sim simulates its workers in one process, and workers asks for "
                f"{self.workers}; name one, such as --workers mlx:cpu, or take the simulated "
                "strategy itself"
            )
