"""A worker does what the supervisor says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlxhog.arena import Arena
from mlxhog.arena.control import LINE, NAMES, Command, Counters
from mlxhog.config.budget import Budget
from mlxhog.config.rules import Slowdown
from mlxhog.optim import Muon
from mlxhog.training import steps, worker
from mlxhog.training.job import Job
from mlxhog.training.plan import make_plan
from tests.training.small import small_config


def test_a_worker_told_to_rest_finishes_the_round_that_others_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counters = Counters(np.zeros(LINE * len(NAMES), np.uint8))
    counters.store("command", Command.REST)
    events: list[str] = []

    def step() -> None:
        events.append("step")
        counters.store("command", Command.EXIT)

    def sleep(seconds: float) -> None:
        pytest.fail("the worker holds still without asking its strategy")

    entry = SimpleNamespace(beat=lambda phase: None)
    arena = SimpleNamespace(
        counters=counters,
        segment=lambda name: None,
        workers=SimpleNamespace(entry=lambda slot: entry),
    )
    context = SimpleNamespace(backend=SimpleNamespace(close=lambda: None))
    steps = SimpleNamespace(warm_up=lambda: None, step=step)
    side_jobs = SimpleNamespace(serve=lambda: events.append("side job"))
    monkeypatch.setattr(worker.Arena, "from_handle", lambda handle, write: arena)
    monkeypatch.setattr(worker, "make_context", lambda *_: context)
    monkeypatch.setattr(worker.records, "Ring", lambda data: None)
    monkeypatch.setattr(worker, "Steps", lambda *_: steps)
    monkeypatch.setattr(worker.time, "sleep", sleep)
    writers = SimpleNamespace(write="lossless")
    setup = SimpleNamespace(writers=writers, side_jobs=lambda *_: side_jobs)
    job: Any = SimpleNamespace(handle=None, slot=1, setup=setup)

    worker._run(job)

    assert events == ["step"]


class Clock:
    """Time that passes in naps only, and a run that is stopped at some moment."""

    def __init__(self, stops_at_s: float) -> None:
        self.now_s, self.stops_at_s, self.naps = 0.0, stops_at_s, 0

    def nap(self, seconds: float) -> None:
        self.now_s += seconds
        self.naps += 1

    def training(self) -> bool:
        return self.now_s < self.stops_at_s


@pytest.mark.parametrize(("stops_at_s", "slept_s"), [(9.0, 0.6), (0.3, 0.3)])
def test_a_slowed_gradient_takes_longer_with_signs_of_life_and_ends_with_the_run(
    monkeypatch: pytest.MonkeyPatch, stops_at_s: float, slept_s: float
) -> None:
    clock, beats = Clock(stops_at_s), []
    monkeypatch.setattr(steps, "monotonic_ns", lambda: round(clock.now_s * 1e9))
    monkeypatch.setattr(steps.time, "sleep", clock.nap)
    entry = SimpleNamespace(beat=lambda: beats.append(clock.now_s))
    of_worker: Any = SimpleNamespace(
        context=SimpleNamespace(rank=1, entry=entry),
        job=SimpleNamespace(config=SimpleNamespace(seed=0)),
        _slowdown=Slowdown(factor=4.0),
    )
    steps.Steps._slow_down(of_worker, 200_000_000, 5, clock.training)
    assert clock.now_s == pytest.approx(slept_s, abs=0.02)
    assert len(beats) == clock.naps >= 10


@pytest.mark.parametrize("threads", [1, 2])
def test_the_threads_of_a_worker_are_those_of_its_optimizer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, threads: int
) -> None:
    config = small_config(tmp_path, strategy="serial", optimizer="muon", threads=threads)
    plan = make_plan(config)
    backend = SimpleNamespace(bind=lambda *_: None)
    monkeypatch.setattr(worker.backends, "create", lambda *_, **__: backend)
    monkeypatch.setattr(worker, "live_params", lambda *_: None)
    with Arena.create(plan.layout) as arena:
        job = Job(
            setup=plan.for_workers(), handle=arena.handle(), slot=1, budget=Budget(steps=1),
            step_limit=1, run_dir=tmp_path,
        )  # fmt: skip
        context = worker.make_context(job, arena, arena.workers.entry(1))
        assert isinstance(context.optimizer, Muon)
        assert context.optimizer.threads == threads
