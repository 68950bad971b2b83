"""One worker process: do what the supervisor says, from the first command to the last."""

from __future__ import annotations

import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from mlxhog import backends, optim
from mlxhog.arena import Arena, records
from mlxhog.arena.control import Command
from mlxhog.arena.workers import Entry, Phase, State
from mlxhog.data.ledger import Ledger
from mlxhog.errors import MlxhogError
from mlxhog.machine import darwin
from mlxhog.machine.processes import FAULTS, end_by, follow_parent
from mlxhog.models import families
from mlxhog.strategies import Context
from mlxhog.training import worker_messages, zero_copy
from mlxhog.training.job import Job
from mlxhog.training.steps import Steps


def main(job: Job) -> None:
    """Entry point of the spawned process; ends it with the error's exit code."""
    follow_parent()
    if sys.platform == "darwin":
        darwin.ask_for_performance_cores()
    log = job.run_dir / "logs" / f"worker-{job.slot}.log"
    sys.stdout.flush()
    with _opened(log) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            _run(job)
        except FAULTS as fault:
            end_by(fault)
        except (MlxhogError, RuntimeError) as error:
            if worker_messages.is_lost_gpu(error):
                code = worker_messages.LOST_GPU_EXIT_CODE
            elif isinstance(error, MlxhogError):
                code = error.exit_code
            else:
                raise
            with suppress(OSError):  # the disk of the log may be full
                print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(code)


def _opened(log: Path) -> IO[str]:
    """Open a log; where its folder is gone, what would be written into it is lost."""
    try:
        return log.open("a", buffering=1)
    except OSError:
        return open(os.devnull, "w")


def _run(job: Job) -> None:
    arena = Arena.from_handle(job.handle, write=job.setup.writers.write)
    entry = arena.workers.entry(job.slot)
    entry.beat(Phase.STARTING)
    context = make_context(job, arena, entry)
    ring = records.Ring(arena.segment(f"ring.{job.slot}"))
    steps, side_jobs = Steps(job, context, ring), job.setup.side_jobs(job, context, ring)
    steps.warm_up()
    entry.state = State.RUNNING
    while (command := Command(arena.counters.load("command"))) != Command.EXIT:
        if entry.state == State.LEAVING:
            break
        entry.rss_bytes = resident_bytes()
        if command == Command.TRAIN:
            context.take_limit()
            side_jobs.serve()
        if command in (Command.TRAIN, Command.REST):  # at rest, a round in progress is finished
            steps.step()
            continue
        if command == Command.EVALUATE:
            side_jobs.evaluate_rest()
        elif command == Command.SAMPLE:
            side_jobs.serve()
        elif command == Command.MEASURE:
            steps.measure()
        entry.beat(Phase.IDLE)
        time.sleep(0.002)
    entry.state = State.FINISHED
    context.backend.close()


def make_context(job: Job, arena: Arena, entry: Entry) -> Context:
    """Start the framework, and lay the model over the memory it reads."""
    config, setup = job.config, job.setup
    backend = backends.create(
        job.spec.backend,
        threads=job.spec.threads,
        kernels=job.kernels,
        cpu_blas=config.cpu_blas,
        share=job.gpu_share,
        compute_dtype=config.compute_dtype,
    )
    live = zero_copy.live_params(job, arena)
    backend.bind(setup.model, arena.layout.slots, arena.params.size, live, setup.sampled)
    hidden = families.hidden_matrices(setup.model)
    optimizer = optim.build(
        config, hidden, threads=job.spec.threads, tokens_per_step=setup.strategy.tokens_per_step
    )
    return Context(
        arena=arena,
        ledger=Ledger(arena, on_torn=config.on_torn),
        entry=entry,
        slot=job.slot,
        owner=entry.incarnation,
        strategy=setup.strategy,
        backend=backend,
        optimizer=optimizer,
        metal=zero_copy.metal_steps(job, arena, optimizer.metal_rule, setup.decay),
        schedule=setup.schedule(),
        budget=job.budget,
        step_limit=job.step_limit,
        decay=setup.decay,
        model=setup.model,
        run_dir=job.run_dir,
    )


def resident_bytes() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
