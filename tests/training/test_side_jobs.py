"""The final evaluation covers every chunk of the held-out text, whoever dies on the way."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlxhog import evaluation, side_jobs
from mlxhog.arena.counters import LINE, NAMES, Counters
from mlxhog.control import EVAL_ROUND


def test_a_worker_that_is_busy_when_the_evaluation_begins_anew_takes_part_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counters = Counters(np.zeros(LINE * len(NAMES), np.uint8))
    scored: list[tuple[int, int]] = []

    def score(*_: object) -> evaluation.Score:
        if len(scored) == 1:  # the supervisor finds another worker dead
            counters.store("eval_next", 2 * EVAL_ROUND)
        return evaluation.Score(nats=1.0, n_bytes=1, tokens=1)

    def record(**fields: int) -> None:
        scored.append((fields["round"], fields["chunk"]))

    monkeypatch.setattr(side_jobs.TokenFile, "open", lambda path: None)
    monkeypatch.setattr(side_jobs.strategies, "copy_to_inbox", lambda context: None)
    monkeypatch.setattr(side_jobs.evaluation, "final_chunks", lambda file, config: 4)
    monkeypatch.setattr(side_jobs.evaluation, "score_chunk", score)
    job: Any = SimpleNamespace(config=None, slot=1)
    text: Any = SimpleNamespace(val=Path())
    context: Any = SimpleNamespace(
        arena=SimpleNamespace(counters=counters),
        entry=SimpleNamespace(beat=lambda phase: None),
        backend=None,
    )
    ring: Any = SimpleNamespace(append=record)
    worker = side_jobs.TextJobs(text, job, context, ring)

    counters.store("eval_next", 1 * EVAL_ROUND)
    worker.evaluate_rest()
    assert {chunk for round_, chunk in scored if round_ == 2} == {0, 1, 2, 3}
    before = len(scored)
    worker.evaluate_rest()  # asked again, it has nothing left to do
    assert len(scored) == before
