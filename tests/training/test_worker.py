"""A worker follows the supervisor's commands; if a GPU shares no memory, it uses copies."""

from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import TrainConfig
from mlxhog.arena import Arena, control, plan
from mlxhog.base.workers import BACKENDS, WorkerSpec
from mlxhog.errors import EnvironmentLacks
from mlxhog.metal.host.engine import HostEngine
from mlxhog.optim import metal_steps, muon
from mlxhog.strategies import build
from mlxhog.training import worker
from tests.training.test_watchdog import job

# -- unified memory --------------------------------------------------------------------------------


class Unified(HostEngine):
    """An engine that says that it is a GPU's."""

    emulated = False


class Refuses(Unified):
    def adopt(self, host):
        raise EnvironmentLacks("MLX cannot import this")


class Copies(Unified):
    def adopt(self, host):
        return host.copy()


@pytest.fixture
def arena():
    with Arena.create(
        plan(
            {},
            max_workers=2,
            private=("m", "v"),
            shared=("s",),
            n_tickets=1,
            extra={f"ring.{slot}": ("uint8", control.RING_BYTES) for slot in (1, 2)},
        ),
        write="cas",
    ) as arena:
        yield arena


def a_job(backend, engine=None, **options):
    config = TrainConfig(**{"strategy": "hogwild", "optimizer": "adamw", **options})
    return job(
        slot=2,
        setup=SimpleNamespace(
            config=config,
            strategy=build(config, 1),
            workers=2 * (WorkerSpec(backend, 1),),
            writers=SimpleNamespace(engine=lambda backend: engine),
            decay=frozenset(),
        ),
    )


def with_engine(monkeypatch, engine):
    monkeypatch.setattr(metal_steps.engines, "create", lambda name, **_: engine)


def a_backend(error):
    """A backend that orthogonalises as the CPU does, but for a relative error."""

    def polar(xs, scales, coefficients):
        return [(1 + error) * u for u in muon.on_cpu(xs, scales, coefficients)]

    return SimpleNamespace(polar=polar)


@pytest.mark.parametrize(
    ("device", "of"),
    [
        ("auto", {"mlx:gpu", "torch:mps"}),
        ("cpu", set()),
        ("worker", {"mlx:gpu", "torch:mps", "mlx:cpu", "torch:cpu"}),
    ],
)
def test_each_worker_orthogonalises_where_the_option_says(device, of):
    backend = a_backend(1e-6)
    for name in BACKENDS:
        one = a_job(name, optimizer="muon", orthogonalization_device=device)
        expected = backend.polar if name in of else None
        assert worker.polar_of_device(one, backend) is expected
    assert worker.polar_of_device(a_job("mlx:gpu"), backend) is None  # AdamW has nothing to do


@pytest.mark.parametrize("error", [0.01, np.nan])
def test_a_device_that_is_too_coarse_is_refused_or_replaced_by_the_cpu_aloud(capsys, error):
    backend = a_backend(error)
    asked = a_job("mlx:cpu", optimizer="muon", orthogonalization_device="worker")
    with pytest.raises(EnvironmentLacks, match="mlx:cpu differ from the CPU's.*MLX_ENABLE_TF32=0"):
        worker.polar_of_device(asked, backend)
    assert worker.polar_of_device(a_job("mlx:gpu", optimizer="muon"), backend) is None
    notice = capsys.readouterr().out
    assert notice.startswith("notice: worker 2 orthogonalises on the CPU: directions of mlx:gpu")


LIVE = {"read": "live", "predict": "none"}


def test_a_gpu_reads_the_parameters_themselves_where_both_sides_are_one_memory(monkeypatch, arena):
    with_engine(monkeypatch, Unified())
    params = worker.live_params(a_job("mlx:gpu", **LIVE), arena)
    assert params is not None
    assert np.shares_memory(params, arena.params)
    assert worker.live_params(a_job("mlx:gpu"), arena) is None  # not requested
    monkeypatch.setattr(metal_steps.engines, "create", pytest.fail)
    assert worker.live_params(a_job("torch:cpu", **LIVE), arena) is not None


@pytest.mark.parametrize(
    ("engine", "why"),
    [(Refuses(), "MLX cannot import this"), (Copies(), "does not see the writes of the other")],
)
def test_a_gpu_that_cannot_share_memory_falls_back_aloud(monkeypatch, arena, capsys, engine, why):
    with_engine(monkeypatch, engine)
    assert worker.live_params(a_job("mlx:gpu", **LIVE), arena) is None
    assert worker.gpu_steps(a_job("mlx:gpu", "mlx"), arena) is None
    live, writes = capsys.readouterr().out.splitlines()
    assert live.startswith("notice: worker 2 (mlx:gpu) takes snapshots, not live reads: ")
    assert writes.startswith("notice: worker 2 (mlx:gpu) lets the CPU add its steps, not the GPU: ")
    assert live.endswith(why)
    assert writes.endswith(why)


def test_a_gpu_that_shares_memory_adds_its_own_steps(monkeypatch, arena):
    with_engine(monkeypatch, Unified())
    before = arena.params.copy()
    assert worker.gpu_steps(a_job("mlx:gpu", "mlx"), arena) is not None
    np.testing.assert_array_equal(arena.params, before)
    assert worker.gpu_steps(a_job("mlx:gpu"), arena) is None


def test_memory_of_several_pieces_of_macos_is_not_imported(monkeypatch, arena, capsys):
    with_engine(monkeypatch, Unified())
    monkeypatch.setattr(type(arena.layout), "straddles", lambda self, name: name == "params")
    assert worker.gpu_steps(a_job("mlx:gpu", "mlx"), arena) is None
    assert "segment params has" in capsys.readouterr().out
    assert worker.live_params(a_job("mlx:gpu", **LIVE), arena) is None
    assert "segment params has" in capsys.readouterr().out
