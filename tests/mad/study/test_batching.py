"""Runs of one shape go to one worker, with the results of single runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mlxhog.mad.options import Limit
from mlxhog.mad.search.samplers import ListSampler
from mlxhog.mad.study.pool import Ended, Task
from mlxhog.mad.study.scheduler import Proposals, Scheduler
from mlxhog.mad.study.study import PlannedRun
from mlxhog.mad.study.worker import local
from mlxhog.mad.training.candidate import train
from mlxhog.models.mad.sequence import canonical
from tests.mad.study.small import judge, result, study
from tests.mad.training.small_runs import small_run


def plan(candidate: str) -> list[PlannedRun]:
    """Six runs of a candidate: of two shapes, at three points each."""
    results = []
    for rows in (32, 64):
        for lr in (1e-3, 2e-3, 3e-3):
            base = small_run(
                workers="mlx:cpu", settings={"train_rows": rows}, lr=lr, steps=4, eval_every=2
            )
            results.append(
                PlannedRun(candidate=candidate, config=base, key=base.key(), label=f"rows={rows}")
            )
    return results


def schedule(store, executor, **how) -> Scheduler:
    layers = small_run().layers
    return Scheduler(store, Proposals(ListSampler([layers]), store), plan, judge, executor, **how)


class Notes:
    """An executor that keeps its tasks, and ends them at once."""

    def __init__(self, seats: int = 1) -> None:
        self.given: list[tuple[str, ...]] = []
        self._seats, self._ended = seats, []

    def free(self) -> int:
        return self._seats - len(self._ended)

    def submit(self, task: Task) -> str:
        self.given.append(tuple(f"{run.config.protocol.lr:g}" for run in task.runs))
        self._ended.append([Ended(run.key, result(run.config), "here") for run in task.runs])
        return "1"

    def events(self, timeout_s: float) -> list[Ended]:
        outcome: Iterable[list[Ended]] = self._ended
        self._ended = []
        return [one for of_task in outcome for one in of_task]


@pytest.mark.parametrize(
    ("batch", "seats", "runs", "groups"),
    [
        (1, 1, None, [1, 1, 1, 1, 1, 1]),
        (2, 1, None, [2, 1, 2, 1]),
        (8, 1, None, [3, 3]),
        (8, 2, None, [3, 3]),
        (8, 6, None, [1, 1, 1, 1, 1, 1]),
        (8, 1, 4, [3, 1]),
    ],
)
def test_so_many_runs_of_one_shape_go_to_one_worker_as_leave_work_for_the_others(
    tmp_path, batch, seats, runs, groups
):
    store = study(tmp_path, candidates=1)
    notes = Notes(seats)
    with store.lock():
        schedule(store, notes, batch=batch, limit=Limit(runs=runs)).run()
    assert [len(given) for given in notes.given] == groups
    assert len(store.records()) == sum(groups)


def test_a_study_in_batches_comes_to_what_one_run_at_a_time_comes_to(tmp_path):
    store = study(tmp_path, candidates=1)
    with store.lock():
        workers = local(train, parallel=1, threads=1, logs=store.directory / "logs", silence_s=60.0)
        with workers:
            outcome = schedule(store, workers, batch=3).run()
    assert outcome.statuses == {"done": 6}
    results = {record.key: record for record in store.records()}
    for run in plan(canonical(small_run().layers)):
        expected = train(run.config)
        assert results[run.key].loss == pytest.approx(expected.loss, abs=1e-4)
        assert results[run.key].acc_token == pytest.approx(expected.acc_token, abs=0.02)
        assert [point.step for point in store.curve(run.key)] == [2, 4]
    log = (store.directory / "logs" / "worker-1.log").read_text()
    assert log.count("3 runs ") == 2
    assert "ms alone, " in log


def killed_beside_others(config, *, callbacks, rungs, prepare=None):
    if prepare is not None and config.protocol.lr == 2e-3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return result(config)


@pytest.mark.slow
def test_a_crash_of_one_of_several_runs_is_held_against_none_before_it_is_alone(tmp_path):
    store = study(tmp_path, candidates=1)
    messages: list[str | None] = []
    with store.lock():
        workers = local(
            killed_beside_others, parallel=1, threads=1, logs=store.directory / "logs",
            silence_s=60.0,
        )  # fmt: skip
        with workers:
            outcome = schedule(
                store, workers, batch=3, observer=lambda progress: messages.append(progress.message)
            ).run()
    assert outcome.statuses == {"done": 6}
    assert any(text and "it is run again" in text for text in messages)


def test_shape_is_all_but_seed_and_optimiser_point():
    one = small_run()
    point = replace(one.protocol, lr=0.5, weight_decay=0.25)
    assert replace(one, seed=9, protocol=point).shape() == one.shape()
    undecayed = [SimpleNamespace(to_dict=lambda lr=lr: {"lr": lr}) for lr in (1e-3, 2e-3)]
    first, second = (replace(one, protocol=own) for own in undecayed)
    assert first.shape() == second.shape()
    for other in (
        replace(one, dim=8),
        replace(one, protocol=replace(one.protocol, clip=1.0)),
        replace(one, layers=one.layers[:1]),
        replace(one, settings={**one.settings, "vocab": 4}),
    ):
        assert other.shape() != one.shape()
