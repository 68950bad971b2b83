"""Local methods: workers train copies of the parameters for some steps, and then meet.

A replica is a copy of the parameters that one worker trains, or several lock-free (`diloco`). In a
round worker p takes K_p steps (`rounds.py` says of which batches). With a budget of steps or tokens
reruns are equal bit for bit where each worker has a replica of its own.

A meeting begins when rank 0 has seen every worker at the end of its round. It has the stages of the
strategy. A stage begins when all workers have ended the one before, and doing one twice is
harmless, so the replacement of a dead worker continues in the middle. The last stage begins the
next round. `settle` holds a meeting for which all are ready when a run ends; a run that ends within
a round ends with the average of the replicas.

The replicas are the segments copies.1 to copies.M (float32), and `rounds.py` has the counts.
Counts of a worker continue over resumes. `settle` writes the current model into the parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.ledger import Ledger, TicketState
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Float32, Grads
from mlxhog.optim import updates
from mlxhog.strategies.context import Context, Idle, Lease, TicketPart, WriteResult
from mlxhog.strategies.control_words import StepRecord
from mlxhog.strategies.rounds import (
    DECIDED,
    MARK,
    MEETINGS_BEFORE,
    NEVER,
    STAGES,
    STEPS,
    STEPS_BEFORE,
    TOKENS,
    TOKENS_BEFORE,
    UPDATES,
    VERSION_BASE,
    Rounds,
)
from mlxhog.strategies.strategy import Strategy, all_reduce_bytes


def average(arena: Arena, replicas: int, out: Float32, span: slice) -> None:
    """Write the mean of the replicas into a part of `out`, added in their order.

    Concurrency: where workers are stepping, elements are of different ages.
    """
    first, *others = (arena.segment(name)[span] for name in replica_names(replicas))
    mean = out[span]
    np.copyto(mean, first)
    for other in others:
        mean += other
    if others:
        mean *= np.float32(1.0 / replicas)


def replica_names(replicas: int) -> tuple[str, ...]:
    """The segments of the replicas."""
    return tuple(f"copies.{k + 1}" for k in range(replicas))


@dataclass(frozen=True)
class Local(Strategy):
    """The common part of all local methods; by itself, runs that never meet.

    Attributes:
        client_tickets: batches in an epoch of each client's text; empty if all have one text.
    """

    client_tickets: tuple[int, ...] = ()

    numbered: ClassVar[bool] = True
    stages: ClassVar[tuple[Callable[[Any, Arena, Rounds, int], None], ...]] = ()
    """Of a meeting: functions of the strategy, the arena, its rounds and a rank."""

    # -- differences between the methods ---------------------------------------------------------

    @property
    def replicas(self) -> int:
        """Copies of the parameters; the workers of each have neighbouring ranks."""
        return self.workers

    def steps_of_round(self, arena: Arena, done: int) -> Sequence[int]:
        """Steps of each worker in a round that begins after `done` steps of the run."""
        return [NEVER] * self.workers

    def worker(self, context: Context) -> LocalWorker:
        """Prepare one worker."""
        return LocalWorker(context)

    # -- the replicas ----------------------------------------------------------------------------

    def replica_of(self, rank: int) -> int:
        """The replica, from 0, that a worker trains."""
        return rank * self.replicas // self.workers

    def replica_segments(self) -> tuple[str, ...]:
        """Their names."""
        return replica_names(self.replicas)

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The replicas, other copies that the method keeps, and the counts."""
        copies = {name: ("float32", PARAMETER_COPY) for name in self.kept_segments()}
        return {**copies, **Rounds.segment(self.workers, len(self.client_tickets))}

    def kept_segments(self) -> tuple[str, ...]:
        """Each replica's parameters."""
        return self.replica_segments()

    def share(self, arena: Arena, rank: int) -> slice:
        """The floats that a worker computes in a meeting; the probe is in none of them."""
        floats, last = arena.params.size, arena.layout.probe.offset
        begin, end = floats * rank // self.workers, floats * (rank + 1) // self.workers
        return slice(min(begin, last), min(end, last))

    def average(self, arena: Arena, out: Float32, span: slice) -> None:
        """Write the mean of the replicas into a part of `out`; see `average`."""
        average(arena, self.replicas, out, span)

    # -- beginning and resuming ------------------------------------------------------------------

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        """Start every replica from the arena's parameters, or where it left off."""
        rounds, version = Rounds(arena, self.workers), arena.counters.load("version")
        if position is not None:
            arena.counters.store("first_ticket", position["first_ticket"])
            rounds.restore(position, version, len(self.stages))
            return
        rounds.set_of_run(VERSION_BASE, version)
        for name in self.replica_segments():
            updates.snapshot(arena.segment(name), arena.params)
        for rank, steps in enumerate(self.steps_of_round(arena, version)):
            rounds.set_of(rank, MARK, steps)

    def position(self, arena: Arena) -> dict[str, Any]:
        """The counts of all workers."""
        return {
            "first_ticket": arena.counters.load("first_ticket"),
            "replicas": self.replicas,
            **Rounds(arena, self.workers).position(),
        }

    def state(self, arena: Arena) -> dict[str, Any]:
        """Add the batches of each client's text that have been trained on, by any workers."""
        rounds, clients = Rounds(arena, self.workers), len(self.client_tickets)
        batches = [rounds.batches_of(client, clients) for client in range(clients)]
        return {**super().state(arena), "clients": batches}

    def restore_state(self, arena: Arena, state: Mapping[str, Any]) -> None:
        """Continue each client's text where it was left, if there are as many clients."""
        rounds, clients = Rounds(arena, self.workers), len(self.client_tickets)
        of_clients = state.get("clients", [])
        for client, batches in enumerate(of_clients if len(of_clients) == clients else []):
            rounds.set_batches_of(client, clients, batches)

    def resume(
        self, arena: Arena, ledger: Ledger, state: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """As other strategies; with another number of replicas they begin from the average."""
        position = state.get("course") or {}
        same = position.get("replicas") == self.replicas
        return super().resume(arena, ledger, state if same else {**state, "course": None})

    # -- while no worker runs --------------------------------------------------------------------

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """End the steps of dead workers, hold a meeting that is due, and write the model."""
        rounds, first = Rounds(arena, self.workers), arena.counters.load("first_ticket")
        self._end_meeting(arena, rounds)  # after it all workers are in the same round
        for rank in range(self.workers):
            number, record = first + rounds.number(rank), rounds.journal(rank).read()
            if record.ticket == number and ledger.state(*ledger.locate(number)) == TicketState.DONE:
                rounds.take_in(rank, record)
                rounds.set_of(rank, STEPS, rounds.of(rank, STEPS) + 1)
        if rounds.all_reached():
            self._hold_meeting(arena, rounds)
        self._show(arena, arena.params)
        arena.counters.store("version", rounds.version())
        super().settle(arena, ledger)

    def _next_round(self, arena: Arena, rounds: Rounds) -> Sequence[int]:
        """Steps of the round after the current one; before these rounds a step was an update."""
        before = rounds.of_run(VERSION_BASE)
        return self.steps_of_round(arena, before + sum(rounds.of_all(MARK)))

    def decide(self, arena: Arena, rounds: Rounds) -> None:
        """Let a meeting begin, and store the length of the round after it."""
        rounds.set_next(self._next_round(arena, rounds))
        rounds.set_of_run(DECIDED, rounds.of_run(DECIDED) + 1)

    def _hold_meeting(self, arena: Arena, rounds: Rounds) -> None:
        """Hold a whole meeting; workers that wait see nothing of it before its end."""
        rounds.set_next(self._next_round(arena, rounds))
        for run in self.stages:
            for rank in range(self.workers):
                run(self, arena, rounds, rank)
        meetings = rounds.of_run(DECIDED) + 1
        for rank in range(self.workers):
            rounds.set_of(rank, STAGES, len(self.stages) * meetings)
        rounds.set_of_run(DECIDED, meetings)

    def _end_meeting(self, arena: Arena, rounds: Rounds) -> None:
        last = len(self.stages) * rounds.of_run(DECIDED)
        for stage, run in enumerate(self.stages, start=last - len(self.stages)):
            for rank in range(self.workers):
                if rounds.of(rank, STAGES) == stage:
                    run(self, arena, rounds, rank)
                    rounds.set_of(rank, STAGES, stage + 1)

    def _show(self, arena: Arena, out: Float32) -> None:
        """Write the model into `out`: the replicas' average; after a meeting each equals it."""
        span = slice(arena.layout.probe.offset)
        if Rounds(arena, self.workers).within():
            self.average(arena, out, span)
        else:
            np.copyto(out[span], arena.segment(self.replica_segments()[0])[span])

    # -- for the rest of the run -----------------------------------------------------------------

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        """Steps of this call, of all workers."""
        rounds = Rounds(arena, self.workers)
        return sum(rounds.of_all(STEPS)) - rounds.of_run(STEPS_BEFORE)

    def between_steps(self, arena: Arena) -> bool:
        """Whether no meeting is under way, or about to begin."""
        rounds = Rounds(arena, self.workers)
        ended = len(self.stages) * rounds.of_run(DECIDED)
        return all(stages == ended for stages in rounds.of_all(STAGES))

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
        rounds = Rounds(arena, self.workers)
        meetings = rounds.of_run(DECIDED) - rounds.of_run(MEETINGS_BEFORE)
        models = meetings * self.models_per_meeting() + rounds.within()
        return models * all_reduce_bytes(arena, self.replicas)

    def models_per_meeting(self) -> int:
        """Arrays of the model's size that are averaged in a meeting."""
        return 1


# -- one worker ------------------------------------------------------------------------------------


class LocalWorker:
    """One worker's steps on its replica, and its part in meetings."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        assert isinstance(context.strategy, Local)
        self.context, self._strategy = context, context.strategy
        arena, strategy = context.arena, self._strategy
        self._rounds = Rounds(arena, context.workers)
        self._journal = self._rounds.journal(context.rank)
        replica = strategy.replica_of(context.rank)
        self._copy = arena.segment(strategy.replica_segments()[replica])
        self._mates = [r for r in range(context.workers) if strategy.replica_of(r) == replica]
        self._target = replace(context.target(context.slot), flat=self._copy)
        if self._mates == [context.rank]:  # no other writer: plain stores lose nothing
            self._target = replace(self._target, mode=updates.WRITE_MODES["racy"])
        self._before = self._rounds.of_run(STEPS_BEFORE)
        self._own = self._version_read = 0
        self._leased = False

    def counts_step(self) -> bool:
        """Every batch is a step."""
        return True

    # -- steps -----------------------------------------------------------------------------------

    def claim(self) -> Lease | Idle:
        """Lease this worker's next ticket, after a meeting that is due."""
        context, rounds, rank = self.context, self._rounds, self.context.rank
        self._take_part()
        at_mark, number = rounds.at_mark(rank), rounds.number(rank)
        # At the end of its round a worker waits for a meeting, if the budget reaches it.
        end = sum(rounds.of_all(MARK)) if at_mark else number + 1
        over = context.step_limit is not None and end > self._before + context.step_limit
        if context.stopping() or context.used_up() or over:
            return Idle.DONE
        if context.paused():
            return Idle.WAIT
        if at_mark:
            if rank == 0 and rounds.all_reached():
                self._strategy.decide(context.arena, rounds)
            return Idle.WAIT
        return self._lease(context.arena.counters.load("first_ticket") + number)

    def _lease(self, number: int) -> Lease | Idle:
        context, own = self.context, self._rounds.of(self.context.rank, STEPS)
        epoch, ticket = context.ledger.locate(number)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased:
            if context.ledger.state(epoch, ticket) != TicketState.DONE:
                return Idle.WAIT  # a whole ring of tickets ahead of the oldest
            if self._journal.read().ticket != number:  # torn when the run before was killed
                self._rounds.set_of(context.rank, STEPS, own + 1)
                return Idle.WAIT
        self._own = own
        context.entry.ticket = ticket
        return Lease(epoch, ticket, self._parts())

    def _parts(self) -> tuple[TicketPart, ...] | None:
        """The batch of the worker's own client, where the text is divided."""
        tickets = self._strategy.client_tickets
        if not tickets:
            return None
        client, number = self._rounds.client(self.context.rank, len(tickets))
        epoch, ticket = divmod(number, tickets[client])
        whole = self.context.facts.sequences
        return (TicketPart(epoch, sum(tickets[:client]) + ticket, begin=0, end=whole),)

    def read(self) -> None:
        """Load the worker's replica."""
        context = self.context
        self._version_read = self._replica_version()
        context.entry.version_read = context.arena.counters.load("version")
        updates.snapshot(context.backend.inbox, self._copy, threads=context.threads)
        context.backend.refresh()

    def _replica_version(self) -> int:
        """Updates that the worker's replica has had."""
        return sum(self._rounds.of(rank, UPDATES) for rank in self._mates)

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Add the step to the worker's replica."""
        context, rounds = self.context, self._rounds
        entry, ledger = context.entry, context.ledger
        direction = self.corrected(grads)
        norm = context.norm(direction)
        context.marks.begin_update()
        staleness = self._replica_version() - self._version_read
        if self._leased:  # else its predecessor died after the step
            record = self._record(lease, bool(np.isfinite(norm)), samples)
            self._journal.write(record)
            entry.phase = Phase.APPLY
            ledger.begin_apply(lease.epoch, lease.ticket, context.owner)
            if record.applied:
                self.apply(grads, direction, norm, record)
            ledger.finish(lease.epoch, lease.ticket, context.owner)
        record = self._journal.read()
        rounds.take_in(context.rank, record)
        entry.ticket = -1
        rounds.set_of(context.rank, STEPS, self._own + 1)
        version = rounds.version()
        context.arena.counters.store("version", version)
        context.marks.end_update()
        return WriteResult(applied=record.applied, staleness=staleness, version=version)

    def corrected(self, grads: Grads) -> Grads:
        """The direction of a step, derived from the gradient."""
        return grads

    def _record(self, lease: Lease, finite: bool, samples: int) -> StepRecord:
        """Counts after this step; `version` counts the worker's own updates."""
        context, rounds, rank = self.context, self._rounds, self.context.rank
        return StepRecord(
            opt_step=context.entry.opt_step + finite,
            version=rounds.of(rank, UPDATES) + finite,
            tokens=rounds.of(rank, TOKENS) + samples * context.facts.seq_len,
            applied=finite,
            ticket=lease.epoch * context.ledger.n + lease.ticket,
        )

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
        """Step size as if all workers were as far in the round as this one."""
        context, rounds, rank = self.context, self._rounds, self.context.rank
        steps, _ = rounds.before_next_step(rank)
        own = max(1, rounds.of(rank, STEPS))
        tokens, updates_of_all = (
            rounds.of(rank, word) * steps // own for word in (TOKENS, UPDATES)
        )
        progress = context.budget.progress(
            steps=steps - self._before,
            tokens=tokens - rounds.of_run(TOKENS_BEFORE),
            seconds=context.seconds(),
        )
        return context.schedule(progress, rounds.of_run(VERSION_BASE) + updates_of_all)

    # -- meetings --------------------------------------------------------------------------------

    def _take_part(self) -> None:
        """Do the rest of a meeting that rank 0 has decided on."""
        context, rounds, stages = self.context, self._rounds, self._strategy.stages
        rank, last = context.rank, len(stages) * rounds.of_run(DECIDED)
        if rounds.of(rank, STAGES) >= last:
            self._wait_for(last)  # a dead predecessor may not have waited for the others
            return
        context.marks.begin_update()
        for stage, run in enumerate(stages, start=last - len(stages)):
            if rounds.of(rank, STAGES) == stage:
                run(self._strategy, context.arena, rounds, rank)
                rounds.set_of(rank, STAGES, stage + 1)
            self._wait_for(stage + 1)
        context.marks.end_update()

    def _wait_for(self, stages: int) -> None:
        """Wait until every worker has ended `stages` stages; the supervisor replaces a dead one.

        The phase is kept: during a meeting no worker holds still for a checkpoint.
        """
        entry, began_ns, nap_s = self.context.entry, monotonic_ns(), 0.0
        while min(self._rounds.of_all(STAGES)) < stages:
            entry.beat()
            time.sleep(nap_s)
            nap_s = min(1e-3, nap_s + 2e-5)
        entry.wait_ns += monotonic_ns() - began_ns
