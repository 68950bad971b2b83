"""Copies of the parameters that workers train for some steps, and then meet.

A replica is a copy that one worker trains, or several lock-free (`diloco`). In a round every worker
takes K steps. So with a budget of steps or tokens reruns are equal bit for bit where each worker
has a replica of its own.

A meeting begins when rank 0 has seen every worker at the end of its round. Its stages are

    mix   each worker computes its share of the new parameters, as the method has it
    keep  each keeps its share of what the method needs in the next round
    take  each takes the parameters as its copy, and begins its next round

`settle` holds a meeting for which all are ready when a run ends; a run that ends within a round
ends with the average of the replicas.

    segment               dtype    meaning
    copies.1 .. copies.M  float32  the replicas

    word            meaning; see also `rounds.py`
    decided         meetings that rank 0 has decided on
    version_base    version without the updates of the workers
    tokens_before   tokens of all workers before this call; decided_before likewise
    tokens, updates of each worker
    start           its steps at the beginning of the round; its updates_before likewise
    batches         of each client, before the steps of its worker
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlxhog.config.components import Constraints
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import option
from mlxhog.optim import updates
from mlxhog.optim.choice import optimizer_of
from mlxhog.optim.gradients import Float32, Grads, Rows, dense, without_tables
from mlxhog.strategies.rounds import NEVER, STAGES, Numbered, NumberedWorker, StepRecord
from mlxhog.strategies.worker import Idle, Lease, TicketPart, WriteResult

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.layout import Slot
    from mlxhog.arena.ledger import Ledger
    from mlxhog.arena.words import Words
    from mlxhog.data.clients import Division
    from mlxhog.data.prepare import Prepared
    from mlxhog.data.tokens import TokenFile
    from mlxhog.strategies.context import Context


class LocalWorker(NumberedWorker):
    """One worker's steps on its replica `copy`, and its part in meetings."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        strategy, replica = self.strategy, self.strategy.replica_of(context.rank)
        self.copy: Float32 = context.arena.segment(strategy.replica_segments()[replica])
        ranks = range(context.workers)
        self._mates = [rank for rank in ranks if strategy.replica_of(rank) == replica]
        self._target = replace(context.target(context.slot), flat=self.copy)
        if len(self._mates) == 1:  # no other writer: plain stores lose nothing
            self._target = replace(self._target, mode=updates.WRITE_MODES["racy"])
        self._version_read = 0

    def claim(self) -> Lease | Idle:
        context, words, strategy, rank = self.context, self._words, self.strategy, self.context.rank
        self._meet()
        if context.is_over():
            return Idle.DONE
        if context.paused():  # the counts may be changing
            return Idle.WAIT
        steps, end = words["steps", rank], strategy.end(words, rank)
        # At the end of its round a worker waits for a meeting, if the budget reaches it.
        least = context.workers * end if steps >= end else context.workers * steps + rank + 1
        if least > strategy.last_number(words, words["steps_before"] + self._limit):
            return Idle.DONE
        if steps >= end:
            if rank == 0 and strategy.at_end(words):
                words["decided"] += 1
            return Idle.WAIT
        lease = self.lease()
        return lease if isinstance(lease, Idle) else lease._replace(parts=self._parts())

    def _meet(self) -> None:
        """Do the rest of a meeting that rank 0 has decided on.

        A worker waits for the others at its end, also in place of a dead predecessor: they may be
        copying the average over a replica that it trains, too.
        """
        context, strategy, rank = self.context, self.strategy, self.context.rank
        end = STAGES * self._words["decided"]
        if self._words["stages", rank] < end:
            context.marks.begin_update()
        parts = [partial(stage, context.arena, rank) for stage in strategy.stages()]
        self.meet(end - STAGES, parts)
        context.marks.end_update()

    def _parts(self) -> tuple[TicketPart, ...] | None:
        """The batch of one of the worker's own clients, in turn, where the text is divided."""
        tickets, words = self.strategy.client_tickets, self._words
        if not tickets:
            return None
        own = range(self.context.rank, len(tickets), self.context.workers)
        passes, place = divmod(words["steps", self.context.rank], len(own))
        client = own[place]
        epoch, ticket = divmod(words["batches", client] + passes, tickets[client])
        whole = self.context.run.sequences_per_ticket
        return (TicketPart(epoch, sum(tickets[:client]) + ticket, begin=0, end=whole),)

    def read(self) -> None:
        context = self.context
        self._version_read = sum(self.strategy.each(self._words, "updates", self._mates))
        context.entry.version_read = context.arena.counters.load("version")
        context.backend.take(self.copy, context.threads)

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        context, words, rank = self.context, self._words, self.context.rank
        direction: dict[str, Float32 | Rows] = dict(grads)
        slots = context.arena.layout.slots
        for name, grad in without_tables(grads, slots).items():
            if (pull := self.strategy.pull(self, slots[name])) is not None:
                direction[name] = dense(grad, slots[name].shape) + pull
        norm = context.norm(direction)
        finite = math.isfinite(norm)
        context.marks.begin_update()
        updates_now = sum(self.strategy.each(words, "updates", self._mates))
        staleness = updates_now - self._version_read
        tokens = words["tokens", rank] + samples * context.run.seq_len
        counts = context.entry.opt_step + finite, words["updates", rank] + finite, tokens, finite

        def apply(record: StepRecord) -> None:
            self.strategy.before_step(self, grads)
            context.optimizer.step(
                self._target,
                direction,
                lr=self.lr(),
                step=record.opt_step,
                seed=context.slot,
                grad_scale=context.grad_scale(norm),
            )

        record = self.once(lease, counts, apply)
        context.marks.end_update()
        version = context.arena.counters.load("version")
        return WriteResult(applied=record.applied, staleness=staleness, version=version)

    def lr(self) -> float:
        """Learning rate as if all workers had taken as many steps as this one."""
        context, words, rank = self.context, self._words, self.context.rank
        steps, tokens, own = (
            context.workers * words[k, rank] for k in ("steps", "tokens", "updates")
        )
        return context.lr_at(
            steps - words["steps_before"],
            tokens - words["tokens_before"],
            words["version_base"] + own,
        )


@dataclass(frozen=True, kw_only=True)
class Local(Numbered):
    """The common part of all local methods; by itself, runs that never meet."""

    Worker: ClassVar[type[Any]] = LocalWorker
    repeats: ClassVar[bool] = True
    copies: ClassVar[bool] = True
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True
    models_per_meeting: ClassVar[int] = 1  # arrays of its size that are averaged
    run_words: ClassVar[str] = "decided version_base tokens_before decided_before"
    worker_words: ClassVar[str] = "tokens updates start updates_before"
    kept_words = ("steps", *worker_words.split())

    split: str = option(
        "none",
        "text of a worker: any of it, or that of clients, whose shares of each class of documents "
        "a Dirichlet distribution draws",
        choices=("none", "dirichlet"), train_only=True,
    )  # fmt: skip
    split_alpha: float = option(
        1.0, "split=dirichlet: similarity of the clients' texts; 0 is a class for one client",
        low=0, train_only=True, requires={"split": ("dirichlet",)},
    )  # fmt: skip
    clients: int | None = option(
        None,
        "split=dirichlet: number of clients, of which each worker trains its own in turn; auto is "
        "one for every worker",
        low=1, none="auto", train_only=True, requires={"split": ("dirichlet",)},
    )  # fmt: skip

    def run_constraints(self, config: TrainConfig) -> Constraints:
        return (
            (config.gpu_write.startswith("metal"), "gpu_write",
             f"{config.gpu_write}, but the CPU adds to each worker's own copy; leave it out"),
            (optimizer_of(config).moments == "shared", "moments",
             "shared, but the runs are independent; leave it out, or use hogwild"),
        )  # fmt: skip

    # Batches in an epoch of each client's text; empty if all have one text.
    client_tickets: tuple[int, ...] = field(default=(), compare=False, repr=False)

    def division(self, data: Prepared, train: TokenFile, stored: Path | None) -> Division | None:
        if self.split == "none":
            return None
        from mlxhog.data import clients

        least = self.run.sequences_per_ticket * self.run.seq_len + 1
        return clients.divided(
            train, data.corpus.source, data.rule, clients=self.clients or self.workers,
            workers=self.workers, alpha=self.split_alpha, seed=self.run.seed,
            min_tokens=least, stored=stored,
        )  # fmt: skip

    # -- replicas --------------------------------------------------------------------------------

    @property
    def n_replicas(self) -> int:
        """Copies of the parameters; the workers of each have neighbouring ranks."""
        return self.workers

    def replica_of(self, rank: int) -> int:
        """The replica, from 0, that a worker trains."""
        return rank * self.n_replicas // self.workers

    def replica_segments(self) -> tuple[str, ...]:
        return tuple(f"copies.{k + 1}" for k in range(self.n_replicas))

    def replicas_in(self, arena: Arena, span: slice) -> list[Float32]:
        return [arena.segment(name)[span] for name in self.replica_segments()]

    kept_segments = replica_segments

    def word_groups(self, n_params: int) -> dict[str, tuple[int, str]]:
        return {**super().word_groups(n_params), "client": (len(self.client_tickets), "batches")}

    def share(self, arena: Arena, rank: int) -> slice:
        """The floats that a worker computes in a meeting; the probe is in none of them."""
        floats, last = arena.params.size, arena.layout.probe.offset
        begin, end = floats * rank // self.workers, floats * (rank + 1) // self.workers
        return slice(min(begin, last), min(end, last))

    # -- counts ----------------------------------------------------------------------------------

    def round_steps(self, done: int) -> int:
        """Steps of a worker in a round that begins after `done` steps of the run."""
        return NEVER

    def end(self, words: Words, rank: int) -> int:
        """A worker's steps at the end of its round."""
        start = words["start", rank]
        # Before the round a step counts as an update, as if every gradient had been finite.
        return start + self.round_steps(words["version_base"] + self.workers * start)

    def last_number(self, words: Words, total: int) -> int:
        """The steps that are numbered below this are `total` of the run, with those taken already.

        A worker's step n has the number P n + rank. Where a run continues from unequal steps, one
        worker may be past its share of a small budget; the others take so many fewer.
        """
        steps, last = self.each(words, "steps"), total
        while True:
            shares = (
                (last - rank + self.workers - 1) // self.workers for rank in range(len(steps))
            )
            if (reached := sum(map(max, steps, shares))) <= total:
                return last
            last -= reached - total

    def at_end(self, words: Words) -> bool:
        return all(words["steps", rank] >= self.end(words, rank) for rank in range(self.workers))

    def within_round(self, words: Words) -> bool:
        return self.each(words, "steps") != self.each(words, "start")

    def take_in(self, arena: Arena, words: Words, rank: int, record: StepRecord) -> None:
        words["updates", rank], words["tokens", rank] = record.version, record.tokens
        super().take_in(arena, words, rank, record)
        self._count_version(arena, words)

    def _count_version(self, arena: Arena, words: Words) -> None:
        version = words["version_base"] + sum(self.each(words, "updates"))
        arena.counters.store("version", version)

    def client_batches(self, words: Words, client: int) -> int:
        """Batches of a client that the steps in the words took: of its worker's, in turn."""
        rank, place = client % self.workers, client // self.workers
        clients = range(rank, len(self.client_tickets), self.workers)
        passes, rest = divmod(words["steps", rank], len(clients))
        return passes + (place < rest)

    # -- beginning and resuming ------------------------------------------------------------------

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        super().begin(arena, position)
        words, meetings = self.words(arena), 0 if position is None else position["meetings"]
        if position is None:
            for name in self.replica_segments():
                updates.snapshot(arena.segment(name), arena.params)
        words["tokens_before"] = sum(self.each(words, "tokens"))
        updates_before = sum(self.each(words, "updates"))
        words["version_base"] = arena.counters.load("version") - updates_before
        words["decided"] = words["decided_before"] = meetings
        for rank in range(self.workers):
            words["stages", rank] = STAGES * meetings

    def position(self, arena: Arena) -> dict[str, Any]:
        return {"meetings": self.words(arena)["decided"], **(super().position(arena) or {})}

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

    # -- what a method adds to a step ------------------------------------------------------------

    def pull(self, one: LocalWorker, slot: Slot) -> Float32 | None:
        """What is added to a worker's gradient of a parameter, but a table's; None is nothing."""
        return None

    def before_step(self, one: LocalWorker, grads: Grads) -> None:
        """Use the gradients that a worker's backend returned, before its optimizer steps."""

    # -- meetings --------------------------------------------------------------------------------

    def mix(self, arena: Arena, rank: int) -> None:
        """A worker's share of the new parameters: of the average."""
        span = self.share(arena, rank)
        arena.params[span] = mean_of(self.replicas_in(arena, span))

    def keep(self, arena: Arena, rank: int) -> None:
        """A worker's share of what the next round needs; the parameters are whole."""

    def take(self, arena: Arena, rank: int) -> None:
        """The parameters become a worker's copy, and its next round begins."""
        words, replica = self.words(arena), self.replica_segments()[self.replica_of(rank)]
        updates.snapshot(arena.segment(replica), arena.params)
        words["start", rank] = words["steps", rank]
        words["updates_before", rank] = words["updates", rank]

    def stages(self) -> tuple[Callable[[Arena, int], None], ...]:
        return self.mix, self.keep, self.take

    def _hold(self, arena: Arena, meeting: int) -> None:
        """Do what is left of a meeting, from 1, for all workers, none of which runs."""
        words = self.words(arena)
        for number, stage in enumerate(self.stages(), STAGES * (meeting - 1)):
            for rank in range(self.workers):
                self.take_part(words, rank, number, partial(stage, arena, rank))

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """End the steps of dead workers, hold a meeting that is due, and write the model."""
        words = self.words(arena)
        self._hold(arena, words["decided"])  # after it all workers are in the same round
        super().settle(arena, ledger)
        if self.at_end(words):
            self._hold(arena, words["decided"] + 1)
            words["decided"] += 1  # last: workers that wait see nothing of it before its end
        self._show(arena, arena.params)
        self._count_version(arena, words)

    def _show(self, arena: Arena, out: Float32) -> None:
        """Write the model into `out`: the replicas' average; after a meeting each equals it."""
        span = slice(arena.layout.probe.offset)
        replicas = self.replicas_in(arena, span)
        within = self.within_round(self.words(arena))
        out[span] = mean_of(replicas) if within else replicas[0]

    # -- for the rest of the run -----------------------------------------------------------------

    def between_steps(self, arena: Arena) -> bool:
        """Whether no meeting is under way, or about to begin."""
        words = self.words(arena)
        return set(self.each(words, "stages")) == {STAGES * words["decided"]}

    def load(self, arena: Arena, out: Float32, *, training: bool, threads: int = 1) -> None:
        """Average the replicas while they are trained; the parameters are outdated then."""
        if training:
            self._show(arena, out)
        else:
            super().load(arena, out, training=False, threads=threads)

    def models_sent(self, arena: Arena, steps: int) -> int:
        """All-reduces among the replicas: at each meeting, and if the run ends within a round."""
        words = self.words(arena)
        meetings = words["decided"] - words["decided_before"]
        models = meetings * self.models_per_meeting + self.within_round(words)
        return models * 2 * (self.n_replicas - 1)


def mean_of(arrays: Iterable[Float32]) -> Float32:
    """The mean of some arrays, added up in their order: a new array."""
    first, *others = arrays
    mean = first.copy()
    for array in others:
        mean += array
    if others:
        mean *= 1.0 / (1 + len(others))
    return mean
