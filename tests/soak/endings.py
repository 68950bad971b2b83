"""Ends of runs: what may end one, at each moment of its life.

Whatever ends it, the run saves its steps or says why not, resumes exactly, and leaves no process.
"""

import contextlib
import os
import signal
import tempfile
from itertools import cycle, product
from pathlib import Path
from unittest import mock

from mlxhog.arena.control import ControlCommand
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import list_runs
from mlxhog.errors import EnvironmentLacks, MlxhogError
from mlxhog.training.supervisor import checkpoints
from mlxhog.training.supervisor import handles as handle
from mlxhog.training.supervisor import training as runs
from mlxhog.training.supervisor.session import Session
from mlxhog.training.supervisor.training import train
from tests.processes import alive
from tests.soak import Counts
from tests.training.small import small_config, tickets

STEPS = 40
STRATEGIES = ("hogwild", "sync", "avg_runs", "round_robin", "diloco", "ssp", "locked")
EVERY = {"eval_every": 10, "sample_every": 15, "save_every": 12, "keep_best": True}
SILENT_S = 10.0  # of a stopped worker; others give signs of life, also on a busy machine
FIRST_STEP_S = 30.0  # of one that is stopped before its first step, which has no heartbeat
MORE = {"diloco": {"average_every": 4}}


def signals(*numbers):
    """A cause: signals to this process."""

    def cause(run):
        for number in numbers:
            signal.raise_signal(number)

    return cause


def error(kind, *of):
    """A cause: an error of the supervisor, or of the caller's observer."""

    def cause(run):
        raise kind(*of)

    return cause


def kills(number, most):
    """A cause: a signal to workers, which are not replaced."""

    def cause(run):
        for one in list(run.workers.pool.values())[:most]:
            os.kill(one.pid, number)

    return cause


CAUSES = {
    "SIGINT": signals(signal.SIGINT),
    "SIGTERM": signals(signal.SIGTERM),
    "mlxhog stop": lambda run: run._on_poll.__self__.signals.end(),
    "a caller's error": error(KeyError, "a plot"),
    "a lack": error(EnvironmentLacks, "the machine lacks it"),
    "a fault": error(OSError, 5, "Input/output error"),
    "one worker dies": kills(signal.SIGKILL, 1),
    "all workers die": kills(signal.SIGKILL, 9),
    "one worker stops": kills(signal.SIGSTOP, 1),
}
AFTER_THE_SAVE = (ControlCommand.EVALUATE, ControlCommand.SAMPLE)
MOMENTS = ("start", "step", "pause", "save", ControlCommand.DRAIN, *AFTER_THE_SAVE)


class Ended(Session):
    """The session of a run that ends by a cause at a moment.

    Attributes:
        moment, cause: which; `cause` becomes None when it has happened.
        pids: of all its workers so far.
    """

    moment, cause, pids = "", None, set()

    def happens(self, moment):
        """Let the cause happen if this is its moment."""
        self.pids.update(one.pid for one in self.workers.pool.values())
        if moment == self.moment and self.cause is not None:
            cause, Ended.cause = Ended.cause, None
            cause(self)

    def until(self, condition, *of, **how):
        """As of `Session`."""
        if condition == self.workers.ready:
            self.happens("start")
        return super().until(condition, *of, **how)

    def budget_is_used(self):
        waits = self.cause is not None and self.moment in MOMENTS[:4]
        return not waits and super().budget_is_used()

    def poll(self, doing=None):
        """As of `Session`."""
        if doing is None and self.arena.counters.load("steps") >= 3:
            self.happens("step")
        super().poll(doing)

    def is_quiesced(self):
        """As of `Session`."""
        self.happens("pause")
        return super().is_quiesced()

    def command(self, command):
        """As of `Session`."""
        super().command(command)
        self.happens(command)


class Saved(checkpoints.Checkpoints):
    """Checkpoints whose saving is a moment, too."""

    def save(self):
        """As of `Checkpoints`."""
        self.session.happens("save")
        return super().save()


def endings(n, say):
    """Ends of runs: each cause at a moment; at each one after seven runs, in all strategies."""
    counts, strategies = Counts(), cycle(STRATEGIES)
    for k, (at, cause) in product(range(n), enumerate(CAUSES)):
        moment, strategy = MOMENTS[(k + at) % len(MOMENTS)], next(strategies)
        with tempfile.TemporaryDirectory(prefix="mlxhog-soak-") as folder:
            wrong = ""
            try:
                end = ended(Path(folder), moment, cause, strategy)
            except Exception as error:
                end = wrong = f"WRONG: {type(error).__name__}: {error}"
        say(f"{getattr(moment, 'name', moment):9}  {cause:17}  {strategy:11}  {end}")
        counts.never("endings that lose steps, hang or leave a process", bool(wrong))
        if wrong:
            counts.facts[f"{cause} at {moment}, {strategy}"] = wrong
    return counts


def ended(folder, moment, cause, strategy):
    """End a run in an empty folder; returns how it ended.

    Raises:
        AssertionError: steps are in no checkpoint, or it does not resume exactly.
    """
    more = {"strategy": strategy, "workers": "mlx:cpu*2", "steps": STEPS, **EVERY}
    more |= {"restarts": 0, "heartbeat_timeout": SILENT_S, **MORE.get(strategy, {})}
    config, result = small_config(folder, **more), None
    with mock.patch.multiple(Ended, moment=moment, cause=CAUSES[cause], pids=set()), _patched():
        try:
            result = train(config, observer=None)
            end = result.status
        except (MlxhogError, KeyError, OSError) as error:
            end = f"{type(error).__name__}: {str(error)[:60]}"
            told = " ".join([str(error), *getattr(error, "__notes__", [])])
        assert Ended.cause is None, f"it did not happen: {end}"
        assert not any(map(alive, Ended.pids)), "a worker is left"
    listed = list_runs(Path(config.runs_dir))
    if not listed:
        assert moment == "start", "the run is gone"
        return f"{end}; nothing to save"
    (run,) = listed
    status = run.read_status()
    assert status["status"] in ("done", "interrupted", "failed"), status["status"]
    if not status["steps"]:
        return f"{end}; nothing to save"
    saved = checkpoint.load(checkpoint.latest(run))
    assert saved.state["used"]["steps"] == status["steps"], (saved.state["used"], status["steps"])
    ends_unsaved = result is None and moment not in AFTER_THE_SAVE
    assert not ends_unsaved or str(run.directory) in told, told
    at = tickets(saved.state)
    resumed = train(
        small_config(folder, **{**more, "steps": 4}, resume=str(run.directory)), observer=None
    )
    assert (resumed.status, resumed.steps) == ("done", status["steps"] + 4), resumed.status
    end_of = checkpoint.load(checkpoint.latest(run)).state
    assert tickets(end_of) >= at + 4
    return f"{end}, {status['steps']} steps"


@contextlib.contextmanager
def _patched():
    changes = {"Session": Ended, "Checkpoints": Saved}
    first = mock.patch.object(handle, "FIRST_STEP_S", FIRST_STEP_S)
    with mock.patch.multiple(runs, **changes), first:
        yield
