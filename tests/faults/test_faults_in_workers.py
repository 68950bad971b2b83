"""An error of a program in itself ends a run with its text at once; others cost a restart."""

import json

import pytest

from mlxhog import train
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problems.linear import SparseLinear
from mlxhog.classic.run import train as classic_train
from mlxhog.errors import WorkerFailed
from mlxhog.training import worker_process
from tests.classic import small
from tests.faults import faulty_worker
from tests.training.small import small_config

TEXT = (
    r"TypeError: rms_norm\(\): incompatible function arguments\. \.\.\. "
    r"Invoked with: mlx\.core\.array"
)


@pytest.fixture(autouse=True)
def faulty(monkeypatch):
    monkeypatch.setattr(worker_process, "main", faulty_worker.main)


@pytest.mark.parametrize("when", ["while it trains", "while it starts"])
def test_a_fault_in_a_worker_ends_the_run_at_once_with_its_text_and_what_it_reached(tmp_path, when):
    trains = when == "while it trains"
    seed = faulty_worker.FAULT if trains else faulty_worker.EARLY
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
    config = small_config(tmp_path, seed=faulty_worker.PASSING, workers="mlx:cpu")
    result = train(config)
    assert (result.status, result.restarts) == ("done", 1)


def test_a_fault_in_a_classic_worker_ends_the_run_at_once_with_its_text(monkeypatch):
    monkeypatch.setattr(SparseLinear, "kernel", staticmethod(faulty_worker.classic_kernel))
    with pytest.raises(WorkerFailed, match=r"worker \d failed, .*: TypeError: rms_norm\(\)"):
        classic_train(small.hinge(), ClassicConfig(workers=2, epochs=1))
