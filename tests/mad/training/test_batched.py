"""Runs of one shape, trained as one computation, have the results of single runs."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from mlxhog import backends
from mlxhog.data.batch import Batch
from mlxhog.errors import ConfigError
from mlxhog.mad.run import RunConfig, RunResult
from mlxhog.mad.training import batched
from mlxhog.mad.training.batched import GradientBarrier
from mlxhog.mad.training.candidate import Prepare, train
from mlxhog.mad.training.run_plan import make_run_plan
from mlxhog.models.mad.layers import BUILT_IN
from tests.mad.training.small_runs import Recorder, numbers, small_run
from tests.threads import in_threads
from tests.tolerances import STEP_LOSSES_F32, assert_close

BACKENDS = ("torch:cpu", "mlx:cpu")


def points(base: RunConfig) -> list[RunConfig]:
    """Four runs of one shape: two seeds, two optimiser points."""
    return [
        replace(base, seed=seed, protocol=replace(base.protocol, lr=lr, weight_decay=decay))
        for seed in (1, 2)
        for lr, decay in ((1e-3, 0.1), (3e-3, 0.0))
    ]


def together(configs: list[RunConfig]) -> list[RunResult]:
    """The results of the runs as one computation, without timing."""
    results: dict[int, RunResult] = {}

    def run_one(number: int, prepare: Prepare) -> None:
        results[number] = train(configs[number], prepare=prepare)

    batched.in_threads([make_run_plan(config) for config in configs], run_one)
    return [results[number] for number in range(len(configs))]


def assert_same(actual: RunResult, expected: RunResult) -> None:
    assert (actual.status, actual.steps) == (expected.status, expected.steps)
    for name in ("loss", "acc_token", "acc_macro"):
        curves = [np.array([getattr(p, name) for p in one.curve]) for one in (actual, expected)]
        if name == "loss":
            assert_close(*curves, STEP_LOSSES_F32)
        else:  # one scored answer may change by rounding
            np.testing.assert_allclose(*curves, atol=0.02)


@pytest.mark.parametrize(
    ("task", "backend", "optimizer"),
    [
        ("in-context-recall", "torch:cpu", "adamw"),
        ("memorization", "mlx:cpu", "adamw"),
        ("compression", "torch:cpu", "adamw"),
        ("in-context-recall", "mlx:cpu", "muon"),
    ],
)
def test_runs_that_are_computed_together_come_to_what_each_comes_to_alone(backend, task, optimizer):
    settings = {"vocab": 24} if task == "memorization" else {}
    base = small_run(
        workers=backend, task=task, settings=settings, clip=1.0, eval_every=4, optimizer=optimizer
    )
    configs = points(base)
    for actual, config in zip(together(configs), configs, strict=True):
        assert_same(actual, train(config))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layer", sorted(layer.name for layer in BUILT_IN))
def test_every_layer_can_be_computed_together(layer, backend):
    base = small_run(layers=layer, workers=backend, steps=2, eval_every=1, dim=32)
    configs = points(base)[:2]
    assert_same(together(configs)[1], train(configs[1]))


def test_a_run_that_ends_early_leaves_the_others_to_go_on():
    configs = points(small_run(eval_every=3))
    configs[1] = replace(configs[1], protocol=replace(configs[1].protocol, stop_accuracy=1e-9))
    actual = together(configs)
    assert [one.steps for one in actual] == [12, 3, 12, 12]
    assert_same(actual[3], train(configs[3]))


def test_a_run_that_diverges_takes_no_other_with_it():
    configs = points(small_run(eval_every=20, steps=60, stop_accuracy=2.0))
    configs[2] = replace(configs[2], protocol=replace(configs[2].protocol, lr=1e30))
    result = together(configs)
    assert [one.status for one in result] == ["done", "done", "diverged", "done"]
    assert [one.steps == 60 for one in result] == [True, True, False, True]
    assert math.isfinite(result[3].loss)


def test_rungs_are_asked_of_every_run():
    configs = points(small_run(eval_every=6))
    watches = [Recorder(prune=number == 1) for number in range(4)]
    results: dict[int, RunResult] = {}

    def run_one(number: int, prepare: Prepare) -> None:
        results[number] = train(
            configs[number], callbacks=watches[number], rungs=(4,), prepare=prepare
        )

    batched.in_threads([make_run_plan(config) for config in configs], run_one)
    assert [callbacks.asked for callbacks in watches] == [[4]] * 4
    assert [results[number].status for number in range(4)] == ["done", "pruned", "done", "done"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_faster_way_is_taken_and_said(backend, monkeypatch):
    configs = points(small_run(workers=backend))
    plans = [make_run_plan(config) for config in configs]
    result = batched.measure(plans)
    assert result.batched == (result.together_s < result.alone_s)
    assert f"{result.alone_s * 1e3:.2f} ms alone" in result.why
    for wins in (True, False):
        monkeypatch.setattr(batched, "_shortest", lambda *_, w=wins: [2.0, 4.0 if w else 12.0])
        threads, results, messages = set(), {}, []

        def run_one(number, prepare, threads=threads, results=results):
            threads.add(threading.current_thread().name)
            results[number] = train(configs[number], prepare=prepare)

        assert batched.train_together(configs, run_one, messages.append).batched is wins
        assert len(threads) == (4 if wins else 1)
        assert ("as one batched computation" if wins else "one after the other") in messages[0]
        assert_same(results[2], train(configs[2]))


def test_runs_that_cannot_be_batched_are_trained_one_after_the_other_and_it_is_said(monkeypatch):
    configs = points(small_run())[:2]

    def fails(*arguments):
        raise RuntimeError("no batching rule for this operator")

    monkeypatch.setattr(batched, "_compute", fails)
    results, messages = {}, []

    def run_one(number, prepare):
        results[number] = train(configs[number], prepare=prepare)

    choice = batched.train_together(configs, run_one, messages.append)
    assert not choice.batched
    assert math.isinf(choice.together_s)
    assert "no batching rule for this operator" in messages[0]
    assert numbers(results[1]) == numbers(train(configs[1]))


@pytest.mark.slow
def test_metal_kernels_are_checked_before_they_are_timed(monkeypatch):
    plans = [replace(make_run_plan(config), kernels=("metal",)) for config in points(small_run())]
    create, checked = backends.create, []

    def on_a_gpu(name, *, kernels, **options):
        backend = create(name, kernels="reference", **options)
        backend.check_kernels = lambda: checked.append(kernels)
        return backend

    monkeypatch.setattr(backends, "create", on_a_gpu)
    batched.measure(plans)
    assert checked == ["metal"]


def test_only_runs_of_one_shape_and_one_worker_are_taken():
    one = small_run()
    with pytest.raises(ConfigError, match="differ in more than seed"):
        batched.train_together([one, replace(one, dim=32)], lambda *_: None, print)
    two = replace(one, workers="torch:cpu*2")
    with pytest.raises(ConfigError, match="runs of one worker"):
        batched.train_together([two, replace(two, seed=9)], lambda *_: None, print)


def test_a_barrier_answers_in_step_and_hands_an_error_to_everyone():
    calls = []

    def compute(params, batches):
        calls.append([int(value[0]) for value in params])
        if len(calls) == 2:
            raise ValueError("broken")
        return [(float(value[0]), {}) for value in params]

    barrier, batch = GradientBarrier(3, compute), Batch(np.zeros((1, 1), np.int32), None, n_bytes=0)
    result: list[object] = [None] * 3

    def member(number: int) -> None:
        results = [barrier.wait_for_gradient(number, np.full(1, number, np.float32), batch)[0]]
        try:
            barrier.wait_for_gradient(number, np.full(1, 10 + number, np.float32), batch)
        except ValueError as error:
            results.append(str(error))
        result[number] = results
        barrier.leave(number)

    in_threads(member, range(3))
    assert calls == [[0, 1, 2], [10, 11, 12]]
    assert result == [[float(number), "broken"] for number in range(3)]
