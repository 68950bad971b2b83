"""A run ends: in the time it was given, with an evaluation that says how much it covers."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import train
from mlxhog.arena.control import RECORD, Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.backends.backend import Grads
from mlxhog.checkpoint import checkpoint
from mlxhog.cli.train import summary
from mlxhog.data.batch import Batch
from mlxhog.report.metrics import Progress
from mlxhog.training import checkpoints, supervisor, trainer, worker
from mlxhog.training.ending import Deadlines
from mlxhog.training.job import Job
from mlxhog.training.plan import Plan
from mlxhog.training.steps import Steps
from tests.training.small import small_config

pytestmark = pytest.mark.slow


def test_the_last_evaluation_needs_no_record_in_any_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All records are lost, as where the supervisor stalls while workers fill their rings.
    monkeypatch.setattr(Ring, "drain", lambda ring: np.empty(0, RECORD))
    result = train(small_config(tmp_path, steps=4, eval_every="1h"))
    assert (result.status, result.val_share) == ("done", 1.0)
    assert result.val_bits_per_byte is not None


def test_an_evaluation_without_time_says_that_it_covers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadlines, "evaluation_ns", lambda deadlines, parts, trained_s: 1)
    result = train(small_config(tmp_path, steps=4, eval_every="1h"))
    assert (result.status, result.val_share, result.val_bits_per_byte) == ("done", 0.0, None)
    assert result.to_json()["val_share"] == 0.0
    assert "held-out text: no time was left to evaluate it" in summary(result)


def test_an_evaluation_that_was_cut_says_how_much_it_covers(tmp_path: Path) -> None:
    result = train(small_config(tmp_path, steps=4, eval_every="1h"))
    assert result.val_tokens == 3113
    assert "bits per byte\n" in summary(result)
    cut = type(result)(**{**vars(result), "val_share": 0.38, "val_tokens": 1183})
    assert "over 1.18k tokens, 38% of it, for which there was time" in summary(cut)
    early = type(result)(**{**vars(result), "val_share": 0.0})
    assert "while training; no time was left to evaluate the end" in summary(early)


def test_a_slow_start_shortens_a_training_unless_it_is_to_have_the_whole_time() -> None:
    began_ns = monotonic_ns() - int(40e9)
    cut, whole = (Deadlines(began_ns, 60.0, whole=whole) for whole in (False, True))
    assert cut.training_s(save_s=0.0, evaluates=False) == pytest.approx(60 + 10 - 3 - 40, abs=1)
    assert whole.training_s(save_s=0.0, evaluates=False) == 60.0


def test_a_step_that_goes_on_when_the_time_is_over_is_abandoned_and_its_batch_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "GRACE_S", 0.5)
    stopped: list[int] = []

    def stop_the_second_worker(progress: Progress) -> None:
        second = progress.workers[1]
        if progress.step >= 4 and not stopped:
            stopped.append(second.pid)
            os.kill(second.pid, signal.SIGSTOP)

    config = small_config(
        tmp_path,
        workers="mlx:cpu*2",
        write="racy",  # without locks, for which the other worker would wait
        steps=None,
        time=1.2,
        eval_every="1h",
        sample_every="1h",
    )
    result = train(config, observer=stop_the_second_worker)
    assert stopped
    assert (result.status, result.val_share, result.restarts) == ("done", 1.0, 0)
    assert result.checkpoint is not None
    state = checkpoint.load(Path(result.checkpoint)).state
    ledger = state["ledger"]
    tickets = ledger["epoch"] * ledger["n"] + ledger["watermark"] + len(ledger["done"])
    # One that was stopped amid its write counts as torn, which a kill there always does.
    assert result.steps <= tickets <= result.steps + 1
    assert state["over"] is True


def with_a_long_first_step(job: Job) -> None:
    """A worker whose gradients take two seconds. Children import it."""
    whole = Steps._loss_and_grads

    def slow(steps: Steps, batches: list[Batch]) -> tuple[float, Grads]:
        time.sleep(2.0)
        return whole(steps, batches)

    Steps._loss_and_grads = slow  # type: ignore[method-assign]
    worker.main(job)


def test_a_first_step_is_waited_for_as_long_as_the_run_still_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "GRACE_S", 0.1)
    monkeypatch.setattr(supervisor, "worker", SimpleNamespace(main=with_a_long_first_step))
    result = train(small_config(tmp_path, steps=None, time=1.0))
    assert (result.status, result.steps) == ("done", 1)
    late = Deadlines(monotonic_ns() - int(9e9), 6.0)
    assert late.first_step_s(1.0) == pytest.approx(6 + 10 - 3 - 9 - 1, abs=1)


def test_the_checkpoint_that_time_is_left_for_is_as_large_as_the_one_that_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    n_bytes = checkpoints.n_bytes

    def noted(plan: Plan, n_slots: int) -> int:
        sizes.append(n_bytes(plan, n_slots))
        return sizes[-1]

    monkeypatch.setattr(checkpoints, "n_bytes", noted)
    options = {"workers": "mlx:cpu*2", "strategy": "sync", "steps": 2, "time": 60}
    result = train(small_config(tmp_path, **options))
    assert result.checkpoint is not None
    saved = sum(file.stat().st_size for file in Path(result.checkpoint).glob("*.safetensors"))
    assert sizes[0] == pytest.approx(saved, rel=0.1)


def test_training_leaves_time_for_a_large_checkpoint_but_takes_a_fifth_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "n_bytes", lambda plan, n_slots: 10**15)
    reports: list[Progress] = []
    result = train(small_config(tmp_path, steps=None, time=2.0), observer=reports.append)
    training = [p for p in reports if 0.0 < p.budget_fraction < 1.0]
    assert training
    for progress in training:
        assert progress.budget_fraction == pytest.approx(progress.elapsed_s / 0.4, rel=0.05)
    assert result.checkpoint is not None
