"""Deaths at any instruction, full disks and lost time: a run continues, or can be resumed."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from mlxhog import train
from mlxhog.arena.control import Command
from mlxhog.arena.workers import MAX_NONFINITE, State
from mlxhog.checkpoint import checkpoint, run
from mlxhog.checkpoint.run import Run
from mlxhog.errors import CheckpointError, EnvironmentLacks, WorkerFailed
from mlxhog.training import run as runs
from mlxhog.training.session import Session
from tests.processes import alive, workers_of
from tests.threads import wait_until
from tests.training.asking import endless, trained, until
from tests.training.small import Messages, checkpoint_of, end_the_time_when, small_config

STEPS = 100_000
RUN_IN_CHILD = f"""
import sys
from pathlib import Path
from mlxhog import train
from tests.training.small import small_config
if __name__ == "__main__":
    options = dict(workers="mlx:cpu*2", steps={STEPS}, save_every="300ms", restarts=1000)
    train(small_config(Path(sys.argv[1]), resume=(sys.argv[2:] or [None])[0], **options))
"""
FORKED = """
from mlxhog.arena import worker_pool
from tests import forked
forked.CONTEXT.set_forkserver_preload(["mlxhog.training.worker"])
worker_pool.get_context = lambda method: forked.CONTEXT
"""
"""Put before it, workers start in milliseconds: most of them die while they train."""
ROOT = Path(__file__).parents[2]


def name_of(options):
    return " ".join(map(str, options.values()))


def assert_no_segment_stays():
    """A segment has a name while it is made: another test's may be seen, but only for a moment."""

    def segments():
        names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []  # macOS lists none
        return {name for name in names if "mh-" in name or "mlxhog" in name}

    seen = segments()
    wait_until(lambda: not seen & segments(), 60, f"{seen} to have no name")


class Killer:
    """Kills workers of a run that trains in this process, each after a step of its own.

    From a kill until every worker is up again none may take a batch, if another kill is to come: so
    the run cannot end before it, however slow the machine is. The next victim is drawn, or is the
    worker of a backend.
    """

    def __init__(self, kills, backends=(), before=lambda: None, number=signal.SIGKILL):
        self.left, self.backends, self.number = kills, backends, number
        self._before, self._random, self._killed = before, random.Random(0), set[int]()
        self._slot = self._steps = 0  # of the next victim, when it was chosen

    def train(self, config, observer=None):
        """Train, and kill."""
        poll = Session.poll

        def poll_and_kill(session, doing=None):
            poll(session, doing)
            if self.left:
                self._look(session)

        with mock.patch.object(Session, "poll", poll_and_kill):
            result = train(config, observer=observer)
        assert self.left == 0, "the run ended before every kill was done"
        return result

    def _look(self, session):
        entries, counters = session.arena.workers, session.arena.counters
        if not counters.load("start_ns"):
            return
        up = {
            seat.slot: seat.spec.backend
            for seat in session.seats
            if session.entry(seat).state == State.RUNNING
            and session.entry(seat).pid not in self._killed
        }
        if len(up) < len(session.seats):
            counters.store("pause", 1)
            return
        if not self._slot:
            name = self.backends[self.left - 1] if self.backends else ""
            self._slot = self._random.choice([k for k in up if name in ("", up[k])])
            self._steps = entries.entry(self._slot).steps
            counters.store("pause", 0)
        victim = entries.entry(self._slot)
        for _ in range(1000):  # the steps of a small run take less than the supervisor's poll
            if victim.steps > self._steps:
                break
            time.sleep(0.0005)
        else:
            return
        self._before()
        time.sleep(self._random.random() * min(0.02, victim.step_s))  # into any part of a step
        os.kill(victim.pid, self.number)
        self._killed.add(victim.pid)
        self.left -= 1
        self._slot = 0
        counters.store("pause", int(self.left > 0))


def train_and_kill(config, kills=1):
    """A killed worker is replaced, and the run reaches its last step."""
    result = Killer(kills=kills).train(config)
    assert result.status == "done"
    assert kills - 1 <= result.restarts <= kills  # the last may die when no step is left
    assert result.steps == config.steps  # exact: a torn step counts, a returned one is repeated
    assert result.torn <= kills
    assert_no_segment_stays()
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "hogwild", "steps": 60},
        {"strategy": "sync", "steps": 40, "sync_shares": "speed", "slow": "1=3",
         "optimizer": "muon"},
        {"strategy": "locked", "steps": 400},  # the lock may return to one worker often
        {"strategy": "sim", "workers": "mlx:cpu", "sim_staleness": "uniform:0:3", "steps": 60},
    ],
    ids=name_of,
)  # fmt: skip
def test_a_killed_worker_is_replaced_and_the_run_reaches_its_last_step(tmp_path, options):
    result = train_and_kill(small_config(tmp_path, **{"workers": "mlx:cpu*2", **options}), kills=2)
    assert result.lost_update_rate == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "serial", "workers": "mlx:cpu"},
        {"strategy": "sync", "sync_shares": "speed", "optimizer": "muon"},
        {"strategy": "diloco", "average_every": 10, "replicas": 1},
        {"blocks": "disjoint", "predict": "none"},
        {"async_after": 0.5},
        {"overlap": True},
    ],
    ids=name_of,
)
def test_a_run_whose_workers_all_die_together_reaches_its_last_step(trained_with_kills, options):
    result = trained_with_kills(("step", 2), **{"steps": 30, **options})
    assert result.restarts == len(result.workers)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "steps"), [("sync", 30), ("avg_runs", 50)])
def test_workers_that_die_at_every_command_cost_no_step_and_no_evaluation(
    trained_with_kills, strategy, steps
):
    moments = ("pause", Command.REST, Command.EVALUATE, Command.SAMPLE)
    result = trained_with_kills(
        *((moment, 2) for moment in moments), strategy=strategy, steps=steps, restarts=4,
        save_every=3 * steps // 10, eval_every="1h", sample_every="1h",
    )  # fmt: skip
    assert result.val_bits_per_byte is not None
    assert result.restarts >= 4  # after `pause` and `REST` the run needs both


def start_child(tmp_path, *resume, forked=False):
    script = tmp_path / "child.py"
    script.write_text((FORKED if forked else "") + RUN_IN_CHILD)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(script), str(tmp_path), *map(str, resume)]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)


def run_directory(tmp_path):
    """The run below a folder, once its first line of metrics is whole."""
    files = (tmp_path / "runs").glob
    wait_until(
        lambda: any("\n" in file.read_text() for file in files("*/metrics.jsonl")),
        60,
        "a training run",
    )
    return next(files("*/metrics.jsonl")).parent


@pytest.mark.slow
def test_gradients_that_are_not_finite_are_dropped_counted_and_end_the_run(tmp_path):
    # a step size this large destroys the parameters at the first update
    config = small_config(
        tmp_path, optimizer="sgd", clip=0, lr=1e30, schedule="constant", warmup=0, steps=1000
    )
    result = train(config)
    assert result.status == "diverged"
    assert result.dropped_steps == MAX_NONFINITE


UNBORN = re.compile(
    rb"Traceback [^\n]*\n(  [^\n]*\n)*?  [^\n]*"
    rb"(spawn.py[^\n]*in spawn_main|forkserver.py[^\n]*in main)\n(  [^\n]*\n)*"
    rb"(EOFError[^\n]*|_pickle.UnpicklingError: pickle data was truncated)\n"
)
"""Python's error where a process waits for data of its parent, which is killed before it sends."""


@pytest.mark.slow
def test_random_deaths_leave_no_hang_no_orphan_and_a_run_that_resumes(tmp_path):
    """SIGKILL of one worker, of all, or of the supervisor, at random moments, 12 times.

    The workers of the first supervisor are spawned, and often die before they train.
    """
    chosen = random.Random(1)
    folder = None
    deaths = rounds = 0
    while deaths < 12:
        rounds += 1
        forked = rounds > 1
        child = start_child(tmp_path, *([] if folder is None else [folder]), forked=forked)
        try:
            pids = []
            if folder is None:  # the first child lives until there is something to resume
                folder = run_directory(tmp_path)
                wait_until((folder / "checkpoints" / "latest").exists, 60, "a checkpoint")
            kills_here = chosen.randint(5, 8)
            while kills_here and child.poll() is None:
                time.sleep(chosen.random() * (0.1 if forked else 0.3))
                children = workers_of(child.pid)
                if not children:
                    continue
                pids += children
                for pid in children if chosen.random() < 0.5 else [chosen.choice(children)]:
                    if alive(pid):
                        os.kill(pid, signal.SIGKILL)
                        deaths += 1
                kills_here -= 1
        finally:
            child.kill()
            _, errors = child.communicate()
            deaths += 1
        wait_until(lambda p=pids: not any(map(alive, p)), 60, "the workers to leave")
        errors = UNBORN.sub(b"", errors)
        assert b"Traceback" not in errors, errors.decode()
    assert len(list((tmp_path / "runs").iterdir())) == 1  # it was one run all along
    assert_no_segment_stays()
    state = checkpoint.load(checkpoint.latest(Run(folder))).state
    before = state["used"]["steps"]
    assert state["left"]["steps"] == STEPS - before
    result = train(small_config(tmp_path, workers="mlx:cpu*2", steps=5, resume=str(folder)))
    assert (result.status, result.steps) == ("done", before + 5)


# -- full disks, frozen workers, steps without an end ----------------------------------------------


@pytest.mark.slow
def test_a_frozen_worker_is_replaced(tmp_path):
    frozen = []

    def freeze(directory):
        frozen.append(until(directory, lambda workers: workers[1]["steps"] > 0)[1]["pid"])
        os.kill(frozen[0], signal.SIGSTOP)
        until(directory, lambda workers: workers[1]["pid"] not in (0, frozen[0]))

    waiting = {"strategy": "sync", "workers": "mlx:cpu*2"}  # the other worker waits
    config = endless(tmp_path, heartbeat_timeout_s=1.0, restarts=50, **waiting)
    result = trained(config, freeze)
    assert result.restarts >= 1
    assert not alive(frozen[0])


@pytest.mark.slow
def test_a_full_disk_at_the_end_loses_no_result_and_no_earlier_checkpoint(tmp_path, monkeypatch):
    first = train(small_config(tmp_path, steps=5))

    def save(*arguments, **fields):
        raise EnvironmentLacks("checkpoint needs 9 bytes, 1 is free; free some space")

    monkeypatch.setattr(checkpoint, "save", save)
    messages, stored = Messages(), run.Run(Path(first.run))
    config = small_config(tmp_path, steps=7, resume=first.run, eval_every="1h")
    result = train(config, observer=messages)
    assert (result.status, result.steps, result.checkpoint) == ("unsaved", 12, None)
    assert result.val_bits_per_byte is not None
    status = stored.read_status()
    assert (status["status"], status["steps"]) == ("unsaved", 12)
    assert "free some space" in status["error"]
    assert any("no checkpoint: " in message for message in messages)
    assert checkpoint.load(checkpoint.latest(stored)).step == 5


@pytest.mark.slow
def test_workers_that_keep_dying_leave_a_checkpoint(tmp_path):
    def kill(progress):
        for worker in progress.workers:
            if progress.step and worker.state == "running" and alive(worker.pid):
                os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(WorkerFailed, match="resume with mlxhog train --resume"):
        train(small_config(tmp_path, steps=100_000, restarts=0), observer=kill)
    (listed,) = run.list_runs(tmp_path / "runs")
    assert checkpoint.load(checkpoint.latest(listed)).step > 0


@pytest.mark.slow
def test_parameters_that_are_not_finite_end_the_run_as_diverged(tmp_path, monkeypatch):
    def refuse(*_, **fields):
        raise CheckpointError("lm_head.weight has numbers that are not finite")

    monkeypatch.setattr(checkpoint, "save", refuse)
    result = train(small_config(tmp_path, steps=2))
    assert result.status == "diverged"
    assert "lower --lr" in str(result.error)


@pytest.mark.slow
def test_time_limits_training_and_the_start_is_shown_beside_it(tmp_path):
    result = train(small_config(tmp_path, steps=2, time=3000))
    assert result.to_json()["start_s"] == round(result.start_s, 3) > 0
    assert result.start_s < result.first_step_s < result.start_s + result.seconds
    short = train(small_config(tmp_path, steps=None, time=0.3))
    assert short.steps >= 1
    assert short.seconds < 0.3 + runs.FIRST_STEP_S


@pytest.mark.slow
def test_a_step_that_exceeds_the_time_is_abandoned_and_its_batch_returned(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "GRACE_S", 0.5)
    stopped = []

    def stop_the_second_worker(progress):
        if progress.step >= 1 and not stopped:
            stopped.append(progress.workers[1].pid)
            os.kill(stopped[0], signal.SIGSTOP)

    config = small_config(
        tmp_path, workers="mlx:cpu*2", steps=None, time=600.0, eval_every="1h", sample_every="1h",
        write="racy",  # without locks, for which the other worker would wait
    )  # fmt: skip
    end_the_time_when(monkeypatch, lambda: bool(stopped))
    result = train(config, observer=stop_the_second_worker)
    assert (result.status, result.val_at_end, result.restarts) == ("done", True, 0)
    assert result.sample.startswith("The")
    state = checkpoint_of(result).state
    ledger = state["ledger"]
    tickets = ledger["epoch"] * ledger["n"] + ledger["watermark"] + len(ledger["done"])
    # A worker that was stopped amid its write counts as torn, as after a kill there.
    assert result.steps <= tickets <= result.steps + 1
    assert state["over"] is True


@pytest.mark.slow
def test_a_full_disk_during_training_is_reported_and_training_continues(tmp_path, monkeypatch):
    saved, real = [], checkpoint.save

    def save(*arguments, **fields):
        if saved:
            raise EnvironmentLacks("checkpoint needs 9 bytes, 1 is free; free some space")
        saved.append(real(*arguments, **fields))
        return saved[0]

    def full(*_):
        raise EnvironmentLacks("the disk became full")

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(run.Run, "append_metrics", full)
    messages = Messages()
    result = train(small_config(tmp_path, steps=100, save_every=20), observer=messages)
    assert (result.status, result.steps) == ("unsaved", 100)
    assert any(m.endswith("training continues") for m in messages)
    checkpoint_of(result)
