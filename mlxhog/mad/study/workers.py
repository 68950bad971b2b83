"""The execution of a study's runs in worker processes of this machine.

If a run's worker dies by its own fault (a crash, an exit), the run has failed. If it was killed
from outside, or lost its GPU (macOS; the process computes nothing right any more), the run is lost,
and the scheduler repeats it in another process.
"""

import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mlxhog.arena.child import Child, Failed, Lane, TimedOut
from mlxhog.base.durable import disk_errors
from mlxhog.base.inside import subfolder
from mlxhog.base.resources import shortage
from mlxhog.errors import MlxhogError, is_lost_gpu, one_line
from mlxhog.mad.run import Callbacks, CandidateRecord, EvalPoint, RunConfig
from mlxhog.training.plan.values import LOST_GPU_EXIT_CODE

REASON_CHARACTERS = 500

RunFunction = Callable[..., CandidateRecord]
"""Executes a run, as `candidate.train(config, callbacks=.., rungs=..)`; workers import it."""

ShouldPrune = Callable[[RunConfig, EvalPoint], bool]
"""Whether to end a run that has reached a rung."""

Ended = tuple[RunConfig, CandidateRecord | str]
"""A run, and its record; or, of a lost one, what happened to its process."""


class Executor(Protocol):
    """Executes runs beside each other; used by one thread."""

    def start(self, config: RunConfig, rungs: tuple[int, ...]) -> None:
        """Begin a run, which asks at rungs; one of the places is free."""

    def ended(self, timeout_s: float, should_prune: ShouldPrune) -> Iterator[Ended]:
        """Wait for events, answer questions at rungs, and yield the runs that have ended."""


class _WorkerRun(NamedTuple):
    config: RunConfig
    number: int  # of its worker
    began_s: float


class Pool(AbstractContextManager["Pool"]):
    """An `Executor` in processes of this machine; none outlives the `with` block.

    Args:
        run: executes one run.
        parallel: processes; one starts with its first run, and executes many.
        threads: of each one's libraries.
        logs: directory for their logs.
    """

    def __init__(self, run: RunFunction, *, parallel: int, threads: int, logs: Path) -> None:
        self._run, self._threads, self._logs = run, threads, logs
        self._idle = [*range(parallel, 0, -1)]  # numbers of workers
        self._workers: dict[int, Child] = {}  # that have started, by their numbers
        self._running: dict[Any, _WorkerRun] = {}  # by the pipe of the worker

    def start(self, config: RunConfig, rungs: tuple[int, ...]) -> None:
        """Begin a run in an idle worker."""
        number = self._idle.pop()
        if number not in self._workers:
            with disk_errors(f"making {self._logs}"):
                logs = subfolder(self._logs.parent, self._logs.name)
                log = logs / f"worker-{number}.log"
                self._workers[number] = Child(
                    threads=self._threads, promises=False, log=log, store={"run": self._run}
                )
        worker = self._workers[number]
        worker.start(_execute, config, rungs)
        self._running[worker.pipe] = _WorkerRun(config, number, time.monotonic())

    def ended(self, timeout_s: float, should_prune: ShouldPrune) -> Iterator[Ended]:
        """Yield the runs that have ended."""
        for pipe in wait([*self._running], timeout_s):
            config, number, began_s = self._running[pipe]
            result: CandidateRecord | str
            try:
                result = self._workers[number].await_result(0.0, partial(should_prune, config))
            except TimedOut:  # it asked, and goes on
                continue
            except Failed as failed:
                if failed.death is not None:
                    self._workers.pop(number).close()
                if failed.death is not None and failed.death.signal_name == "SIGKILL":
                    fewer = "give --parallel a smaller number, or train a smaller model"
                    way_out = failed.death.way_out(less_memory=fewer, otherwise="")
                    result = f"was killed (SIGKILL){failed.death.suspicion} ({way_out})"
                elif failed.death is not None and failed.death.code == LOST_GPU_EXIT_CODE:
                    result = "lost its GPU, whose driver ended the work"
                else:
                    seconds = time.monotonic() - began_s
                    reason = one_line(str(failed), REASON_CHARACTERS)
                    result = config.record("failed", seconds=seconds, reason=reason)
            del self._running[pipe]
            self._idle.append(number)
            yield config, result

    def __exit__(self, *_: object) -> None:
        """End every worker, whatever it does."""
        for worker in self._workers.values():
            worker.close()


def _execute(lane: Lane, config: RunConfig, rungs: tuple[int, ...]) -> CandidateRecord:
    faulthandler.enable()
    return attempt(lane.store["run"], config, rungs, lane.ask)


def attempt(
    run: RunFunction, config: RunConfig, rungs: tuple[int, ...], ask: Callable[[EvalPoint], bool]
) -> CandidateRecord:
    """Return the record of a run, also if it raises; the traceback is in the worker's log.

    If it has lost its GPU, this ends the process with `LOST_GPU_EXIT_CODE`.
    """
    began_s = time.monotonic()
    try:
        return run(config, callbacks=Callbacks(should_prune=ask), rungs=rungs)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        if is_lost_gpu(error):
            sys.stderr.flush()
            os._exit(LOST_GPU_EXIT_CODE)
        seconds = time.monotonic() - began_s
        return config.record("failed", seconds=seconds, reason=explain(error))


def explain(error: BaseException) -> str:
    """Return an error in one line."""
    text = one_line(str(error), REASON_CHARACTERS)
    if isinstance(error, SystemExit):
        return f"left with exit code {error.code}"
    if words := shortage(error):
        return words
    return text if isinstance(error, MlxhogError) else f"{type(error).__name__}: {text}"
