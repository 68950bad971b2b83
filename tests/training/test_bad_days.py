"""Full disks, interrupts, frozen workers and steps without an end: a message, nothing lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlxhog import TrainConfig, train
from mlxhog.checkpoint import checkpoint, run
from mlxhog.config.options import options, to_flag
from mlxhog.errors import CheckpointError, EnvironmentLacks, WorkerFailed
from mlxhog.training import run as runs
from tests.processes import alive, workers_of
from tests.threads import wait_until
from tests.training import asking
from tests.training.asking import trained, until
from tests.training.small import Messages, checkpoint_of, end_the_time_when, small_config
from tests.training.test_deaths import assert_no_segment_stays


def flags(config):
    """The command-line words for this configuration."""
    changed = [
        (to_flag(name), spec.spell(getattr(config, name)))
        for name, spec in options(TrainConfig).items()
        if getattr(config, name) != spec.default
    ]
    return [f"{flag}={value}" for flag, value in changed]


class Command:
    """`mlxhog train --json` in a child process, with its workers' ids."""

    def __init__(self, config):
        self.runs = Path(config.out)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlxhog", "train", "--json", *flags(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.workers = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """End it, in success or failure; its workers follow."""
        self.process.kill()
        self.process.wait()

    def train(self):
        """Wait until the run has taken steps."""
        wait_until(lambda: any(self.runs.glob("*/metrics.jsonl")), 90, "a training run")
        self.workers = workers_of(self.process.pid)

    def end(self):
        """Exit code, the line of JSON, and messages."""
        out, err = self.process.communicate(timeout=90)
        assert "Traceback" not in err
        assert not any(map(alive, self.workers))
        assert_no_segment_stays()
        return self.process.returncode, json.loads(out), err


@pytest.fixture
def endless(tmp_path):
    return small_config(tmp_path, workers="mlx:cpu*2", steps=1_000_000, slow="0=5,1=5")


@pytest.mark.slow
def test_an_interrupt_saves_and_ends_with_130(endless):
    with Command(endless) as command:
        command.train()
        for pid in (command.process.pid, *command.workers):  # to the group, as a terminal does
            os.kill(pid, signal.SIGINT)
        code, result, output = command.end()
    assert code == 130
    assert result["status"] == "interrupted"
    finishing, saved = (
        "finishing the step; again stops at once\n",
        f"\nsaved step-{result['steps']:08}\n",
    )
    assert output.index(finishing) < output.index(saved)
    assert checkpoint.load(Path(str(result["checkpoint"]))).step == result["steps"]


@pytest.mark.slow
def test_an_interrupt_while_workers_start_ends_at_once_and_says_nothing_was_saved(endless):
    with Command(endless) as command:
        wait_until(lambda: bool(workers_of(command.process.pid)), 90, "workers")
        command.workers = workers_of(command.process.pid)
        for pid in (command.process.pid, *command.workers):
            os.kill(pid, signal.SIGINT)
        code, result, _ = command.end()
    assert (code, result["status"], result["checkpoint"]) == (130, "interrupted", None)


@pytest.mark.slow
def test_a_frozen_worker_is_replaced(tmp_path):
    frozen = []

    def freeze(directory):
        frozen.append(until(directory, lambda workers: workers[1]["steps"] > 0)[1]["pid"])
        os.kill(frozen[0], signal.SIGSTOP)
        until(directory, lambda workers: workers[1]["pid"] not in (0, frozen[0]))

    config = asking.endless(
        tmp_path,
        strategy="sync",  # the other worker waits
        workers="mlx:cpu*2",
        heartbeat_timeout_s=2.0,
        restarts=50,
    )
    result = trained(config, freeze)
    assert result.restarts >= 1
    assert not alive(frozen[0])


def full_disk_after(saves, monkeypatch):
    """Let checkpoints fail as on a full disk, after a number that succeed."""
    real, left = checkpoint.save, [saves]

    def save(*arguments, **fields):
        left[0] -= 1
        if left[0] < 0:
            raise EnvironmentLacks("checkpoint needs 9 bytes, 1 is free; free some space")
        return real(*arguments, **fields)

    monkeypatch.setattr(checkpoint, "save", save)


@pytest.mark.slow
def test_a_full_disk_at_the_end_loses_no_result_and_no_earlier_checkpoint(tmp_path, monkeypatch):
    first = train(small_config(tmp_path, steps=5))
    full_disk_after(0, monkeypatch)
    messages = Messages()
    config = small_config(tmp_path, steps=7, resume=first.run, eval_every="1h")
    result = train(config, observer=messages)
    assert (result.status, result.steps, result.checkpoint) == ("unsaved", 12, None)
    assert result.val_bits_per_byte is not None
    status = run.Run(Path(first.run)).read_status()
    assert (status["status"], status["steps"]) == ("unsaved", 12)
    assert "free some space" in status["error"]
    assert any("no checkpoint: " in message for message in messages)
    assert checkpoint.load(checkpoint.latest(run.Run(Path(first.run)))).step == 5


@pytest.mark.slow
def test_a_full_disk_during_training_is_reported_and_training_continues(tmp_path, monkeypatch):
    full_disk_after(1, monkeypatch)

    def full(*_):
        raise EnvironmentLacks("the disk became full")

    monkeypatch.setattr(run.Run, "append_metrics", full)
    messages = Messages()
    config = small_config(tmp_path, steps=100, save_every=20)
    result = train(config, observer=messages)
    assert (result.status, result.steps) == ("unsaved", 100)
    assert any(m.endswith("training continues") for m in messages)
    checkpoint_of(result)


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
def test_a_run_resumes_from_an_earlier_checkpoint(tmp_path):
    first = train(small_config(tmp_path, steps=3))
    second = train(small_config(tmp_path, steps=3, resume=first.run))
    again = train(small_config(tmp_path, steps=3, resume=str(first.checkpoint)))
    assert again.run == second.run
    assert again.checkpoint == second.checkpoint
    one, other = (checkpoint_of(r).params for r in (second, again))
    assert all(np.array_equal(one[name], other[name]) for name in one)


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
        second = progress.workers[1]
        if progress.step >= 1 and not stopped:
            stopped.append(second.pid)
            os.kill(second.pid, signal.SIGSTOP)

    config = small_config(
        tmp_path,
        workers="mlx:cpu*2",
        write="racy",  # without locks, for which the other worker would wait
        steps=None,
        time=600.0,
        eval_every="1h",
        sample_every="1h",
    )
    end_the_time_when(monkeypatch, lambda: bool(stopped))
    result = train(config, observer=stop_the_second_worker)
    assert stopped
    assert (result.status, result.val_at_end, result.restarts) == ("done", True, 0)
    assert result.sample.startswith("The")
    state = checkpoint_of(result).state
    ledger = state["ledger"]
    tickets = ledger["epoch"] * ledger["n"] + ledger["watermark"] + len(ledger["done"])
    # A worker that was stopped amid its write counts as torn, as after a kill there.
    assert result.steps <= tickets <= result.steps + 1
    assert state["over"] is True
