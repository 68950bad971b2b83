"""Local methods: workers train replicas of the parameters for an interval, then average them.

One worker trains a replica, or several lock-free (`diloco`). In a round every worker takes K steps,
so with a budget of steps or tokens reruns are equal bit for bit where each has its own replica.

Averaging begins when rank 0 has seen every worker at the end of its round. Its stages are

    reduce     each worker computes its share of the new parameters
    commit     each stores its share of what the method needs in the next round
    broadcast  each copies the parameters to its replica, and begins its next round

`settle` runs a collective that is due when a run ends; a run that ends within a round ends with the
average of the replicas.

    segment               dtype    meaning
    copies.1 .. copies.M  float32  the replicas

    word            meaning; see also `rounds.py`
    decided         collectives that rank 0 has decided on
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
from mlxhog.optim.component import optimizer_of
from mlxhog.optim.gradients import Float32, Grads, Rows, dense, without_tables
from mlxhog.strategies.rounds import NEVER, STAGES, Numbered, NumberedWorker, StepRecord
from mlxhog.strategies.worker import BatchSize, Idle, Lease, TicketPart, WriteResult

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
    """One worker's steps on its replica `copy`, and its part in averaging."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        strategy, replica = self.strategy, self.strategy.replica_of(context.rank)
        self.copy: Float32 = context.arena.segment(strategy.replica_segments()[replica])
        ranks = range(context.workers)
        self._group = [rank for rank in ranks if strategy.replica_of(rank) == replica]
        self._target = replace(context.target(context.slot), flat=self.copy)
        if len(self._group) == 1:  # no other writer: plain stores lose nothing
            self._target = replace(self._target, mode=updates.WRITE_MODES["racy"])
        self._version_read = 0

    def claim(self) -> Lease | Idle:
        context, words, strategy, rank = self.context, self._words, self.strategy, self.context.rank
        self._average()
        if context.is_over():
            return Idle.DONE
        if context.paused():  # the counts may be changing
            return Idle.WAIT
        steps, end = words["steps", rank], strategy.end(words, rank)
        # At the end of its round a worker waits for the others, if the budget reaches that.
        least = context.workers * end if steps >= end else context.workers * steps + rank + 1
        if least > strategy.last_number(words, words["steps_before"] + self._limit):
            return Idle.DONE
        if steps >= end:
            if rank == 0 and strategy.at_end(words):
                words["decided"] += 1
            return Idle.WAIT
        lease = self.lease()
        return lease if isinstance(lease, Idle) else lease._replace(parts=self._parts())

    def _average(self) -> None:
        """Run the rest of a collective that rank 0 has decided on, and wait for its end.

        Also in place of a dead predecessor: others may be copying to a replica that it trains, too.
        """
        context, strategy, rank = self.context, self.strategy, self.context.rank
        end = STAGES * self._words["decided"]
        if self._words["stages", rank] < end:
            context.seqlock.begin_update()
        parts = [partial(stage, context.arena, rank) for stage in strategy.stages()]
        self.run_stages(end - STAGES, parts)
        context.seqlock.end_update()

    def _parts(self) -> tuple[TicketPart, ...] | None:
        """Return the batch of one of the worker's own clients, in turn, if the text is divided."""
        tickets, words = self.strategy.client_tickets, self._words
        if not tickets:
            return None
        own = range(self.context.rank, len(tickets), self.context.workers)
        rounds, place = divmod(words["steps", self.context.rank], len(own))
        client = own[place]
        epoch, ticket = divmod(words["batches", client] + rounds, tickets[client])
        whole = self.context.run.sequences_per_ticket
        return (TicketPart(epoch, sum(tickets[:client]) + ticket, begin=0, end=whole),)

    def read(self) -> None:
        context = self.context
        self._version_read = sum(self.strategy.each(self._words, "updates", self._group))
        context.entry.version_read = context.arena.counters.load("version")
        context.backend.copy_in(self.copy, context.threads)

    def write(self, grads: Grads, lease: Lease, size: BatchSize) -> WriteResult:
        context, words, rank = self.context, self._words, self.context.rank
        direction: dict[str, Float32 | Rows] = dict(grads)
        slots = context.arena.layout.slots
        for name, grad in without_tables(grads, slots).items():
            if (pull := self.strategy.pull(self, slots[name])) is not None:
                direction[name] = dense(grad, slots[name].shape) + pull
        norm = context.norm(direction)
        finite = math.isfinite(norm)
        context.seqlock.begin_update()
        updates_now = sum(self.strategy.each(words, "updates", self._group))
        staleness = updates_now - self._version_read
        tokens = words["tokens", rank] + size.tokens
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

        record = self.apply_once(lease, counts, apply)
        context.seqlock.end_update()
        version = context.arena.counters.load("version")
        return WriteResult(applied=record.applied, staleness=staleness, version=version)

    def lr(self) -> float:
        """Return the learning rate as if all workers had taken as many steps as this one."""
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
    """The base of all local methods; by itself, runs that are never averaged."""

    Worker: ClassVar[type[Any]] = LocalWorker
    repeats: ClassVar[bool] = True
    copies: ClassVar[bool] = True
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True
    models_per_average: ClassVar[int] = 1  # models that are averaged at a time
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
        """Number of replicas; the workers of each have neighboring ranks."""
        return self.workers

    def replica_of(self, rank: int) -> int:
        """Return the replica, from 0, that a worker trains."""
        return rank * self.n_replicas // self.workers

    def replica_segments(self) -> tuple[str, ...]:
        return tuple(f"copies.{k + 1}" for k in range(self.n_replicas))

    def replicas_in(self, arena: Arena, span: slice) -> list[Float32]:
        return [arena.segment(name)[span] for name in self.replica_segments()]

    kept_segments = replica_segments

    def word_groups(self, n_params: int) -> dict[str, tuple[int, str]]:
        return {**super().word_groups(n_params), "client": (len(self.client_tickets), "batches")}

    def share(self, arena: Arena, rank: int) -> slice:
        """Return the floats that a worker reduces; the probe is in none of them."""
        floats, last = arena.params.size, arena.layout.probe.offset
        begin, end = floats * rank // self.workers, floats * (rank + 1) // self.workers
        return slice(min(begin, last), min(end, last))

    # -- counts ----------------------------------------------------------------------------------

    def interval(self, done: int) -> int:
        """Return the steps of each worker in a round that begins after `done` steps of the run."""
        return NEVER

    def end(self, words: Words, rank: int) -> int:
        """Return a worker's steps at the end of its round."""
        start = words["start", rank]
        # As if every gradient before the round had been finite.
        return start + self.interval(words["version_base"] + self.workers * start)

    def last_number(self, words: Words, total: int) -> int:
        """Return the number below which steps are `total` of the run, those done included.

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

    def store_counts(self, arena: Arena, words: Words, rank: int, record: StepRecord) -> None:
        words["updates", rank], words["tokens", rank] = record.version, record.tokens
        super().store_counts(arena, words, rank, record)
        self._count_version(arena, words)

    def _count_version(self, arena: Arena, words: Words) -> None:
        version = words["version_base"] + sum(self.each(words, "updates"))
        arena.counters.store("version", version)

    def client_batches(self, words: Words, client: int) -> int:
        """Return the batches of a client that the steps in the words used."""
        rank, place = client % self.workers, client // self.workers
        clients = range(rank, len(self.client_tickets), self.workers)
        rounds, rest = divmod(words["steps", rank], len(clients))
        return rounds + (place < rest)

    # -- beginning and resuming ------------------------------------------------------------------

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        super().begin(arena, position)
        words, averages = self.words(arena), 0 if position is None else position["averages"]
        if position is None:
            for name in self.replica_segments():
                updates.snapshot(arena.segment(name), arena.params)
        words["tokens_before"] = sum(self.each(words, "tokens"))
        updates_before = sum(self.each(words, "updates"))
        words["version_base"] = arena.counters.load("version") - updates_before
        words["decided"] = words["decided_before"] = averages
        for rank in range(self.workers):
            words["stages", rank] = STAGES * averages

    def position(self, arena: Arena) -> dict[str, Any]:
        return {"averages": self.words(arena)["decided"], **(super().position(arena) or {})}

    def state(self, arena: Arena) -> dict[str, Any]:
        """Add the batches of each client's text that were trained on, by any workers."""
        words, clients = self.words(arena), range(len(self.client_tickets))
        batches = [words["batches", k] + self.client_batches(words, k) for k in clients]
        return {**super().state(arena), "clients": batches}

    def restore_state(self, arena: Arena, state: Mapping[str, Any]) -> None:
        """Continue each client's text, if there are as many clients."""
        words, of_clients = self.words(arena), state.get("clients", [])
        if len(of_clients) == len(self.client_tickets):
            for client, batches in enumerate(of_clients):
                words["batches", client] = batches - self.client_batches(words, client)

    def same(self) -> dict[str, Any]:
        """Add the replicas: with another number they begin from the average."""
        return {**super().same(), "replicas": self.n_replicas}

    # -- what a method adds to an update ---------------------------------------------------------

    def pull(self, one: LocalWorker, slot: Slot) -> Float32 | None:
        """Return what is added to a worker's gradient of a parameter but a table, if anything."""
        return None

    def before_step(self, one: LocalWorker, grads: Grads) -> None:
        """Use the gradients of a worker's backend, before its optimizer applies the update."""

    # -- averaging -------------------------------------------------------------------------------

    def reduce(self, arena: Arena, rank: int) -> None:
        """Compute a worker's share of the new parameters: of the average."""
        span = self.share(arena, rank)
        arena.params[span] = mean_of(self.replicas_in(arena, span))

    def commit(self, arena: Arena, rank: int) -> None:
        """Store a worker's share of what the next round needs; the parameters are complete."""

    def broadcast(self, arena: Arena, rank: int) -> None:
        """Copy the parameters to a worker's replica, and begin its next round."""
        words, replica = self.words(arena), self.replica_segments()[self.replica_of(rank)]
        updates.snapshot(arena.segment(replica), arena.params)
        words["start", rank] = words["steps", rank]
        words["updates_before", rank] = words["updates", rank]

    def stages(self) -> tuple[Callable[[Arena, int], None], ...]:
        return self.reduce, self.commit, self.broadcast

    def _complete(self, arena: Arena, number: int) -> None:
        """Run what is left of a collective, from 1, for all workers, none of which runs."""
        words = self.words(arena)
        for count, stage in enumerate(self.stages(), STAGES * (number - 1)):
            for rank in range(self.workers):
                self.run_stage(words, rank, count, partial(stage, arena, rank))

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """End the steps of dead workers, run a collective that is due, and write the model."""
        words = self.words(arena)
        self._complete(arena, words["decided"])  # after it all workers are in the same round
        super().settle(arena, ledger)
        if self.at_end(words):
            self._complete(arena, words["decided"] + 1)
            words["decided"] += 1  # last: workers that wait see nothing of it before its end
        self._write_model(arena, arena.params)
        self._count_version(arena, words)

    def _write_model(self, arena: Arena, out: Float32) -> None:
        """Write the replicas' average into `out`; after averaging each equals it."""
        span = slice(arena.layout.probe.offset)
        replicas = self.replicas_in(arena, span)
        within = self.within_round(self.words(arena))
        out[span] = mean_of(replicas) if within else replicas[0]

    def between_steps(self, arena: Arena) -> bool:
        """Whether no collective is running or about to begin."""
        words = self.words(arena)
        return set(self.each(words, "stages")) == {STAGES * words["decided"]}

    def load(self, arena: Arena, out: Float32, *, training: bool, threads: int = 1) -> None:
        """Average the replicas while they are trained; the parameters are outdated then."""
        if training:
            self._write_model(arena, out)
        else:
            super().load(arena, out, training=False, threads=threads)

    def models_sent(self, arena: Arena, steps: int) -> int:
        """Count all-reduces: at each averaging, and if the run ends within a round."""
        words = self.words(arena)
        averages = words["decided"] - words["decided_before"]
        models = averages * self.models_per_average + self.within_round(words)
        return models * 2 * (self.n_replicas - 1)


def mean_of(arrays: Iterable[Float32]) -> Float32:
    """Return the mean of some arrays, summed in their order: a new array."""
    first, *others = arrays
    mean = first.copy()
    for array in others:
        mean += array
    if others:
        mean *= 1.0 / (1 + len(others))
    return mean
