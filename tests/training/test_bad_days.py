"""Full disks, frozen workers and steps without an end: a message, nothing lost."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from mlxhog import train
from mlxhog.checkpoint import checkpoint, run
from mlxhog.errors import CheckpointError, EnvironmentLacks, WorkerFailed
from mlxhog.training import run as runs
from tests.processes import alive
from tests.training import asking
from tests.training.asking import trained, until
from tests.training.small import Messages, checkpoint_of, end_the_time_when, small_config


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
        heartbeat_timeout_s=1.0,
        restarts=50,
    )
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
    assert (again.run, again.checkpoint) == (second.run, second.checkpoint)
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
        if progress.step >= 1 and not stopped:
            stopped.append(progress.workers[1].pid)
            os.kill(stopped[0], signal.SIGSTOP)

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
    assert (result.status, result.val_at_end, result.restarts) == ("done", True, 0)
    assert result.sample.startswith("The")
    state = checkpoint_of(result).state
    ledger = state["ledger"]
    tickets = ledger["epoch"] * ledger["n"] + ledger["watermark"] + len(ledger["done"])
    # A worker that was stopped amid its write counts as torn, as after a kill there.
    assert result.steps <= tickets <= result.steps + 1
    assert state["over"] is True
