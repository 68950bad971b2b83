"""What a GPU uses in place, and what the user reads where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxhog import TrainConfig, notices, train, unified
from mlxhog.arena import Arena, plan
from mlxhog.errors import EnvironmentLacks
from mlxhog.job import Job
from mlxhog.metal.engine_reference import ReferenceEngine
from mlxhog.optim.metal_steps import ADAM
from tests.training.small import small_config
from tests.training.test_watchdog import job


class Refuses(ReferenceEngine):
    def adopt(self, host: Any) -> Any:
        raise EnvironmentLacks("MLX cannot import this")


class Copies(ReferenceEngine):
    def adopt(self, host: Any) -> Any:
        return host.copy()


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena.create(plan({}, max_workers=2, n_tickets=1), write="cas") as arena:
        yield arena


def a_job(backend: str, engine: str | None = None, **options: object) -> Job:
    config = TrainConfig(**options)  # type: ignore[arg-type]
    return replace(job(slot=2, threads=1), backend=backend, engine=engine, config=config)


def with_engine(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    monkeypatch.setattr(unified.engine, "create", lambda name, **_: made)


LIVE: dict[str, object] = {"read": "live", "predict": "none"}


def test_a_gpu_reads_the_parameters_themselves_where_both_sides_are_one_memory(
    monkeypatch: pytest.MonkeyPatch, arena: Arena
) -> None:
    with_engine(monkeypatch, ReferenceEngine())
    found = unified.live_params(a_job("mlx:gpu", **LIVE), arena)
    assert found is not None
    assert np.shares_memory(found, arena.params)
    assert unified.live_params(a_job("mlx:gpu"), arena) is None  # nobody asked
    monkeypatch.setattr(unified.engine, "create", pytest.fail)
    assert unified.live_params(a_job("torch:cpu", **LIVE), arena) is not None


@pytest.mark.parametrize(
    ("made", "why"),
    [(Refuses(), "MLX cannot import this"), (Copies(), "is not seen on the other")],
)
def test_a_gpu_that_cannot_share_memory_falls_back_aloud(
    monkeypatch: pytest.MonkeyPatch,
    arena: Arena,
    capsys: pytest.CaptureFixture[str],
    made: Any,
    why: str,
) -> None:
    with_engine(monkeypatch, made)
    assert unified.live_params(a_job("mlx:gpu", **LIVE), arena) is None
    assert unified.metal_steps(a_job("mlx:gpu", "mlx"), arena, ADAM, frozenset()) is None
    live, writes = capsys.readouterr().out.splitlines()
    assert live.startswith("notice: worker 2 (mlx:gpu) takes snapshots, not live reads: ")
    assert writes.startswith("notice: worker 2 (mlx:gpu) lets the CPU add its steps, not the GPU: ")
    assert live.endswith(why)
    assert writes.endswith(why)


def test_a_gpu_that_shares_memory_adds_its_own_steps(
    monkeypatch: pytest.MonkeyPatch, arena: Arena
) -> None:
    with_engine(monkeypatch, ReferenceEngine())
    before = arena.params.copy()
    made = unified.metal_steps(a_job("mlx:gpu", "mlx"), arena, ADAM, frozenset())
    assert made is not None
    np.testing.assert_array_equal(arena.params, before)
    assert unified.metal_steps(a_job("mlx:gpu"), arena, ADAM, frozenset()) is None


def test_the_supervisor_passes_on_what_a_worker_found_out_while_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "worker-1.log"
    assert notices.told(log, 0) == []
    log.write_text("notice: of an earlier process\n")
    begin = log.stat().st_size
    with log.open("a") as stream:
        stream.write("something else\nnotice: it takes snapshots\n")
    assert notices.told(log, begin) == ["it takes snapshots"]

    messages: list[str] = []
    monkeypatch.setattr(notices, "told", lambda path, since: [f"notice of {path.name}"])
    train(
        small_config(tmp_path, workers="torch:cpu*2", steps=2),
        observer=lambda progress: messages.append(progress.message or ""),
    )
    # which worker is up first is the scheduler's choice
    assert sorted(m for m in messages if m.startswith("notice of")) == [
        "notice of worker-1.log",
        "notice of worker-2.log",
    ]
