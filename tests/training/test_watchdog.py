"""A GPU worker that macOS aborts restarts with less work at a time, and reports it.

The tests cause the abort: by SIGABRT, as on a Mac, or by the error that MLX raises. CPU workers
stand in for GPU workers.
"""

import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import train
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.base.workers import WorkerSpec
from mlxhog.data.batch import Batch
from mlxhog.strategies import Lease
from mlxhog.training import session, worker
from mlxhog.training.job import Job
from mlxhog.training.steps import Gradients
from tests.training import lost_gpu
from tests.training.small import Messages, small_config
from tests.training.test_deaths import Killer


@pytest.fixture
def gpu(monkeypatch):
    """Workers of MLX on the CPU count as GPU workers."""
    monkeypatch.setattr(session, "GPU_BACKENDS", ("mlx:cpu",))


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_an_aborted_gpu_worker_computes_half_as_much_at_a_time_and_the_run_is_done(tmp_path):
    messages, killer = Messages(), Killer(kills=2, number=signal.SIGABRT)
    result = killer.train(small_config(tmp_path, batch_size=4, steps=20), observer=messages)
    assert (result.status, result.restarts) == ("done", 2)
    notes = [message for message in messages if "SIGABRT" in message and "macOS" in message]
    assert "micro-batches of 2 sequences" in notes[0]
    assert "micro-batches of 1 sequence." in notes[1]
    assert "MLX_MAX_OPS_PER_BUFFER=8" in notes[0]
    log = (Path(result.run) / "logs" / "worker-1.log").read_text()
    assert [line for line in log.splitlines() if line.startswith("micro-batch ")] == [
        "micro-batch 4",
        "micro-batch 2",
        "micro-batch 1",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_a_worker_whose_error_comes_from_mlx_computes_half_as_much_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "main", lost_gpu.main)
    messages = Messages()
    result = train(small_config(tmp_path, batch_size=4, steps=40), observer=messages)
    assert (result.status, result.restarts) == ("done", 2)
    notes = [message for message in messages if "micro-batches" in message]
    assert "kIOGPUCommandBufferCallbackErrorImpactingInteractivity" in notes[0]
    assert "micro-batches of 2 sequences" in notes[0]
    assert "lost its GPU (error: kernel mlstm_out failed)" in notes[1]
    assert "micro-batches of 1 sequence." in notes[1]


def job(**options):
    blank = dict.fromkeys(Job.__dataclass_fields__)
    return Job(**{**blank, **options})


def test_every_abort_halves_micro_batches_and_pieces_down_to_one():
    plan = SimpleNamespace(
        config=SimpleNamespace(micro_batch=6, seq_len=10_000),
        gpu_share=GPUShare(piece_tokens=4096),
        workers=(WorkerSpec("mlx:gpu", 1), WorkerSpec("torch:mps", 1)),
    )
    jobs = [job(plan=plan, slot=1, halvings=halvings) for halvings in range(4)]
    assert [job.micro_batch for job in jobs] == [6, 3, 1, 1]
    of_mps = [replace(job, slot=2).micro_batch for job in jobs]
    assert of_mps == [3, 3, 1, 1], "no gradient has more tokens than MPS adds right"
    assert [job.gpu_share.piece_tokens for job in jobs] == [4096, 2048, 1024, 512]


class Backend:
    """Gives the mean of a batch as its gradient, and keeps the batches' sizes."""

    def __init__(self):
        self.sizes = []

    def loss_and_grads(self, batch):
        self.sizes.append(len(batch.x))
        mean = batch.x.mean(dtype=np.float32)
        return float(mean), {"w": np.array([mean], np.float32)}


@pytest.mark.parametrize(("micro_batch", "sizes"), [(8, [8]), (4, [4, 4]), (3, [3, 3, 2])])
def test_smaller_micro_batches_give_the_gradient_of_the_same_sequences(micro_batch, sizes):
    x = np.arange(32, dtype=np.int32).reshape(8, 4)
    data = SimpleNamespace(at=lambda epoch, ticket: Batch(x, x, n_bytes=32))
    backend = Backend()
    entry = SimpleNamespace(beat=lambda: None)
    plan = SimpleNamespace(batches=lambda: data, link=None)
    config = SimpleNamespace(slow=None)
    job = SimpleNamespace(micro_batch=micro_batch, slot=1, plan=plan, config=config)
    arena = SimpleNamespace(layout=SimpleNamespace(segments={}))
    result = Gradients(job, arena, entry, backend)
    batches = result.micro_batches(Lease(0, 0))
    loss, grads = result.of(batches)
    assert backend.sizes == sizes
    assert loss == pytest.approx(15.5)
    assert grads["w"] == pytest.approx(15.5)
