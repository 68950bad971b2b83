"""Held-out evaluations during training: the best, its checkpoint, and early stopping."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import TrainConfig, train
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.cli import main
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.report.metrics import Evaluation
from mlxhog.training.evaluation import HeldOutWatch
from mlxhog.training.plan import make_plan
from tests.threads import wait_until
from tests.training.small import small_config
from tests.training.test_deaths import ROOT, run_directory


def looked(watch, scores):
    """Let a watch look at evaluations; each is its bits, and whether a save of it works."""
    monitor, saves, ends = SimpleNamespace(evaluations=0), [], []
    for step, (bits, fits) in enumerate(scores):
        monitor.evaluations += 1
        monitor.evaluation = Evaluation(val_bits_per_byte=bits, val_step=step)

        def save(bits=bits, fits=fits):
            saves.append(bits)
            return fits

        ends.append(watch.look(monitor, save, print))
    return saves, ends


def test_patience_counts_evaluations_without_a_new_best():
    watch = HeldOutWatch(TrainConfig(eval_every=5, patience=2), None, "")
    saves, ends = looked(watch, [(3.0, True), (2.5, True), (2.5, True), (2.6, True)])
    assert (saves, ends) == ([3.0, 2.5], [False, False, False, True])
    assert (watch.bits_per_byte, watch.step) == (2.5, 1)


def test_a_best_that_could_not_be_saved_keeps_no_worse_one_from_being_saved():
    watch = HeldOutWatch(TrainConfig(eval_every=5, keep_best=True), None, "")
    saves, _ = looked(watch, [(3.0, True), (1.0, False), (2.0, True), (2.5, True)])
    assert saves == [3.0, 1.0, 2.0]
    assert (watch.bits_per_byte, watch.step, watch.since) == (2.0, 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["hogwild", "sync", "local_sgd"])
def test_epochs_are_passes_over_the_text(tmp_path, strategy):
    options = {"steps": None, "epochs": 2, "workers": "mlx:cpu*2"}
    if strategy == "local_sgd":
        options["average_every"] = 4
    config = small_config(tmp_path, seq_len=64, batch_size=8, strategy=strategy, **options)
    plan = make_plan(config)
    tickets = plan.batches().n_tickets
    per_step = 2 if strategy == "sync" else 1
    assert plan.budget.steps == -(-2 * tickets // per_step)
    result = train(config)
    assert (result.status, result.steps) == ("done", plan.budget.steps)
    if strategy == "sync":
        with pytest.raises(ConfigError, match="used up its budget, epochs 2"):
            make_plan(small_config(tmp_path, steps=None, resume=result.run))


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A run that cannot get better, and its messages."""
    folder = tmp_path_factory.mktemp("patient")
    messages = []
    config = small_config(
        folder, steps=100_000, eval_every=5, patience=2, lr=1e-30, schedule="constant",
        weight_decay=0.0,
    )  # fmt: skip
    return folder, train(config, observer=lambda p: messages.append(p.message or "")), messages


@pytest.mark.slow
def test_a_run_without_a_new_best_ends_early_and_says_why(patient):
    _, result, messages = patient
    assert result.status == "done"
    assert 15 <= result.steps < 100_000
    assert any("2 held-out evaluations without a new best (patience)" in m for m in messages)
    assert any("best held-out evaluation" in message for message in messages)


@pytest.mark.slow
def test_the_best_checkpoint_is_found_by_name_and_path_and_generates(patient, capsys):
    folder, result, _ = patient
    run = Run(Path(result.run))
    best = checkpoint.best(run)
    assert best is not None
    assert best != checkpoint.latest(run)
    assert (run.checkpoints / "best").is_symlink()
    for spec in (f"{run.name}/best", "latest/best", str(run.checkpoints / "best")):
        assert checkpoint.locate(spec, folder / "runs") == best.resolve()
        assert checkpoint.resumable(spec, folder / "runs") == (run, best)
    words = ["generate", str(run.checkpoints / "best"), "--prompt", "lock", "--max-new-tokens", "3"]
    assert main([*words, "--backend", "mlx:cpu"]) == 0


@pytest.mark.slow
def test_a_run_resumes_from_its_best_and_a_finished_one_asks_for_a_budget(patient):
    folder, result, _ = patient
    saved = checkpoint.load(checkpoint.best(Run(Path(result.run))))
    config = small_config(folder, steps=3, eval_every=5, patience=2, resume=f"{result.run}/best")
    plan = make_plan(config)
    assert plan.resumption is not None
    assert plan.resumption.checkpoint.step == saved.step
    watch = HeldOutWatch(config, plan.resumption, plan.held_out.text)
    assert watch.bits_per_byte == saved.state["best"]["bits_per_byte"]
    assert HeldOutWatch(config, plan.resumption, "another text").bits_per_byte is None
    with pytest.raises(ConfigError, match="without a new best"):
        make_plan(small_config(folder, steps=None, resume=result.run))


@pytest.mark.slow
def test_a_loss_that_is_reached_ends_the_run_and_no_best_is_kept_unasked(tmp_path):
    messages = []
    config = small_config(tmp_path, steps=100_000, eval_every=2, stop_at_loss=9.0)
    result = train(config, observer=lambda p: messages.append(p.message or ""))
    assert (result.status, result.steps < 100_000) == ("done", True)
    assert any("stop_at_loss is 9" in message for message in messages)
    with pytest.raises(CheckpointError, match="keeps no best checkpoint.*--keep-best"):
        checkpoint.locate("latest/best", tmp_path / "runs")


@pytest.mark.slow
def test_a_killed_run_leaves_a_whole_best_that_later_ones_do_not_drop(tmp_path):
    config = small_config(
        tmp_path, steps=None, time=120, eval_every=5, save_every=3, keep_last=1, keep_best=True
    )
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    command = [sys.executable, "-m", "mlxhog", "train", "-c", str(file), "--quiet"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        run = Run(run_directory(tmp_path))
        wait_until(lambda: checkpoint.best(run) is not None, 60, "the first best checkpoint")
        wait_until(lambda: checkpoint.latest(run) != checkpoint.best(run), 60, "another one")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    best = checkpoint.best(run)
    assert best is not None
    saved = checkpoint.load(best)
    assert all(np.isfinite(value).all() for value in saved.params.values())
    assert json.dumps(saved.state["best"])
    result = train(small_config(tmp_path, steps=2, resume=str(run.checkpoints / "best")))
    assert result.status == "done"
    assert checkpoint.best(run) == best
