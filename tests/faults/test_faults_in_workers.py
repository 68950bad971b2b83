"""An error of a program in itself ends a run with its text at once; others cost a restart."""

import json

import pytest

from mlxhog import train
from mlxhog.errors import WorkerFailed
from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.problems.linear import SparseLinear
from mlxhog.research.classic.run import train as classic_train
from mlxhog.training.worker import process
from mlxhog.training.worker.steps import Gradients
from tests.research.classic import small
from tests.training.small import small_config

FAULT, EARLY, PASSING = 1, 2, 3
"""Seeds of runs whose worker meets an error in its fourth gradient, or in the first, which nobody
uses; and of those whose first process alone meets one that may pass."""


def fault():
    return TypeError("rms_norm(): incompatible function arguments.\n\nInvoked with: mlx.core.array")


def faulty(pipe, job):
    """A worker as always, but for the error; children import it."""
    gradient, seed, calls = Gradients.of, job.config.seed, 0
    marker = job.run_dir / "passed"

    def failing(self, batches):
        nonlocal calls
        calls += 1
        if calls == 4 and not marker.exists():
            marker.touch()
            raise RuntimeError("short of memory") if seed == PASSING else fault()
        return gradient(self, batches)

    def failing_at_once(self):
        raise fault()

    Gradients.of = failing
    if seed == EARLY:
        Gradients.warm_up = failing_at_once
    process.main(pipe, job)


def classic_kernel(memory):
    """The kernel of a classic problem, with an error."""
    raise fault()


TEXT = (
    r"TypeError: rms_norm\(\): incompatible function arguments\. "
    r"Invoked with: mlx\.core\.array"
)


@pytest.fixture(autouse=True)
def _faulty(monkeypatch):
    monkeypatch.setattr(process, "main", faulty)


@pytest.mark.parametrize("when", ["while it trains", "while it starts"])
def test_a_fault_in_a_worker_ends_the_run_at_once_with_its_text_and_what_it_reached(tmp_path, when):
    trains = when == "while it trains"
    seed = FAULT if trains else EARLY
    with pytest.raises(WorkerFailed, match=TEXT) as failure:
        train(small_config(tmp_path, seed=seed, workers="mlx:cpu"))
    (run,) = (tmp_path / "runs").iterdir()
    log = run / "logs" / "worker-1.log"
    assert str(log) in str(failure.value)
    assert log.read_text().count("Traceback") == 1, "it was not started again"
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert (f"resume with mlxhog train --resume {run}" in str(failure.value)) == trains
    assert (run / "checkpoints" / "latest").exists() == trains


def test_an_error_that_may_have_passed_costs_a_restart(tmp_path):
    config = small_config(tmp_path, seed=PASSING, workers="mlx:cpu")
    result = train(config)
    assert (result.status, result.restarts) == ("done", 1)


def test_a_fault_in_a_classic_worker_ends_the_run_at_once_with_its_text(monkeypatch):
    monkeypatch.setattr(SparseLinear, "kernel", staticmethod(classic_kernel))
    with pytest.raises(WorkerFailed, match=rf"worker \d failed, .*: {TEXT}"):
        classic_train(small.hinge(), ClassicConfig(workers=2, epochs=1))
