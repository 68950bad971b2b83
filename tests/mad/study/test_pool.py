"""Silence of a pool's workers, by a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from mlxhog.arena import process
from mlxhog.mad.study.pool import TICK_S, Ended, Pool

SILENCE_S = 60.0


class Silent:
    """A worker that is up and says no more."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = [("ready", "here")]
        self.ended = False

    def send(self, message: object) -> None:
        pass

    def receive_all(self) -> list[tuple[Any, ...]]:
        said, self.said = self.said, []
        return said

    def end(self, *, dump: bool = False) -> None:
        self.ended = True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [10**12]
    monkeypatch.setattr(process, "monotonic_ns", lambda: now[0])
    return now


def submitted(worker: Silent) -> Pool:
    run: Any = type("Run", (), {"key": "a"})()
    task: Any = type("Task", (), {"runs": (run,)})()
    pool = Pool(1, lambda number: worker, lambda workers, seconds: None, silence_s=SILENCE_S)
    pool.submit(task)
    assert pool.events(0.0) == []
    return pool


def test_a_pause_of_the_whole_study_is_no_silence_of_a_run(now: list[int]) -> None:
    worker = Silent()
    pool = submitted(worker)
    for _ in range(10):
        now[0] += round(10 * SILENCE_S * 1e9)
        assert pool.events(0.0) == []
    assert not worker.ended


def test_a_run_that_is_silent_while_it_is_watched_has_failed(now: list[int]) -> None:
    worker = Silent()
    pool = submitted(worker)
    events: list[Any] = []
    for _ in range(round(1.1 * SILENCE_S / TICK_S)):
        now[0] += round(TICK_S * 1e9)
        events += pool.events(0.0)
    assert [type(one) for one in events] == [Ended]
    assert "no sign of life for 60 s" in events[0].result.reason
    assert worker.ended
