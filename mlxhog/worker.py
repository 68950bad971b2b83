"""One worker process: take a batch, read, compute a gradient, write, until told to rest."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path

from mlxhog import backends, evaluation, optim, records, schedules, strategies, updates
from mlxhog.arena import Arena, ArenaHandle
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Entry, Phase, State
from mlxhog.backends import Backend, Grads
from mlxhog.budget import Budget
from mlxhog.config import TrainConfig
from mlxhog.control import Command
from mlxhog.data.batch import Batch
from mlxhog.data.batches import Batches
from mlxhog.data.ledger import Ledger
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.decoding.generate import generate, stream_text
from mlxhog.decoding.sampling import Sampler
from mlxhog.decoding.stepper import BackendStepper
from mlxhog.errors import MlxhogError
from mlxhog.models.xlstm_large import XLSTMLargeConfig, param_spec
from mlxhog.run import Run

SAMPLE_PROMPT = "The "
SAMPLE_TOKENS = 160


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
    train: Path
    val: Path
    tokenizer: Tokenizer
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
        elif command == Command.SAMPLE:
            worker.sample_if_asked()
            worker.idle()
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
        self.val = TokenFile.open(job.val)
        self.batches = Batches(
            TokenFile.open(job.train),
            seq_len=config.seq_len,
            batch_size=config.batch_size * config.grad_accumulation,
            seed=config.seed,
        )
        context = strategies.Context(
            arena=arena,
            ledger=Ledger(arena, on_torn=config.on_torn),
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
            decay=frozenset(n for n, spec in param_spec(job.model).items() if spec.decay),
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
        self.backend.loss_and_grads(next(self._micro_batches(strategies.Lease(0, 0))))

    def idle(self) -> None:
        """Hold still for a moment, visibly."""
        self.entry.beat(Phase.IDLE)
        self.entry.rss_bytes = resident_bytes()
        time.sleep(0.002)

    # -- training --------------------------------------------------------------------------------

    def step(self) -> None:
        """Take one ticket from claim to record."""
        entry, counters = self.entry, self.arena.counters
        if entry.nonfinite_in_row >= self.job.config.max_nonfinite:
            self.idle()  # the supervisor ends the run
            return
        self.evaluate_if_asked()
        self.sample_if_asked()
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
        batch, rows = self.batches.at(lease.epoch, lease.ticket), self.job.config.batch_size
        for begin in range(0, len(batch.x), rows):
            yield batch.part(begin, begin + rows)

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

    def _takes_on(self, asked: str, taken: str) -> bool:
        """Whether something is asked for that no other worker has taken on; at most one gets it."""
        counters = self.arena.counters
        done = counters.load(taken)
        return counters.load(asked) > done and counters.compare_exchange(taken, done, done + 1)

    def evaluate_if_asked(self) -> None:
        """Evaluate a piece of the held-out text between two steps."""
        if self._takes_on("eval_asked", "eval_taken"):
            strategies.copy_to_inbox(self.context)
            self.entry.beat(Phase.EVALUATE)
            score = evaluation.score_sample(
                self.backend, self.val, self.job.config, self.entry.beat
            )
            self._record_score(score, round_=0, chunk=0)

    def evaluate_rest(self) -> None:
        """Evaluate chunks of the held-out text until none is left in this round."""
        counters = self.arena.counters
        round_ = counters.load("eval_round")
        if round_ == self._final_round:
            self.idle()
            return
        strategies.copy_to_inbox(self.context)
        config, beat = self.job.config, self.entry.beat
        self.entry.beat(Phase.EVALUATE)
        while (chunk := counters.add("eval_next", 1)) < evaluation.final_chunks(self.val, config):
            score = evaluation.score_chunk(self.backend, self.val, config, chunk, beat)
            self._record_score(score, round_=round_, chunk=chunk)
        self._final_round = round_

    def _record_score(self, score: evaluation.Score, *, round_: int, chunk: int) -> None:
        self.ring.append(
            kind=records.Kind.EVALUATION,
            worker=self.job.slot,
            version=self.arena.counters.load("version"),
            t_ns=monotonic_ns(),
            nats=score.nats,
            n_bytes=score.n_bytes,
            tokens=score.tokens,
            chunk=chunk,
            round=round_,
        )

    def sample_if_asked(self) -> None:
        """Write a sample of text beside the run."""
        if not self._takes_on("sample_asked", "sample_taken"):
            return
        strategies.copy_to_inbox(self.context)
        self.entry.beat(Phase.SAMPLE)
        tokenizer, pieces = self.job.tokenizer, []
        tokens = generate(
            BackendStepper(self.backend),
            tokenizer.encode(SAMPLE_PROMPT.encode()),
            tokenizer=tokenizer,
            sampler=Sampler(temperature=0.8, seed=self.job.config.seed),
            max_new_tokens=SAMPLE_TOKENS,
        )
        for piece in stream_text(tokenizer, tokens):
            self.entry.beat()
            pieces.append(piece)
        Run(self.job.run_dir).append_sample(SAMPLE_PROMPT + "".join(pieces))
        self.ring.append(kind=records.Kind.SAMPLE, worker=self.job.slot, t_ns=monotonic_ns())


def resident_bytes() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
