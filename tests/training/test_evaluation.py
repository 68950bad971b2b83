"""The final evaluation: every batch of the held-out text once, whoever dies, or what fits."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlxhog.arena.control import EVAL_ROUND, LINE, NAMES, Command, Counters
from mlxhog.training import evaluation
from mlxhog.training.ending import Deadlines, FinalEvaluation
from mlxhog.training.evaluation import Score, Scores, spread

BATCHES = 4
ONE = Score(nats=2.0, n_bytes=3, tokens=4, share=1 / BATCHES)


class Worker:
    """The side jobs of a worker whose model needs no computing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counters = Counters(np.zeros(LINE * len(NAMES), np.uint8))
        self.memory = np.zeros(LINE * BATCHES, np.uint8)
        self.scored: list[int] = []
        self.meanwhile: Callable[[], None] = lambda: None  # happens while a batch is scored
        text = SimpleNamespace(score=self._score)
        monkeypatch.setattr(evaluation.TokenFile, "open", lambda path: None)
        monkeypatch.setattr(evaluation, "param_count", lambda model: 1)
        monkeypatch.setattr(evaluation.HeldOutText, "of", lambda *_: text)
        arena = SimpleNamespace(counters=self.counters, segment=lambda name: self.memory)
        config = SimpleNamespace(eval_tokens=1, kernels="native")
        context: Any = SimpleNamespace(
            arena=arena,
            entry=SimpleNamespace(beat=lambda phase: None),
            backend=None,
            training=lambda: False,
            copy_to_inbox=lambda: None,
        )
        job: Any = SimpleNamespace(config=config, slot=1, setup=SimpleNamespace(model=None))
        of_run: Any = SimpleNamespace(val=Path())
        ring: Any = SimpleNamespace(append=None)  # nothing of the final evaluation goes there
        self.jobs = evaluation.TextJobs(of_run, job, context, ring)
        self.scores = Scores(self.memory)

    def _score(self, backend: object, batch: int) -> Score:
        self.scored.append(batch)
        self.meanwhile()
        return ONE

    def begin(self, round_: int, *, first: int | None = None, until_ns: int = 0) -> None:
        """Do what the supervisor does."""
        self.counters.store("side_until_ns", until_ns)
        self.counters.store("eval_first", round_ if first is None else first)
        self.counters.store("eval_next", round_ * EVAL_ROUND)
        self.counters.store("command", Command.EVALUATE)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(monkeypatch)


def test_every_batch_is_scored_once_and_the_sums_lie_in_the_arena(worker: Worker) -> None:
    worker.begin(1)
    worker.jobs.evaluate_rest()
    worker.jobs.evaluate_rest()  # asked again, it has nothing left to do
    assert sorted(worker.scored) == [0, 1, 2, 3]
    assert worker.scores.total(first=1) == Score(nats=8.0, n_bytes=12, tokens=16, share=1.0)


def test_batches_of_a_dead_worker_are_shared_out_anew_and_the_others_kept(worker: Worker) -> None:
    worker.begin(1)
    worker.counters.add("eval_next", 1)  # whoever took the first batch died with it
    worker.jobs.evaluate_rest()
    assert worker.scores.total(first=1).share == 0.75
    worker.begin(2, first=1)
    worker.jobs.evaluate_rest()
    assert worker.scored[3:] == [spread(BATCHES)[0]]
    assert worker.scores.total(first=1).share == 1.0


def test_a_worker_that_is_busy_when_a_new_round_begins_takes_part_in_it(worker: Worker) -> None:
    def find_another_dead() -> None:
        if len(worker.scored) == 2:
            worker.begin(2, first=1)

    worker.meanwhile = find_another_dead
    worker.begin(1)
    worker.jobs.evaluate_rest()
    assert sorted(worker.scored) == [0, 1, 2, 3]
    assert worker.scores.total(first=1).share == 1.0


def test_an_evaluation_of_other_parameters_begins_at_nothing(worker: Worker) -> None:
    worker.begin(1)
    worker.jobs.evaluate_rest()
    worker.begin(2)
    assert worker.scores.total(first=2) == Score(nats=0.0, n_bytes=0, tokens=0, share=0.0)
    worker.jobs.evaluate_rest()
    assert worker.scores.total(first=2).share == 1.0


def test_no_batch_is_begun_when_the_time_is_over_or_the_run_is_ending(worker: Worker) -> None:
    def end() -> None:
        if len(worker.scored) == 2:
            worker.counters.store("side_until_ns", 1)  # long ago

    worker.meanwhile = end
    worker.begin(1)
    worker.jobs.evaluate_rest()
    assert worker.scored == spread(BATCHES)[:2]
    assert worker.scores.total(first=1).share == 0.5
    worker.begin(2)
    worker.counters.store("command", Command.EXIT)
    worker.jobs.evaluate_rest()
    assert len(worker.scored) == 2


def test_an_evaluation_that_training_has_ended_before_is_not_taken_up_beside_the_last_sample(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(worker.jobs, "_evaluate", lambda: done.append("evaluation"))
    monkeypatch.setattr(worker.jobs, "_sample", lambda: done.append("sample"))
    for what in ("eval_asked", "sample_asked"):
        worker.counters.store(what, 1)
    worker.counters.store("command", Command.SAMPLE)
    worker.jobs.serve()
    assert done == ["sample"]
    monkeypatch.setattr(worker.jobs.context, "training", lambda: True)
    worker.jobs.serve()
    assert done == ["sample", "evaluation"]


def test_what_training_has_evaluated_is_taken_in_before_the_final_evaluation_begins() -> None:
    events: list[str] = []
    counters = Counters(np.zeros(LINE * len(NAMES), np.uint8))
    memory = np.zeros(LINE * BATCHES, np.uint8)
    supervisor = SimpleNamespace(command=lambda command: events.append(command.name))
    session: Any = SimpleNamespace(
        arena=SimpleNamespace(counters=counters, segment=lambda name: memory),
        supervisor=supervisor,
        strategy=SimpleNamespace(copies=lambda: ()),
        until=None,
        drain=lambda: events.append("drain"),
    )
    monitor: Any = SimpleNamespace(seconds=lambda: 1.0)
    FinalEvaluation(session, monitor, Deadlines(0, None)).begin()
    assert events == ["drain", "EVALUATE"]


@pytest.mark.parametrize("n", [1, 2, 3, 10, 89, 1000, 3378])
def test_the_first_batches_are_spread_evenly_over_the_text(n: int) -> None:
    order = spread(n)
    assert sorted(order) == list(range(n))
    for share in (0.1, 0.38, 0.5, 0.9):
        first = np.sort(order[: max(1, int(share * n))])
        gaps = np.diff(np.concatenate([first, [first[0] + n]]))
        assert gaps.max() <= 3 * n / len(first)


def test_a_large_model_is_evaluated_in_small_batches(tmp_path: Path) -> None:
    config: Any = SimpleNamespace(seq_len=256)
    rows = [
        evaluation.HeldOutText.of(None, config, n, 1).rows  # type: ignore[arg-type]
        for n in (1_000_000, 30_000_000, 162_000_000, 1_300_000_000)
    ]
    assert rows == [16, 4, 1, 1]


def test_an_evaluation_while_training_covers_at_least_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation.HeldOutText, "n_batches", 8)
    monkeypatch.setattr(evaluation.HeldOutText, "score", lambda *_: ONE)
    text = evaluation.HeldOutText(None, 1, 1, 1)  # type: ignore[arg-type]
    answers = iter([False, False, True])
    assert text.score_until(None, lambda: True).share == 1 / 8  # type: ignore[arg-type]
    result = text.score_until(None, lambda: next(answers))  # type: ignore[arg-type]
    assert (result.share, result.tokens) == (3 / 8, 12)
