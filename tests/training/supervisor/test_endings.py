"""Whatever ends a run saves it, writes its status and says how to continue; the end is in time."""

import os
import signal
from pathlib import Path

import pytest

from mlxhog.arena.control import ControlCommand
from mlxhog.arena.requests import Refused, ask
from mlxhog.checkpoint import checkpoint, manifest
from mlxhog.checkpoint.run import Run, find
from mlxhog.cli import main
from mlxhog.cli.train import summary
from mlxhog.errors import DataError, EnvironmentLacks, RunError, WorkerFailed
from mlxhog.progress import Phase
from mlxhog.training.supervisor.monitor import Monitor
from mlxhog.training.supervisor.session import Session
from mlxhog.training.supervisor.training import train
from mlxhog.training.supervisor.workers import Workers
from tests.training.asking import endless, trained
from tests.training.small import (
    Messages,
    checkpoint_of,
    flags,
    sample_prompt,
    small_config,
    tickets,
)

pytestmark = pytest.mark.slow
SEVERAL = {"workers": "mlx:cpu*2", "steps": 100_000}


class At:
    """An observer that acts once, when a run has taken some steps."""

    def __init__(self, act, steps=3, activity=None):
        self.act, self.steps, self.activity, self.acts = act, steps, activity, 0

    def __call__(self, progress):
        doing = progress.phase and progress.phase.activity
        if not self.acts and progress.step >= self.steps and doing is self.activity:
            self.acts += 1
            self.act(progress)


def latest(tmp_path):
    return find("latest", tmp_path / "runs")


def raises(error):
    def act(progress):
        raise error

    return act


ERRORS = (
    KeyError("a bug in a plot"),
    KeyboardInterrupt(),
    SystemExit(7),
    MemoryError(),
    EnvironmentLacks("no process can be started"),
    DataError("the text is gone"),
    WorkerFailed("worker 1 died 6 times"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_the_caller_or_of_the_supervisor_ends_a_run_that_resumes(tmp_path, error):
    with pytest.raises(type(error)) as raised:
        train(small_config(tmp_path, **SEVERAL), observer=At(raises(error)))
    assert raised.value is error
    run = latest(tmp_path)
    saved, status = checkpoint.load(checkpoint.latest(run)), run.read_status()
    assert (status["status"], status["steps"]) == ("failed", saved.state["used"]["steps"])
    assert tickets(saved.state) == status["steps"] >= 3
    told = "".join([str(error), *getattr(error, "__notes__", [])])
    assert f"saved {saved.path}, resume with mlxhog train --resume {run.directory}" in told
    resumed = train(small_config(tmp_path, resume=str(run.directory), steps=2))
    assert (resumed.status, resumed.steps) == ("done", status["steps"] + 2)


def test_a_run_that_an_error_ends_says_that_it_could_not_be_saved(tmp_path, monkeypatch):
    def full(*arguments, **fields):
        raise EnvironmentLacks("the disk became full")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(WorkerFailed, match="could not be saved: the disk became full"):
        train(small_config(tmp_path), observer=At(raises(WorkerFailed("a worker died"))))
    assert latest(tmp_path).read_status()["status"] == "failed"


@pytest.mark.parametrize("activity", [None, Phase.STARTING], ids=["first message", "starting"])
def test_an_error_before_the_first_step_leaves_no_run(tmp_path, activity):
    with pytest.raises(KeyError):
        train(small_config(tmp_path), observer=At(raises(KeyError("x")), 0, activity))
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_is_whole_where_no_thread_can_be_started(tmp_path, monkeypatch):
    class NoThreads:
        def __init__(self, n):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(manifest, "ThreadPoolExecutor", NoThreads)
    result = train(small_config(tmp_path, steps=3))
    monkeypatch.undo()
    assert checkpoint.load(Path(result.checkpoint)).state["used"]["steps"] == 3


@pytest.mark.parametrize("error", [KeyError("x"), RunError("x")], ids=repr)
def test_an_error_after_the_save_leaves_the_evaluation_to_a_resume(tmp_path, error):
    config = small_config(tmp_path, eval_every="1h", val_subset_tokens=100_000)
    with pytest.raises(type(error)):
        train(config, observer=At(raises(error), 20, Phase.EVALUATING))
    assert latest(tmp_path).read_status()["status"] == "interrupted"
    resumed = train(small_config(tmp_path, steps=None, eval_every="1h", resume="latest"))
    assert (resumed.status, resumed.steps, resumed.val_at_end) == ("done", 20, True)


EVALUATED = {"steps": None, "time": 600.0, "eval_every": "1h", "sample_every": "1h"}


@pytest.mark.parametrize(
    ("strategy", "number"),
    [
        *((one, signal.SIGSTOP)
          for one in ("sync", "round_robin", "locked", "hogwild", "avg_runs")),
        *((one, signal.SIGKILL) for one in ("sync", "hogwild", "avg_runs")),
    ],
)  # fmt: skip
def test_a_worker_that_stops_or_dies_at_the_deadline_costs_no_evaluation_and_no_sample(
    tmp_path, deadline, strategy, number
):
    def end(progress):
        os.kill(progress.workers[1].pid, number)
        deadline.append(progress.step)

    config = small_config(tmp_path, workers="mlx:cpu*2", strategy=strategy, **EVALUATED)
    result = train(config, observer=At(end))
    assert (result.status, result.val_at_end) == ("done", True)
    assert result.sample.startswith(sample_prompt(result))
    state = checkpoint_of(result).state
    assert (state["over"], tickets(state) >= result.steps) == (True, True)
    if number == signal.SIGSTOP:
        assert result.restarts == 0
    elif strategy == "avg_runs":
        assert len(result.copies_bits_per_byte) == 2


def test_no_pause_outlasts_the_time_budget(tmp_path, deadline, monkeypatch):
    def never_still(run):
        deadline.append("in the pause")
        return False

    monkeypatch.setattr(Session, "is_quiesced", never_still)
    monkeypatch.setattr(Session, "pause_limit_s", lambda run: 3600.0)
    config = small_config(tmp_path, steps=None, time=600.0, save_every=1)
    assert train(config, observer=None).status == "done"


def test_a_finished_run_whose_last_evaluator_dies_is_done_without_a_score(tmp_path, monkeypatch):
    messages, command = Messages(), Session.command

    def kill_at_the_evaluation(run, what):
        if what == ControlCommand.EVALUATE:
            for process in run.workers.pool.values():
                process.process.kill()
        command(run, what)

    monkeypatch.setattr(Session, "command", kill_at_the_evaluation)
    config = small_config(tmp_path, restarts=0, eval_every="1h")
    result = train(config, observer=messages)
    assert (result.status, result.val_bits_per_byte) == ("done", None)
    assert any("the end was not evaluated: worker 1" in message for message in messages)
    assert Run(Path(result.run)).read_status()["status"] == "done"


def test_the_end_is_compared_with_the_best_evaluation_before_it_and_a_resume_knows(tmp_path):
    improving = {"eval_every": 15, "keep_best": True, "lr": 1e-2}
    result = train(small_config(tmp_path, steps=20, **improving))
    run = Run(Path(result.run))
    assert checkpoint.best(run) == checkpoint.latest(run)
    best = run.read_status()["best"]
    assert (best["step"], best["bits_per_byte"]) == (20, result.val_bits_per_byte)
    worse = {"lr": 1e-30, "weight_decay": 0.0, "reset_optimizer": True}
    train(small_config(tmp_path, steps=5, resume=result.run, **{**improving, **worse}))
    assert checkpoint.best(run).name == "step-00000020"


def test_an_interrupted_run_asks_the_thread_of_its_ngram_baseline_to_end(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(Monitor, "await_ngram_baseline", lambda _, limit_s: waits.append(limit_s))
    observer = At(lambda progress: signal.raise_signal(signal.SIGINT), steps=2)
    assert train(small_config(tmp_path), observer=observer).status == "interrupted"
    assert waits == [0.0]  # with no limit it would still be counted in a notebook


def test_a_second_interrupt_names_the_newest_checkpoint_and_the_way_on(tmp_path, monkeypatch):
    def interrupt_twice(progress):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("mlxhog.base.interrupts.TOGETHER_S", 0.0)
    observer = At(interrupt_twice, steps=6)
    result = train(small_config(tmp_path, steps=100_000, save_every=2), observer=observer)
    newest = checkpoint.latest(Run(Path(result.run)))
    assert (result.status, result.checkpoint) == ("interrupted", None)
    assert result.newest_checkpoint == str(newest)
    assert newest.name in summary(result)
    assert summary(result).splitlines()[-1].endswith(Path(result.run).name)


@pytest.mark.parametrize("where", ["drain", "progress"])
def test_a_fault_of_the_supervisor_itself_saves_the_run(tmp_path, monkeypatch, where):
    method, calls = getattr(Monitor, where), []

    def fails_once(monitor, *arguments, **fields):
        if monitor.arena.counters.load("steps") >= 3 and not calls:
            calls.append(where)
            raise RuntimeError("a fault that nobody knows of")
        return method(monitor, *arguments, **fields)

    monkeypatch.setattr(Monitor, where, fails_once)
    with pytest.raises(RuntimeError, match="nobody knows"):
        train(small_config(tmp_path, steps=100_000), observer=lambda progress: None)
    assert checkpoint.load(checkpoint.latest(latest(tmp_path))).state["used"]["steps"] >= 3


def test_a_request_to_join_without_processes_is_refused_and_the_run_continues(
    tmp_path, monkeypatch
):
    def no_process(self, handle):
        raise EnvironmentLacks("no process can be started: the limit of processes is reached")

    def join(directory):
        with monkeypatch.context() as patch:
            patch.setattr(Workers, "_spawn", no_process)
            with pytest.raises(Refused, match="is reached; the run continues as it is"):
                ask(directory, "join")

    result = trained(endless(tmp_path, max_workers=4), join)
    assert (result.status, len(result.workers)) == ("interrupted", 1)


def test_the_command_prints_where_it_saved_and_exits_as_its_error_says(
    tmp_path, monkeypatch, capsys
):
    drain = Monitor.drain

    def lacks(monitor):
        if monitor.arena.counters.load("steps") >= 3:
            monkeypatch.setattr(Monitor, "drain", drain)
            raise EnvironmentLacks("the package torch cannot be loaded")
        drain(monitor)

    monkeypatch.setattr(Monitor, "drain", lacks)
    assert main(["train", *flags(small_config(tmp_path, steps=100_000))]) == 3
    error = capsys.readouterr().err
    assert "cannot be loaded; saved " in error
    assert "resume with mlxhog train --resume" in error
