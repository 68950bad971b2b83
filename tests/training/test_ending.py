"""A run ends with its evaluation, a checkpoint and a sample, whatever its workers do."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.checkpoint import checkpoint
from mlxhog.report.metrics import Activity
from mlxhog.training import run as runs
from mlxhog.training import worker
from mlxhog.training.evaluation import TextJobs
from tests.training.small import end_the_time_when, small_config


@pytest.mark.slow
def test_time_limits_training_and_the_start_is_shown_beside_it(tmp_path):
    result = train(small_config(tmp_path, steps=2, time=3000))
    assert result.to_json()["start_s"] == round(result.start_s, 3) > 0
    assert result.start_s < result.first_step_s < result.start_s + result.seconds
    short = train(small_config(tmp_path, steps=None, time=0.3))
    assert short.steps >= 1
    assert short.seconds < 0.3 + runs.FIRST_STEP_S


@pytest.mark.slow
def test_another_worker_writes_the_sample_where_one_dies_over_it(tmp_path, monkeypatch):
    killed = []

    def kill_the_sampling_worker(progress):
        if progress.doing is not None and progress.doing.activity == Activity.SAMPLING:
            killed[len(killed) :] = [] if killed else [progress.workers[0].pid]
            monkeypatch.setattr(worker, "main", plain)
            with suppress(ProcessLookupError):
                os.kill(killed[0], signal.SIGKILL)

    plain = worker.main
    monkeypatch.setattr(worker, "main", that_never_ends_a_sample)
    config = small_config(tmp_path, steps=4, sample_every="1h")
    result = train(config, observer=kill_the_sampling_worker)
    assert killed
    assert result.sample.startswith("The")


def that_never_ends_a_sample(job):
    """A worker that hangs over a sample. Children import it."""
    TextJobs._sample = lambda jobs: time.sleep(600)
    worker.main(job)


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
    state = checkpoint.load(Path(result.checkpoint)).state
    ledger = state["ledger"]
    tickets = ledger["epoch"] * ledger["n"] + ledger["watermark"] + len(ledger["done"])
    # A worker that was stopped amid its write counts as torn, as after a kill there.
    assert result.steps <= tickets <= result.steps + 1
    assert state["over"] is True
