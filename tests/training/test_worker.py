"""A worker does what the supervisor says."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlxhog.arena.control import LINE, NAMES, Command, Counters
from mlxhog.training import worker


def test_a_worker_told_to_rest_finishes_the_round_that_others_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counters = Counters(np.zeros(LINE * len(NAMES), np.uint8))
    counters.store("command", Command.REST)
    done: list[str] = []

    def step() -> None:
        done.append("step")
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
    side_jobs = SimpleNamespace(serve=lambda: done.append("side job"))
    monkeypatch.setattr(worker.Arena, "from_handle", lambda handle, write: arena)
    monkeypatch.setattr(worker, "make_context", lambda *_: context)
    monkeypatch.setattr(worker.records, "Ring", lambda data: None)
    monkeypatch.setattr(worker, "Steps", lambda *_: steps)
    monkeypatch.setattr(worker.time, "sleep", sleep)
    writers = SimpleNamespace(write="lossless")
    setup = SimpleNamespace(writers=writers, side_jobs=lambda *_: side_jobs)
    job: Any = SimpleNamespace(handle=None, slot=1, setup=setup)

    worker._run(job)

    assert done == ["step"]
