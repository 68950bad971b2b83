"""Deaths at any instruction, full disks and lost time: a run continues, or can be resumed.

Many deaths at random moments, of supervisors too, are the soak of `tests/soak/kills.py`.
"""

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from mlxhog.arena.control import ControlCommand
from mlxhog.arena.requests import ask
from mlxhog.arena.workers import MAX_NONFINITE
from mlxhog.checkpoint import checkpoint, run
from mlxhog.errors import CheckpointError, EnvironmentLacks
from mlxhog.training.supervisor.training import train
from tests.processes import alive
from tests.training.asking import endless, trained, until
from tests.training.small import Messages, checkpoint_of, lasts_until, small_config

EVALUATES = {"save_every": 12, "eval_every": "1h", "sample_every": "1h"}
COMMANDS = ("pause", ControlCommand.DRAIN, ControlCommand.EVALUATE, ControlCommand.SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moments", "options"),
    [
        (["step"], {"strategy": "serial", "workers": "mlx:cpu"}),
        (["step"], {"strategy": "sync", "sync_shares": "speed", "optimizer": "muon"}),
        (["step"], {"strategy": "collect", "optimizer": "muon", "grad_accumulation": 3}),
        (["step"], {"strategy": "diloco", "average_every": 10, "replicas": 1}),
        (["step"], {"blocks": "disjoint", "predict": "none"}),
        (["step"], {"async_after": 0.5}),
        (["step"], {"overlap": True}),
        *((COMMANDS, {"strategy": one, **EVALUATES}) for one in ("sync", "collect", "avg_runs")),
    ],
    ids=lambda of: " ".join(map(str, of.values())) if isinstance(of, dict) else str(len(of)),
)
def test_a_run_whose_workers_all_die_at_a_moment_loses_no_step_and_no_evaluation(
    trained_with_kills, moments, options
):
    result = trained_with_kills(*((one, 2) for one in moments), steps=40, **options)
    assert (result.status, result.steps) == ("done", 40)
    state = checkpoint_of(result).state
    assert (state["used"]["steps"], state["left"]["steps"]) == (40, 0)
    assert result.torn or not result.lost_update_rate
    # After `pause` and `DRAIN` the run needs all workers.
    assert result.restarts >= min(2, len(moments)) * len(result.workers)
    assert (result.val_bits_per_byte is None) == ("eval_every" not in options)


@pytest.mark.slow
def test_gradients_that_are_not_finite_are_dropped_counted_and_end_the_run(tmp_path):
    # a learning rate this large destroys the parameters at the first update
    options = {"optimizer": "sgd", "lr": 1e30, "clip": 0, "schedule": "constant", "warmup": 0}
    result = train(small_config(tmp_path, steps=1000, **options))
    assert result.status == "diverged"
    assert result.dropped_steps == MAX_NONFINITE


@pytest.mark.slow
def test_a_frozen_worker_is_replaced(tmp_path):
    frozen = []

    def freeze(directory):
        while not frozen:
            pid = until(directory, lambda workers: workers[1]["steps"] > 0)[1]["pid"]
            with contextlib.suppress(ProcessLookupError):  # it was too slow, and is replaced, too
                os.kill(pid, signal.SIGSTOP)
                frozen.append(pid)
        until(directory, lambda workers: workers[1]["pid"] not in (0, frozen[0]))

    waiting = {"strategy": "sync", "workers": "mlx:cpu*2"}  # the other worker waits
    # On a busy machine a worker may often get no core for a second.
    config = endless(tmp_path, heartbeat_timeout=1.0, restarts=100_000, **waiting)
    result = trained(config, freeze)
    assert result.restarts >= 1
    assert not alive(frozen[0])


@pytest.mark.slow
def test_a_run_needs_no_token_cache_for_new_workers_evaluations_and_checkpoints(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def act(directory):
        pid = until(directory, lambda workers: workers[1]["steps"] > 0)[1]["pid"]
        shutil.rmtree(tmp_path / "cache")
        os.kill(pid, signal.SIGKILL)
        before = until(directory, lambda workers: workers[1]["pid"] not in (0, pid))[1]["steps"]
        until(directory, lambda workers: workers[1]["steps"] > before)
        assert Path(ask(directory, "checkpoint")["path"]).is_dir()

    result = trained(endless(tmp_path, eval_every="1h", save_every="off"), act)
    assert (result.status, result.restarts) == ("interrupted", 1)
    assert result.val_bits_per_byte is not None
    # The kill may hit an update: its step is counted, and its version is not.
    assert checkpoint_of(result).step == result.steps - result.torn


def is_of(message, what):
    return message.startswith(what) and message.endswith("; training continues")


@pytest.mark.slow
def test_a_full_disk_in_training_and_at_its_end_loses_no_result_and_no_earlier_checkpoint(
    tmp_path, monkeypatch
):
    first = train(small_config(tmp_path, steps=5))

    def full(*arguments, **fields):
        raise EnvironmentLacks("this needs 9 bytes, 1 is free; free some space")

    messages, stored = Messages(), run.Run(Path(first.run))
    monkeypatch.setattr(checkpoint, "save", full)
    monkeypatch.setattr(run.Run, "append_metrics", full)
    lasts_until(monkeypatch, lambda: any(is_of(m, "no checkpoint: ") for m in messages))
    config = small_config(tmp_path, steps=95, resume=first.run, eval_every="1h", save_every=20)
    result = train(config, observer=messages)
    assert (result.status, result.steps, result.checkpoint) == ("unsaved", 100, None)
    assert result.val_bits_per_byte is not None
    status = stored.read_status()
    assert (status["status"], status["steps"]) == ("unsaved", 100)
    assert "free some space" in status["error"]
    assert any(is_of(message, "no metrics: ") for message in messages)
    assert checkpoint.load(checkpoint.latest(stored)).step == 5


@pytest.mark.slow
def test_parameters_that_are_not_finite_end_the_run_as_diverged(tmp_path, monkeypatch):
    def refuse(*_, **fields):
        raise CheckpointError("lm_head.weight has numbers that are not finite")

    monkeypatch.setattr(checkpoint, "save", refuse)
    result = train(small_config(tmp_path, steps=2))
    assert result.status == "diverged"
    assert "lower --lr" in str(result.error)


@pytest.mark.slow
def test_a_score_that_is_not_finite_ends_the_run_as_diverged_and_asks_for_no_sample(tmp_path):
    result = train(
        small_config(tmp_path, steps=8, lr=1e30, clip=0, optimizer="sgd", eval_every="100")
    )
    assert result.status == "diverged"
    assert "validation text is not finite" in str(result.error)
    assert result.to_json()["sample"] is None


@pytest.mark.slow
def test_time_limits_training_and_the_start_is_shown_beside_it(tmp_path, deadline):
    result = train(small_config(tmp_path, steps=2, time=3000))
    assert result.to_json()["start_s"] == round(result.start_s, 3) > 0
    assert result.start_s < result.first_step_s < result.start_s + result.seconds

    def observe(progress):
        if progress.step >= 1 and not deadline:
            deadline.append(progress.step)

    short = train(small_config(tmp_path, steps=None, time=600.0), observer=observe)
    assert (short.status, short.steps >= 1) == ("done", True)
