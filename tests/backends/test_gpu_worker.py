"""The GPU workers, on a machine without a GPU: the same code on MLX's CPU device.

What only a Mac has is stood in for: the device, its memory, and the limits that are set on it.
"""

import os
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest

from mlxhog import arena, backends
from mlxhog.backends.gpu_share import FREE_BYTES, GPUShare, limit_mlx, limit_mps
from mlxhog.backends.mlx import MLXBackend
from mlxhog.errors import EnvironmentLacks
from mlxhog.models import families
from mlxhog.models.registry import architectures, load_architecture
from mlxhog.models.sampled_softmax import SampledSoftmax
from tests.backends.untrained import batch, lay, values
from tests.models.sample import SMALLEST
from tests.pairs import each_of
from tests.tolerances import GRADIENT_ANY_F32, LOGITS_F32, LOSS_F32, assert_close

GIB = 1 << 30


class Recorder:
    """MLX with a GPU of a given size that notes the limits it is given."""

    gpu = "gpu"

    def __init__(self, recommended_bytes):
        self.limits, self.active_bytes, self.peak_bytes = {}, 0, 0
        size = {"max_recommended_working_set_size": recommended_bytes}
        self.device_info = lambda device=None: size if device == self.gpu else {"name": "a CPU"}
        for kind in ("memory", "cache", "wired"):
            setattr(self, f"set_{kind}_limit", partial(self.change, kind))
        self.get_active_memory = lambda: self.active_bytes
        self.get_peak_memory = lambda: self.peak_bytes

    def change(self, kind, n_bytes):
        before, self.limits[kind] = self.limits.get(kind), n_bytes
        return before

    def reset_peak_memory(self):
        self.peak_bytes = 0


def limits(share, recommended_bytes=16 * GIB, *, on_gpu=True):
    gpu = Recorder(recommended_bytes)
    limit_mlx(gpu, share, on_gpu=on_gpu)
    return gpu.limits


@each_of(
    ("share", "on_gpu", "expected"),
    [
        (GPUShare(workers=1), True, {"memory": 12 * GIB, "cache": GIB, "wired": 12 * GIB}),
        (GPUShare(workers=4), True, {"memory": 3 * GIB, "cache": 3 * GIB // 8, "wired": 0}),
        # MLX counts imported memory as active; the cache is of what is left for its own arrays.
        (GPUShare(workers=2, wrapped_bytes=4 * GIB), True,
         {"memory": 6 * GIB, "cache": 2 * GIB // 8, "wired": 0}),
        (GPUShare(workers=1, wrapped_bytes=12 * GIB), False,
         {"memory": 12 * GIB, "cache": 8 << 20}),
    ],
)  # fmt: skip
def test_workers_share_three_quarters_of_the_memory_and_one_alone_may_wire_it(
    share, on_gpu, expected
):
    assert limits(share, on_gpu=on_gpu) == expected


def test_the_cache_grows_to_the_largest_gradient_and_stays_in_the_workers_memory():
    gpu = Recorder(16 * GIB)
    cache, kept = limit_mlx(gpu, GPUShare(workers=2, wrapped_bytes=GIB), on_gpu=True), []
    for peak_gib in (2.5, 3, 5, 4, 100):
        gpu.active_bytes = 2 * GIB
        with cache.of_gradient():
            gpu.peak_bytes = int(peak_gib * GIB)
        kept.append(gpu.limits["cache"] / GIB)
    assert kept == [5 / 8, 1, 3, 3, 5], "an eighth of the worker's 5 GiB at first, at last all"


def test_a_planned_gradient_waits_above_its_plan_and_never_may_take_more_than_others():
    gpu = Recorder(16 * GIB)
    cache, limits = limit_mlx(gpu, GPUShare(workers=2), on_gpu=True), []
    gpu.active_bytes = 2 * GIB
    for planned in (1, 3 * GIB, 5 * GIB):
        with cache.of_gradient(planned):
            limits.append(gpu.limits["memory"] / GIB)
    with pytest.raises(MemoryError), cache.of_gradient(1):
        raise MemoryError
    assert limits == [2 + FREE_BYTES / GIB, 5, 6], "the worker's own are 6"
    assert gpu.limits["memory"] == 6 * GIB


def test_a_gpu_that_is_too_small_for_its_workers_is_refused_with_the_way_out():
    with pytest.raises(EnvironmentLacks, match="4 workers.*use fewer GPU workers"):
        limits(GPUShare(workers=4, wrapped_bytes=3 * GIB))


def test_torch_gets_its_share_before_it_starts_unless_the_user_gave_it_one(monkeypatch):
    high, low = "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO"
    for name in (high, low):
        monkeypatch.setenv(name, "")  # so that both are put back afterwards
        monkeypatch.delenv(name)
    limit_mps(GPUShare(workers=3))
    assert float(os.environ[high]) == 0.25
    assert float(os.environ[low]) < 0.25
    os.environ[high] = "0.5"
    limit_mps(GPUShare(workers=1))
    assert os.environ[high] == "0.5"


@pytest.fixture
def gpu(monkeypatch):
    """MLX's CPU device under the name of its GPU."""
    recorder = Recorder(8 * GIB)
    recorder.gpu = mx.cpu
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "gpu", mx.cpu)
    for name in ("device_info", "set_memory_limit", "set_cache_limit", "set_wired_limit"):
        monkeypatch.setattr(mx, name, getattr(recorder, name))
    return recorder


def mlx(name, share=GPUShare(), head=None):  # noqa: B008  it is frozen
    how = {"threads": 1, "kernels": "eager", "share": share}
    return lay(MLXBackend(name, **how), head=head)


@pytest.mark.slow
def test_the_gpu_worker_computes_what_the_cpu_worker_computes(gpu):
    head = SampledSoftmax(6, np.linspace(1, 3, SMALLEST.vocab_size))
    plain = mlx("mlx:cpu", head=head)
    backend = mlx("mlx:gpu", GPUShare(piece_tokens=32), head)
    assert gpu.limits["memory"] == 6 * GIB
    assert backend.compiled
    assert not plain.compiled
    for seed in (0, 1):
        for one in (backend, plain):  # a compiled gradient sees the parameters of every refresh
            one.param_buffer[:] *= np.float32(1.0 + seed / 2)
            one.refresh()
        (loss, grads), (expected_loss, expected) = (
            one.loss_and_grads(replace(batch(2, 16, seed), seed=seed)) for one in (backend, plain)
        )
        assert_close(loss, expected_loss, LOSS_F32)
        grads = values(grads)
        for name, grad in values(expected).items():
            assert_close(grads[name], grad, GRADIENT_ANY_F32, label=name)
    assert backend.forward_share is None  # both passes are one graph
    actual, expected = backend.evaluate(batch(5, 16)), plain.evaluate(batch(5, 16))
    assert actual.targets == expected.targets
    assert_close(actual.nats / actual.targets, expected.nats / expected.targets, LOSS_F32)
    tokens = batch(2, 40).x
    logits, _ = backend.logits(tokens, None)
    assert_close(logits, plain.logits(tokens, None)[0], LOGITS_F32)


@pytest.mark.parametrize("name", ["mlx:gpu", "mlx:cpu"])
def test_a_mac_without_a_metal_device_is_refused_at_once(gpu, monkeypatch, name):
    none = RuntimeError("[metal::load_device] No Metal device available.")
    monkeypatch.setattr(mx, "device_info", mock.Mock(side_effect=none))
    with pytest.raises(EnvironmentLacks, match=r"no Metal device .*--workers torch:cpu") as error:
        mlx(name)
    assert error.value.exit_code == 3


def test_evaluation_and_prompts_are_cut_into_pieces():
    share = GPUShare(piece_tokens=100)
    parts = list(share.rows(batch(5, 40)))
    assert [len(part.x) for part in parts] == [2, 2, 1]
    assert sum(part.n_bytes for part in parts) == 60
    assert [len(part.x) for part in share.rows(batch(2, 400))] == [1, 1]
    spans = [(span.start, span.stop) for span in share.spans((1, 250))]
    assert spans == [(0, 100), (100, 200), (200, 300)]


@pytest.mark.usefixtures("no_apple_gpu")
@pytest.mark.parametrize("name", ["mlx:gpu", "torch:mps"])
def test_a_gpu_backend_on_a_machine_without_one_says_what_to_use(name):
    with pytest.raises(EnvironmentLacks, match=f"{name} needs .*use .*cpu"):
        backends.create(name, threads=1, kernels="auto")


BUFFERS = 31  # arguments that Metal gives a kernel; MLX checks its own limit roughly (mlx 1880)
SMALL = [
    name for name in architectures() if families.param_count(load_architecture(name)) < 10_000_000
]


class Drawn(Exception):
    """The graph of a gradient, in place of its numbers."""


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_no_fused_kernel_of_a_gradient_has_more_buffers_than_metal_allows(
    name, recompute, tmp_path, monkeypatch
):
    compiled = mx.compile

    def drawing(function):
        fused = compiled(function)

        def draw(*inputs):
            loss, grads = fused(*inputs)
            mx.export_to_dot(str(tmp_path / "graph"), loss, *grads.values())
            raise Drawn

        return draw

    monkeypatch.setattr(mx, "compile", drawing)
    model = load_architecture(name)
    backend = MLXBackend("mlx:cpu", threads=1, kernels="eager", share=GPUShare(), compiled=True)
    layout = arena.plan(families.param_spec(model), max_workers=1, n_tickets=1)
    backend.bind(model, layout, recompute=recompute)
    backend.read_tables(np.zeros(layout.n_floats, np.float32))
    with pytest.raises(Drawn):
        backend.loss_and_grads(batch(1, 32))
    text = (tmp_path / "graph").read_text()
    fused = set(re.findall(r'\{ (\d+) \[label ="Compiled', text))
    edges = set(re.findall(r'^"?(\w+)"? -> "?(\w+)"?$', text, re.MULTILINE))
    buffers = Counter(end for edge in edges for end in edge if end in fused)
    assert len(buffers) > 10
    assert max(buffers.values()) <= BUFFERS
