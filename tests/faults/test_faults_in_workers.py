"""An error of a program in itself ends a run with its text at once; others cost a restart."""

import json

import pytest

from mlxhog import train
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problems.linear import SparseLinear
from mlxhog.classic.run import train as classic_train
from mlxhog.errors import WorkerFailed
from mlxhog.training import worker
from tests.classic import small
from tests.faults import faulty_worker
from tests.faults.faulty_worker import EARLY
from tests.training.small import small_config

TEXTS = {
    1: r"TypeError: rms_norm\(\): incompatible function arguments\. \.\.\. "
    r"Invoked with: mlx\.core\.array",
    2: "KeyError: 'blocks.0.norm'",
    3: "AssertionError: no message",
    4: "ValueError: operands could not be broadcast together",
}


@pytest.fixture(autouse=True)
def faulty(monkeypatch):
    monkeypatch.setattr(worker, "main", faulty_worker.main)


@pytest.mark.parametrize(
    "seed",
    [*TEXTS, EARLY + 1],
    ids=[*(text.split(":")[0] for text in TEXTS.values()), "while it starts"],
)
def test_a_fault_in_a_worker_ends_the_run_at_once_with_its_text_and_what_it_reached(tmp_path, seed):
    with pytest.raises(WorkerFailed, match=TEXTS[seed % EARLY]) as failure:
        train(small_config(tmp_path, seed=seed, workers="mlx:cpu"))
    (run,) = (tmp_path / "runs").iterdir()
    log = run / "logs" / "worker-1.log"
    assert str(log) in str(failure.value)
    assert log.read_text().count("Traceback") == 1, "it was not started again"
    status = json.loads((run / "run.json").read_text())
    assert status["status"] == "failed"
    saved = f"resume with mlxhog train --resume {run}"
    assert (saved in str(failure.value)) == (seed < EARLY)
    assert (run / "checkpoints" / "latest").exists() == (seed < EARLY)


@pytest.mark.parametrize("seed", faulty_worker.PASSING)
def test_an_error_that_may_have_passed_costs_a_restart(tmp_path, seed):
    result = train(small_config(tmp_path, seed=seed, workers="mlx:cpu"))
    assert (result.status, result.restarts) == ("done", 1)


def test_a_fault_in_a_classic_worker_ends_the_run_at_once_with_its_text(monkeypatch):
    monkeypatch.setattr(SparseLinear, "kernel", staticmethod(faulty_worker.classic_kernel))
    with pytest.raises(WorkerFailed, match=rf"worker \d ended with an error .*: {TEXTS[1]}"):
        classic_train(small.hinge(), ClassicConfig(workers=2, epochs=1))
