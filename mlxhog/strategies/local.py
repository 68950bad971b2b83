"""Copies of the parameters that workers train for some steps, and then meet.

A replica is a copy that one worker trains, or several lock-free (`diloco`). In a round every worker
takes K steps. Batches are assigned by number: step s of worker p, both from 0, has the number
s P + p, so with a budget of steps or tokens reruns are equal bit for bit where each worker has a
replica of its own.

A meeting begins when rank 0 has seen every worker at the end of its round. It has the stages of the
method (`averaging.py`). A stage begins when all workers have ended the one before, and doing one
twice is harmless, so the replacement of a dead worker continues in the middle. The last stage
begins the next round. `settle` holds a meeting for which all are ready when a run ends; a run that
ends within a round ends with the average of the replicas.

    segment               dtype    meaning
    copies.1 .. copies.M  float32  the replicas

    word            meaning; counts of a worker continue over resumes
    decided         meetings that rank 0 has decided on
    version_base    version without the updates of the workers
    steps_before    steps of all workers before this call; tokens_before and decided_before likewise
    steps           of each worker; its tokens and updates likewise
    stages          of meetings that it has ended
    start           its steps at the beginning of the round; its updates_before likewise
    batches         of each client, before the steps above
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mlxhog.base.late import np
from mlxhog.config.choices import Rules
from mlxhog.config.options import option
from mlxhog.optim import updates
from mlxhog.optim.gradients import Float32, Grads
from mlxhog.strategies.rounds import Numbered, NumberedWorker, StepRecord, last_record
from mlxhog.strategies.strategy import all_reduce_bytes
from mlxhog.strategies.worker import Idle, Lease, TicketPart, WriteResult

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.ledger import Ledger
    from mlxhog.arena.words import Words
    from mlxhog.data.clients import Division
    from mlxhog.data.prepare import Prepared
    from mlxhog.data.tokens import TokenFile
    from mlxhog.strategies.context import Context

NEVER: Final = 1 << 62
"""Steps of a round that has no end."""
KEPT: Final = ("steps", "tokens", "updates", "start", "updates_before")
"""Words of each worker that a checkpoint keeps."""

Stage = Callable[[Any, Any, int], None]
"""A part of a meeting: a method that takes the arena and a rank."""


class LocalWorker(NumberedWorker):
    """One worker's steps on its replica, and its part in meetings."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        arena, rank, strategy = context.arena, context.rank, self.strategy
        replica = strategy.replica_of(rank)
        self._copy = arena.segment(strategy.replica_segments()[replica])
        self._mates = [r for r in range(context.workers) if strategy.replica_of(r) == replica]
        self._target = replace(context.target(context.slot), flat=self._copy)
        if self._mates == [rank]:  # no other writer: plain stores lose nothing
            self._target = replace(self._target, mode=updates.WRITE_MODES["racy"])
        self._before = self._words["steps_before"]
        self._version_read = 0

    def claim(self) -> Lease | Idle:
        """Lease this worker's next ticket, after a meeting that is due."""
        context, words, strategy, rank = self.context, self._words, self.strategy, self.context.rank
        self._meet()
        if context.stopping() or context.used_up():
            return Idle.DONE
        if context.paused():  # the counts may be changing
            return Idle.WAIT
        end = strategy.end(words, rank)
        at_end = words["steps", rank] >= end
        number = words["steps", rank] * context.workers + rank
        # At the end of its round a worker waits for a meeting, if the budget reaches it.
        least = context.workers * end if at_end else number + 1
        if context.step_limit is not None and least > self._before + context.step_limit:
            return Idle.DONE
        if at_end:
            if rank == 0 and strategy.at_end(words):
                words["decided"] += 1
            return Idle.WAIT
        number += context.arena.counters.load("first_ticket")
        lease = self.lease(number)
        if lease is None:
            return Idle.WAIT
        if not self._leased and last_record(words, rank).ticket != number:
            context.entry.ticket = -1
            words["steps", rank] += 1  # torn when the run before was killed
            return Idle.WAIT
        return replace(lease, parts=self._parts())

    def _meet(self) -> None:
        """Do the rest of a meeting that rank 0 has decided on.

        A worker waits for the others at its end, also in place of a dead predecessor: they may be
        copying the average over a replica that it trains, too.
        """
        context, strategy, rank = self.context, self.strategy, self.context.rank
        last = len(strategy.stages) * self._words["decided"]
        if self._words["stages", rank] < last:
            context.marks.begin_update()
        self.meet(last - len(strategy.stages), strategy.parts(context.arena, rank))
        context.marks.end_update()

    def _parts(self) -> tuple[TicketPart, ...] | None:
        """The batch of one of the worker's own clients, in turn, where the text is divided."""
        tickets, words = self.strategy.client_tickets, self._words
        if not tickets:
            return None
        own = range(self.context.rank, len(tickets), self.context.workers)
        client = own[words["steps", self.context.rank] % len(own)]
        number = words["batches", client] + self.strategy.client_batches(words, client)
        epoch, ticket = divmod(number, tickets[client])
        whole = self.context.config.sequences_per_ticket
        return (TicketPart(epoch, sum(tickets[:client]) + ticket, begin=0, end=whole),)

    def read(self) -> None:
        """Load the worker's replica."""
        context = self.context
        self._version_read = self._replica_version()
        context.entry.version_read = context.arena.counters.load("version")
        updates.snapshot(context.backend.inbox, self._copy, threads=context.threads)
        context.backend.refresh()

    def _replica_version(self) -> int:
        return sum(self._words["updates", rank] for rank in self._mates)

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Add the step to the worker's replica."""
        context, words, rank = self.context, self._words, self.context.rank
        direction = self.corrected(grads)
        norm = context.norm(direction)
        finite = math.isfinite(norm)
        context.marks.begin_update()
        staleness = self._replica_version() - self._version_read
        steps = words["steps", rank]

        def counts() -> tuple[int, int, int, bool]:
            tokens = words["tokens", rank] + samples * context.config.seq_len
            return context.entry.opt_step + finite, words["updates", rank] + finite, tokens, finite

        record = self.once(lease, counts, lambda record: self.apply(grads, direction, norm, record))
        self.strategy.take_in(context.arena, words, rank, record)
        context.entry.ticket = -1
        words["steps", rank] = steps + 1
        version = self.strategy.version(words)
        context.arena.counters.store("version", version)
        context.marks.end_update()
        return WriteResult(applied=record.applied, staleness=staleness, version=version)

    def corrected(self, grads: Grads) -> Grads:
        """The direction of a step, derived from the gradient."""
        return grads

    def apply(self, grads: Grads, direction: Grads, norm: float, record: StepRecord) -> None:
        """One optimizer step along a direction of this norm, derived from the gradient."""
        context = self.context
        context.optimizer.step(
            self._target,
            direction,
            lr=self.lr(),
            step=record.opt_step,
            seed=context.slot,
            grad_scale=context.grad_scale(norm),
        )

    def lr(self) -> float:
        """Step size as if all workers had taken as many steps as this one."""
        context, words, rank = self.context, self._words, self.context.rank
        tokens, own_updates = (context.workers * words[k, rank] for k in ("tokens", "updates"))
        return context.lr_at(
            context.workers * words["steps", rank] - self._before,
            tokens - words["tokens_before"],
            words["version_base"] + own_updates,
        )


@dataclass(frozen=True, kw_only=True)
class Local(Numbered):
    """The common part of all local methods; by itself, runs that never meet.

    Workers may have texts of their own.

    Attributes:
        client_tickets: batches in an epoch of each client's text; empty if all have one text.
    """

    Worker: ClassVar[type[Any]] = LocalWorker
    repeats: ClassVar[bool] = True
    copies: ClassVar[bool] = True
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True

    split: str = option(
        "none",
        "text of a worker: any of it, or that of clients, whose shares of each class of documents "
        "a Dirichlet distribution draws",
        choices=("none", "dirichlet"),
        train_only=True,
    )
    split_alpha: float = option(
        1.0,
        "split=dirichlet: similarity of the clients' texts; 0 is a class for one client",
        low=0,
        train_only=True,
        needs="split=dirichlet",
    )
    clients: int | None = option(
        None,
        "split=dirichlet: number of clients, of which each worker trains its own in turn; auto is "
        "one for every worker",
        low=1,
        none="auto",
        train_only=True,
        needs="split=dirichlet",
    )

    rules: ClassVar[Rules] = (
        ("gpu_write", "gpu_write=metal*",
         "{gpu_write}, but the CPU adds to each worker's own copy; leave it out"),
        ("moments", "moments=shared",
         "shared, but the runs are independent; leave it out, or use hogwild"),
    )  # fmt: skip

    client_tickets: tuple[int, ...] = field(default=(), compare=False, repr=False)

    def division(self, data: Prepared, train: TokenFile, stored: Path | None) -> Division | None:
        """The text of each client."""
        if self.split == "none":
            return None
        from mlxhog.data import clients

        return clients.divided(
            train,
            data.source,
            data.rule,
            clients=self.clients or self.workers,
            workers=self.workers,
            alpha=self.split_alpha,
            seed=self.config.seed,
            least_tokens=self.config.sequences_per_ticket * self.config.seq_len + 1,
            stored=stored,
        )

    stages: ClassVar[tuple[Stage, ...]] = ()
    """Of a meeting."""

    models_per_meeting: ClassVar[int] = 1
    """Arrays of the model's size that are averaged in a meeting."""

    @property
    def n_replicas(self) -> int:
        """Copies of the parameters; the workers of each have neighbouring ranks."""
        return self.workers

    def round_steps(self, done: int) -> int:
        """Steps of a worker in a round that begins after `done` steps of the run."""
        return NEVER

    # -- segments --------------------------------------------------------------------------------

    def replica_of(self, rank: int) -> int:
        """The replica, from 0, that a worker trains."""
        return rank * self.n_replicas // self.workers

    def replica_segments(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(f"copies.{k + 1}" for k in range(self.n_replicas))

    def groups(self) -> dict[str, tuple[int, str]]:
        """The words of the table above."""
        return {
            "run": (1, "decided steps_before tokens_before decided_before version_base"),
            "worker": (self.workers, f"stages {' '.join(KEPT)}"),
            "client": (len(self.client_tickets), "batches"),
        }

    def kept_segments(self) -> tuple[str, ...]:
        """Each replica's parameters."""
        return self.replica_segments()

    def share(self, arena: Arena, rank: int) -> slice:
        """The floats that a worker computes in a meeting; the probe is in none of them."""
        floats, last = arena.params.size, arena.layout.probe.offset
        begin, end = floats * rank // self.workers, floats * (rank + 1) // self.workers
        return slice(min(begin, last), min(end, last))

    def average(self, arena: Arena, out: Float32, span: slice) -> None:
        """Write the mean of the replicas into a part of `out`, added in their order.

        Concurrency: where workers are stepping, elements are of different ages.
        """
        first, *others = (arena.segment(name)[span] for name in self.replica_segments())
        mean = out[span]
        np.copyto(mean, first)
        for other in others:
            mean += other
        if others:
            mean *= np.float32(1.0 / self.n_replicas)

    # -- counts ----------------------------------------------------------------------------------

    def end(self, words: Words, rank: int) -> int:
        """A worker's steps at the end of its round."""
        start = words["start", rank]
        # Before the round a step counts as an update, as if every gradient had been finite.
        return start + self.round_steps(words["version_base"] + self.workers * start)

    def at_end(self, words: Words) -> bool:
        """Whether every worker has ended its round."""
        return all(words["steps", rank] >= self.end(words, rank) for rank in range(self.workers))

    def within_round(self, words: Words) -> bool:
        """Whether any worker has taken a step of the round."""
        return sum(self.each(words, "steps")) > sum(self.each(words, "start"))

    def version(self, words: Words) -> int:
        """Updates of the run."""
        return words["version_base"] + sum(self.each(words, "updates"))

    def take_in(self, arena: Arena, words: Words, rank: int, record: StepRecord) -> None:
        """Store the counts of a step's record; doing it twice changes nothing."""
        arena.workers.entry(rank + 1).opt_step = record.opt_step
        words["updates", rank], words["tokens", rank] = record.version, record.tokens

    def client_batches(self, words: Words, client: int) -> int:
        """Batches of a client that the steps in the words took: of its worker's, in turn."""
        rank, place = client % self.workers, client // self.workers
        clients = range(rank, len(self.client_tickets), self.workers)
        passes, rest = divmod(words["steps", rank], len(clients))
        return passes + (place < rest)

    # -- beginning and resuming ------------------------------------------------------------------

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        """Start every replica from the arena's parameters, or where it left off."""
        words, version = self.words(arena), arena.counters.load("version")
        if position is None:
            words["version_base"] = version
            for name in self.replica_segments():
                updates.snapshot(arena.segment(name), arena.params)
            return
        arena.counters.store("first_ticket", position["first_ticket"])
        for name in KEPT:
            for rank, value in enumerate(position[name]):
                words[name, rank] = value
        words["steps_before"] = sum(position["steps"])
        words["tokens_before"] = sum(position["tokens"])
        words["version_base"] = version - sum(position["updates"])
        words["decided"] = words["decided_before"] = meetings = position["meetings"]
        for rank in range(self.workers):
            words["stages", rank] = len(self.stages) * meetings

    def position(self, arena: Arena) -> dict[str, Any]:
        """The counts of all workers."""
        words = self.words(arena)
        return {
            "first_ticket": arena.counters.load("first_ticket"),
            "meetings": words["decided"],
            **{name: self.each(words, name) for name in KEPT},
        }

    def state(self, arena: Arena) -> dict[str, Any]:
        """Add the batches of each client's text that have been trained on, by any workers."""
        words, clients = self.words(arena), range(len(self.client_tickets))
        batches = [words["batches", k] + self.client_batches(words, k) for k in clients]
        return {**super().state(arena), "clients": batches}

    def restore_state(self, arena: Arena, state: Mapping[str, Any]) -> None:
        """Continue each client's text where it was left, if there are as many clients."""
        words, of_clients = self.words(arena), state.get("clients", [])
        if len(of_clients) == len(self.client_tickets):
            for client, batches in enumerate(of_clients):
                words["batches", client] = batches - self.client_batches(words, client)

    def same(self) -> dict[str, Any]:
        """The replicas, too: with another number they begin from the average."""
        return {**super().same(), "replicas": self.n_replicas}

    # -- meetings --------------------------------------------------------------------------------

    def parts(self, arena: Arena, rank: int) -> list[Callable[[], None]]:
        """Return a rank's part of each stage of a meeting."""
        return [partial(stage, self, arena, rank) for stage in self.stages]

    def _hold(self, arena: Arena, meetings: int) -> None:
        """Do what is left of a meeting for all workers, none of which runs."""
        words, first = self.words(arena), len(self.stages) * (meetings - 1)
        parts = [self.parts(arena, rank) for rank in range(self.workers)]
        for stage, of_all in enumerate(zip(*parts, strict=True), start=first):
            for rank, part in enumerate(of_all):
                self.take_part(words, rank, stage, part)

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """End the steps of dead workers, hold a meeting that is due, and write the model."""
        words, first = self.words(arena), arena.counters.load("first_ticket")
        self._hold(arena, words["decided"])  # after it all workers are in the same round
        for rank in range(self.workers):
            number = first + words["steps", rank] * self.workers + rank
            if record := self.unfinished(words, rank, ledger, number):
                self.take_in(arena, words, rank, record)
                words["steps", rank] += 1
        if self.at_end(words):
            self._hold(arena, words["decided"] + 1)
            words["decided"] += 1  # last: workers that wait see nothing of it before its end
        self._show(arena, arena.params)
        arena.counters.store("version", self.version(words))
        super().settle(arena, ledger)

    def _show(self, arena: Arena, out: Float32) -> None:
        """Write the model into `out`: the replicas' average; after a meeting each equals it."""
        span = slice(arena.layout.probe.offset)
        if self.within_round(self.words(arena)):
            self.average(arena, out, span)
        else:
            np.copyto(out[span], arena.segment(self.replica_segments()[0])[span])

    # -- for the rest of the run -----------------------------------------------------------------

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        """Steps of this call, of all workers."""
        words = self.words(arena)
        return sum(self.each(words, "steps")) - words["steps_before"]

    def between_steps(self, arena: Arena) -> bool:
        """Whether no meeting is under way, or about to begin."""
        words = self.words(arena)
        return set(self.each(words, "stages")) == {len(self.stages) * words["decided"]}

    def load(self, arena: Arena, out: Float32, *, training: bool, threads: int = 1) -> None:
        """Average the replicas while they are trained; the parameters are outdated then."""
        if training:
            self._show(arena, out)
        else:
            super().load(arena, out, training=False, threads=threads)

    def network_bytes(self, arena: Arena, steps: int) -> int:
        """One all-reduce among the replicas at each meeting, and if the run ends within a round.

        The workers of a replica are on one machine.
        """
        words = self.words(arena)
        meetings = words["decided"] - words["decided_before"]
        models = meetings * self.models_per_meeting + self.within_round(words)
        return models * all_reduce_bytes(arena, self.n_replicas)
