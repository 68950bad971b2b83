"""Runs of the tests report at every poll; some are trained while their workers are killed."""

import pytest

from mlxhog import train
from mlxhog.arena import clock
from mlxhog.arena.control import ControlCommand
from mlxhog.training.supervisor import evaluations as evaluation
from mlxhog.training.supervisor import reporting
from mlxhog.training.supervisor import training as runs
from mlxhog.training.supervisor.session import Session
from tests.training.small import small_config


@pytest.fixture(autouse=True)
def _observed_often_and_ended_without_haste(monkeypatch):
    """Nothing that a run does at its end is left out because the machine is slow."""
    monkeypatch.setattr(reporting, "REPORT_S", 0.0)
    for name in ("NGRAM_S", "LEAVING_S"):
        monkeypatch.setattr(runs, name, 60.0)
    for name in ("INTERRUPTED_S", "SAMPLE_S"):
        monkeypatch.setattr(evaluation, name, 60.0)


@pytest.fixture
def deadline(monkeypatch):
    """The list gets what ends the time of a run, of 600 s; no step may run on after it."""
    events, seconds = [], clock.Clock.seconds
    monkeypatch.setattr(clock.Clock, "seconds", lambda self: seconds(self) + 600.0 * len(events))
    monkeypatch.setattr(clock, "GRACE_S", 0.5)
    return events


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """The run with these options, which is trained once."""
    folder, results = tmp_path_factory.mktemp("runs"), {}

    def of(options):
        key = str(sorted(options.items()))
        if key not in results:
            results[key] = train(small_config(folder, **options), observer=None)
        return results[key]

    return of


class Deadly(Session):
    """Kills workers at moments: a command, or a step, a pause, a "choice" and its "end".

    The training ends by its budget, but not before all are replaced that are to die in it.

    Attributes:
        kills: moments and numbers of workers that are still to die; the last one is next.
        killed: processes of the dead.
        begins: steps of the run before the first of them.
    """

    kills = []
    killed = []
    begins = 0

    def budget_is_used(self):
        trains = self.arena.counters.load("command") == ControlCommand.TRAIN
        waits = {"step", "pause"} & {moment for moment, _ in self.kills}
        if trains and (waits or any(one in self.killed for one in self.workers.pool.values())):
            return False
        return super().budget_is_used()

    def poll(self, doing=None):
        self._kill_at("step")
        super().poll(doing)

    def command(self, command):
        self._kill_at(command)  # before a worker takes on what it asks for
        super().command(command)

    def is_quiesced(self):
        self._kill_at("pause")
        return super().is_quiesced()

    def continue_by(self, *args):
        super().continue_by(*args)
        self._kill_at("choice")

    def until(self, condition, *args, **how):
        is_met = super().until(condition, *args, **how)
        if condition == self.workers.ready and self.arena.counters.load("start_ns"):
            self._kill_at("end")
        return is_met

    def _kill_at(self, moment):
        begins = self.arena.counters.load("steps") >= self.begins
        all_are_there = len(self.workers.pool) == len(self.workers.handles)
        if begins and all_are_there and self.kills and self.kills[-1][0] == moment:
            _, victims = self.kills.pop()
            for process in list(self.workers.pool.values())[:victims]:
                process.process.kill()
                self.killed.append(process)


@pytest.fixture
def trained_with_kills(tmp_path, monkeypatch):
    """Trains, by `train` or another function, and kills workers at these moments."""

    def with_kills(*kills, begins=1, run=train, **options):
        monkeypatch.setattr(runs, "Session", Deadly)
        monkeypatch.setattr(Deadly, "kills", [*reversed(kills)])
        monkeypatch.setattr(Deadly, "killed", [])
        monkeypatch.setattr(Deadly, "begins", begins)
        result = run(small_config(tmp_path, **{"workers": "mlx:cpu*2", **options}))
        assert Deadly.kills == []
        return result

    return with_kills
