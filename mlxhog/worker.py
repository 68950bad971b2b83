"""One worker process: take a batch, read, compute a gradient, write; until the supervisor says rest."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path

import numpy as np

from mlxhog import backends, optim, records, sampling, schedules, strategies, updates
from mlxhog.arena import Arena, ArenaHandle
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Entry, Phase, State
from mlxhog.backends import Backend, Grads
from mlxhog.budget import Budget
from mlxhog.config import TrainConfig
from mlxhog.control import Command
from mlxhog.data.batch import Batch
from mlxhog.data.corpus_files import Prepared
from mlxhog.data.ledger import Ledger
from mlxhog.data.order import Order
from mlxhog.errors import MlxhogError
from mlxhog.heldout import evaluate_chunk
from mlxhog.models.xlstm_large import XLSTMLargeConfig


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to begin; picklable for `spawn`."""

    handle: ArenaHandle
    slot: int
    owner: int
    workers: int
    backend: str
    threads: int
    config: TrainConfig
    model: XLSTMLargeConfig
    data: Prepared
    budget: Budget
    step_limit: int | None
    run_dir: Path


def main(job: Job) -> None:
    """Entry point of the spawned process; ends it with the error's exit code."""
    _follow_supervisor()
    log = job.run_dir / "logs" / f"worker-{job.slot}.log"
    sys.stdout.flush()
    with log.open("a", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            _run(job)
        except MlxhogError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(error.exit_code)


def _follow_supervisor() -> None:
    """Leave as soon as the supervisor is gone, whatever this process is doing."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="supervisor-watch").start()


def _run(job: Job) -> None:
    arena = Arena.from_handle(job.handle, write=job.config.write)
    worker = Worker(job, arena)
    counters = arena.counters
    while (command := Command(counters.load("command"))) != Command.EXIT:
        worker.entry.beat()
        if command == Command.TRAIN:
            worker.step()
        elif command == Command.EVALUATE:
            worker.evaluate_rest()
        elif command == Command.SAMPLE and counters.load("sampler") == job.slot:
            worker.sample()
        else:
            worker.idle()
    worker.entry.state = State.FINISHED
    worker.backend.close()


class Worker:
    """One worker's state between steps."""

    def __init__(self, job: Job, arena: Arena) -> None:
        """Start the framework and lay the model over the inbox; then report ready."""
        self.job, self.arena, config = job, arena, job.config
        self.entry: Entry = arena.workers.entry(job.slot)
        self.entry.beat(Phase.STARTING)
        self.backend: Backend = backends.create(
            job.backend, threads=job.threads, kernels=config.kernels, cpu_blas=config.cpu_blas
        )
        live = arena.params if config.read == "live" else None
        self.backend.bind(job.model, arena.layout.slots, arena.params.size, live)
        self.ring = records.Ring(arena.segment(f"ring.{job.slot}"))
        self.train, self.val = job.data.open_train(), job.data.open_val()
        self.order = Order(
            self.train.n_sequences(config.seq_len), self.train.digest, seed=config.seed
        )
        context = strategies.Context(
            arena=arena,
            ledger=Ledger(arena),
            entry=self.entry,
            slot=job.slot,
            owner=job.owner,
            workers=job.workers,
            backend=self.backend,
            optimizer=optim.build(config),
            schedule=schedules.build(config),
            budget=job.budget,
            step_limit=job.step_limit,
            config=config,
        )
        self.context = context
        self.strategy = strategies.build(context)
        self.probe = arena.probe
        self._warm_up()
        self._final_round = 0
        self.entry.state = State.RUNNING
        self.idle()

    def _warm_up(self) -> None:
        """One gradient nobody uses, so that lazy set-up in the framework is not timed as a step."""
        strategies.copy_to_inbox(self.context)
        first = np.zeros(1, np.int64)
        self.backend.loss_and_grads(self.train.batch(first, self.job.config.seq_len))

    def idle(self) -> None:
        """Hold still for a moment, visibly."""
        self.entry.beat(Phase.IDLE)
        self.entry.rss_bytes = resident_bytes()
        time.sleep(0.002)

    # -- training --------------------------------------------------------------------------------

    def step(self) -> None:
        """Take one ticket from claim to record."""
        entry, counters = self.entry, self.arena.counters
        self._evaluate_if_asked()
        lease = self.strategy.claim()
        if isinstance(lease, strategies.Idle):
            entry.beat(Phase.WAITING if lease is strategies.Idle.WAIT else Phase.IDLE)
            time.sleep(0.0002 if lease is strategies.Idle.WAIT else 0.002)
            return
        entry.beat(Phase.DATA)
        batches = list(self._micro_batches(lease))
        samples = sum(len(batch.x) for batch in batches)
        tokens = sum(batch.x.size for batch in batches)
        began = monotonic_ns()
        entry.beat(Phase.READ)
        self.strategy.read()
        read = monotonic_ns()
        entry.beat(Phase.COMPUTE)
        loss, grads = self._loss_and_grads(batches)
        computed = monotonic_ns()
        outcome = self.strategy.write(grads, lease, samples)
        self._probe(outcome.applied)
        applied = monotonic_ns()
        entry.read_ns += read - began
        entry.compute_ns += computed - read
        entry.apply_ns += applied - computed
        entry.steps += 1
        entry.tokens += tokens
        entry.loss = loss
        if outcome.applied:
            entry.nonfinite_in_row = 0
            entry.staleness_sum += outcome.staleness
            entry.staleness_max = max(entry.staleness_max, outcome.staleness)
        else:
            entry.dropped += 1
            entry.nonfinite_in_row += 1
        if self.strategy.counts_step():
            counters.add("steps", 1)
        counters.add("tokens", tokens)
        counters.add("samples", samples)
        self.ring.append(
            kind=records.Kind.STEP,
            worker=self.job.slot,
            version=outcome.version,
            t_ns=applied,
            loss=loss,
            tokens=tokens,
            staleness=outcome.staleness,
        )

    def _micro_batches(self, lease: strategies.Lease) -> Iterator[Batch]:
        """The ticket's sequences, `batch_size` at a time."""
        config = self.job.config
        per_ticket = config.batch_size * config.grad_accumulation
        first = lease.ticket * per_ticket
        count = min(per_ticket, self.order.n - first)
        index = self.order.at(lease.epoch, first, count)
        for begin in range(0, count, config.batch_size):
            yield self.train.batch(index[begin : begin + config.batch_size], config.seq_len)

    def _loss_and_grads(self, batches: list[Batch]) -> tuple[float, Grads]:
        """Mean loss and gradient over the micro-batches, each weighted by its sequences."""
        if len(batches) == 1:
            return self.backend.loss_and_grads(batches[0])
        total = sum(len(batch.x) for batch in batches)
        mean = updates.GradientSum()
        loss = 0.0
        for batch in batches:
            share = len(batch.x) / total
            part, grads = self.backend.loss_and_grads(batch)
            self.entry.beat()
            loss += share * part
            mean.add(grads, share)
        return loss, mean.grads()

    def _probe(self, applied: bool) -> None:
        """Add 1.0 to the probe as the parameters are added to: what it lacks later was lost."""
        if applied:
            updates.add_probe(self.context.target(self.job.slot), self.probe)
            self.entry.probe_adds += 1

    # -- evaluation and sampling -----------------------------------------------------------------

    def _evaluate_if_asked(self) -> None:
        """Take on an evaluation that the supervisor asked for, unless another worker has."""
        counters = self.arena.counters
        taken = counters.load("eval_taken")
        if counters.load("eval_asked") > taken and counters.cas("eval_taken", taken, taken + 1):
            strategies.copy_to_inbox(self.context)
            self._evaluate(chunk=0, limit=self.job.config.eval_tokens, round_=0)

    def evaluate_rest(self) -> None:
        """Evaluate chunks of the held-out text until none is left in this round."""
        counters = self.arena.counters
        round_ = counters.load("eval_round")
        if round_ == self._final_round:
            self.idle()
            return
        strategies.copy_to_inbox(self.context)
        chunks = self.job.data.final_chunks(self.job.config)
        while (chunk := counters.add("eval_next", 1)) < chunks:
            self._evaluate(chunk=chunk, limit=None, round_=round_)
        self._final_round = round_

    def _evaluate(self, *, chunk: int, limit: int | None, round_: int) -> None:
        self.entry.beat(Phase.EVALUATE)
        nats, n_bytes, tokens = evaluate_chunk(
            self.backend, self.val, self.job.config, chunk=chunk, limit=limit, beat=self.entry.beat
        )
        self.ring.append(
            kind=records.Kind.EVALUATION,
            worker=self.job.slot,
            version=self.arena.counters.load("version"),
            t_ns=monotonic_ns(),
            nats=nats,
            n_bytes=n_bytes,
            tokens=tokens,
            chunk=chunk,
            round=round_,
        )

    def sample(self) -> None:
        """Write a sample of text beside the run, then tell the supervisor by clearing `sampler`."""
        strategies.copy_to_inbox(self.context)
        text = sampling.sample_text(self.backend, self.job, beat=self.entry.beat)
        with (self.job.run_dir / "samples.txt").open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")
        self.arena.counters.store("sampler", 0)


def resident_bytes() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
