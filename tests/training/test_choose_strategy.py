"""`--strategy auto`: workers are measured, and their times choose the strategy."""

import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from mlxhog import _native, train
from mlxhog.base.workers import WorkerSpec
from mlxhog.checkpoint import checkpoint
from mlxhog.report.metrics import Activity
from mlxhog.training import choose_strategy, worker
from mlxhog.training.change_strategy import Changes
from mlxhog.training.choose_strategy import LOCK_FREE, ROUNDS, Paces, by_likelihood, choose
from mlxhog.training.plan import make_plan
from tests.training.small import identical, parameters, small_config

TWO = {"strategy": "auto", "workers": "mlx:cpu*2"}
GAINS = {"sync": 1.0, "hogwild": 1.3}


# -- the rule --------------------------------------------------------------------------------------


def test_even_and_steady_workers_average_their_gradients():
    choice = choose([[0.02] * 50, [0.02] * 50], sequences=2)
    assert (choice.strategy, choice.gain) == ("sync", pytest.approx(1.0))


def test_unequal_workers_average_where_the_sequences_divide_by_their_speed():
    # 12 sequences: 8 for the fast one and 4 for the other take both equally long.
    assert choose([[0.06] * 9, [0.12] * 9], sequences=6).gain == pytest.approx(1.0)
    # Of 2 sequences the fast one computes both, while the other could have computed one.
    lone = choose([[0.01] * 9, [0.02] * 9], sequences=1)
    assert (lone.strategy, lone.gain) == ("hogwild", pytest.approx(1.5))


def test_workers_that_are_held_up_now_and_then_do_not_wait_for_each_other():
    rng = np.random.default_rng(0)
    held_up = [(0.02 * rng.choice([1.0, 6.0], 60, p=[0.9, 0.1])).tolist() for _ in range(2)]
    choice = choose(held_up, sequences=2)
    assert choice.strategy == "hogwild"
    assert choice.gain > 1.2


@pytest.mark.parametrize("workers", [2, 8])
def test_rounds_are_never_faster_than_their_workers(workers):
    rng = np.random.default_rng(workers)
    times = [rng.uniform(0.01, 0.05, 30).tolist() for _ in range(workers)]
    assert choose(times, sequences=4).gain > 1.0


def test_the_line_has_the_figures_that_decide():
    line = str(choose([[0.02, 0.03], [0.05, 0.05, 0.05]], sequences=1))
    assert line.startswith("strategy hogwild: a gradient takes the workers 25 ± 5, 50 ± 0 ms; ")
    assert "compute 1.50 times as many as in rounds" in line
    assert "strategy sync, shares by speed: " in str(choose([[1.0], [1.0]], sequences=1))


def test_workers_that_look_alike_are_taken_for_even_until_they_are_measured():
    gpu, mlx, torch = (WorkerSpec(name, 1) for name in ("mlx:gpu", "mlx:cpu", "torch:cpu"))
    assert by_likelihood([mlx, mlx])[0] == by_likelihood([mlx, torch])[0] == ROUNDS
    two = by_likelihood([mlx, WorkerSpec("mlx:cpu", 2)])
    assert by_likelihood([gpu, mlx]) == two == (LOCK_FREE, ROUNDS)


@pytest.mark.parametrize(
    ("count", "seconds", "enough"),
    [(20, 0.9, False), (20, 1.1, True), (5, 1.1, False), (5, 4.1, True), (1, 60.0, False)],
)
def test_few_gradients_are_measured_longer_and_no_worker_measures_one_alone(count, seconds, enough):
    assert choose_strategy.is_enough(count, seconds, choose_strategy.limit_s(None)) == enough


def test_a_tenth_of_a_budget_of_time_is_measured_at_most():
    share_s = choose_strategy.limit_s(20.0)
    assert share_s == 2.0
    assert not choose_strategy.is_enough(5, 1.9, share_s)
    assert choose_strategy.is_enough(5, 2.0, share_s)
    assert choose_strategy.is_enough(1, 2.0, share_s)
    assert choose_strategy.limit_s(None) == math.inf


def test_the_line_of_a_run_that_is_not_measured_says_what_it_would_have_cost():
    line = str(choose_strategy.UnmeasuredStrategy("sync", gradient_s=7.0, budget_s=20.0))
    assert line.startswith("strategy sync, shares by speed, not measured: 2 gradients of a worker")
    assert "about 14 s, are over 10% of 20 s" in line


# -- runs ------------------------------------------------------------------------------------------


class Messages:
    """An observer that keeps a run's messages, and acts once while workers are measured."""

    def __init__(self, act=None):
        self.texts = []
        self.act, self.done = act, False

    def __call__(self, progress):
        if progress.message is not None:
            self.texts.append(progress.message)
        measuring = progress.doing is not None and progress.doing.activity == Activity.MEASURING
        if measuring and self.act is not None and not self.done:
            self.done = True
            os.kill(
                progress.workers[0].pid if self.act == signal.SIGKILL else os.getpid(), self.act
            )

    def choices(self):
        return [text for text in self.texts if text.startswith("strategy ")]


def stored(result):
    """The strategy in the run's configuration, and the measured one in its checkpoint."""
    values = yaml.safe_load((Path(result.run) / "config.yaml").read_text())
    if result.checkpoint is None:
        return values["strategy"], None
    return values["strategy"], checkpoint.load(Path(result.checkpoint)).state["regime"]


def starts(result):
    """Number of starts of each worker's framework, by its log."""
    logs = sorted((Path(result.run) / "logs").glob("worker-*.log"))
    return [log.read_text().count("micro-batch") for log in logs]


@pytest.fixture
def chosen(monkeypatch):
    """Forces the choice: the last name, regardless of the measurement; it never changes."""
    names = []

    def choose(seconds, sequences):
        assert all(min(times) > 0 and len(times) >= choose_strategy.LEAST for times in seconds)
        means = tuple(times[0] for times in seconds)
        deviations = tuple(0.0 for _ in means)
        return choose_strategy.MeasuredStrategy(names[-1], GAINS[names[-1]], means, deviations)

    monkeypatch.setattr(choose_strategy, "choose", choose)
    monkeypatch.setattr(Changes, "look", lambda changes: None)
    monkeypatch.setattr(worker, "main", measure_briefly)
    return names


def measure_briefly(job):
    """A worker that measures for less time. Children import it."""
    for name in ("MEASURE_S", "LONGEST_S"):
        setattr(choose_strategy, name, 0.1)
    worker.main(job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("likely", "name"), [("sync", "sync"), ("sync", "hogwild"), ("hogwild", "sync")]
)
def test_the_chosen_strategy_trains_names_its_reason_and_is_kept_by_a_resume(
    tmp_path, chosen, monkeypatch, likely, name
):
    both = (ROUNDS, LOCK_FREE) if likely == "sync" else (LOCK_FREE, ROUNDS)
    monkeypatch.setattr(choose_strategy, "by_likelihood", lambda workers: both)
    chosen.append(name)
    messages, own = Messages(), ("auto", name)
    first = train(small_config(tmp_path, steps=10, **TWO), observer=messages)
    assert (first.status, first.steps, stored(first)) == ("done", 10, own)
    (line,) = messages.choices()
    assert f"{GAINS[name]:.2f} times as many" in line
    assert sum(text.startswith("mlxhog ") for text in messages.texts) == 1
    assert len(list(Path(first.run).parent.iterdir())) == 1
    assert starts(first) == [1, 1]

    again = Messages()
    chosen.append("sync" if name == "hogwild" else "hogwild")  # measured now, it would be this
    second = train(small_config(tmp_path, steps=10, resume=first.run, **TWO), observer=again)
    assert (second.status, second.steps, stored(second)) == ("done", 20, own)
    assert not again.choices()


def without_time_to_measure(job):
    """A worker whose gradients take longer than the time to measure. Children import it."""
    choose_strategy.SHARE = 1e-9
    worker.main(job)


@pytest.mark.slow
def test_workers_that_would_take_too_long_are_not_measured_until_a_run_has_more_time(
    tmp_path, monkeypatch, chosen
):
    chosen.append("hogwild")
    measuring = worker.main
    monkeypatch.setattr(worker, "main", without_time_to_measure)
    messages = Messages()
    limited = {**TWO, "steps": 5, "time": 60}
    first = train(small_config(tmp_path, **limited), observer=messages)
    (line,) = messages.choices()
    assert line.startswith("strategy sync, shares by speed, not measured")
    assert (first.status, first.steps, stored(first)) == ("done", 5, ("auto", None))

    monkeypatch.setattr(worker, "main", measuring)
    second = train(small_config(tmp_path, resume=first.run, **limited), observer=messages)
    assert (second.steps, stored(second)) == (10, ("auto", "hogwild"))
    assert len(messages.choices()) == 2


@pytest.mark.slow
def test_workers_that_are_held_up_are_seen(tmp_path):
    messages = Messages()
    slow = "0=random:0.3:10,1=random:0.3:10"
    config = small_config(tmp_path, slow=slow, seed=127, steps=5, **TWO)  # drawn far apart
    result = train(config, observer=messages)
    assert (result.status, stored(result)) == ("done", ("auto", "hogwild"))
    assert messages.choices()


@pytest.mark.slow
def test_one_worker_is_serial_and_leaves_the_choice_to_a_resumed_run(tmp_path, chosen):
    one = small_config(tmp_path, strategy="auto", workers="mlx:cpu")
    assert make_plan(one).strategy.name == "serial"
    messages = Messages()
    first = train(one, observer=messages)
    assert stored(first) == ("auto", None)
    assert not messages.choices()
    assert "serial  1 worker" in messages.texts[0]
    serial = train(small_config(tmp_path, strategy="serial"))
    assert identical(parameters(first), parameters(serial))
    assert make_plan(small_config(tmp_path, resume=serial.run, **TWO)).alternatives
    chosen.append("hogwild")
    second = train(small_config(tmp_path, resume=first.run, **TWO), observer=messages)
    assert (second.steps, stored(second)) == (40, ("auto", "hogwild"))
    assert messages.choices()


@pytest.mark.slow
def test_a_worker_killed_while_it_is_measured_is_replaced_and_measured(tmp_path, chosen):
    chosen.append("sync")
    killer = Messages(signal.SIGKILL)
    config = small_config(tmp_path, slow="0=20,1=20", steps=5, **TWO)
    result = train(config, observer=killer)
    assert killer.done
    assert (result.status, result.steps, result.restarts) == ("done", 5, 1)
    assert killer.choices()
    assert starts(result) == [2, 1]


def test_a_worker_publishes_its_times_by_a_release_store_after_all_of_them(monkeypatch):
    memory, store = np.zeros(2 * (choose_strategy.MOST + 2)), _native.store_u64
    arena = SimpleNamespace(segment=lambda name: memory)
    paces = Paces(arena, 2)
    paces.note(0, 0.5, [])
    assert not paces.complete()
    seen = []

    def publish(data, end, value):
        seen.append(memory[choose_strategy.MOST + 2 :][[0, 1, choose_strategy.MOST]].tolist())
        store(data, end, value)

    monkeypatch.setattr(_native, "store_u64", publish)
    paces.note(1, 0.25, [0.1, 0.2])
    assert seen == [[0.1, 0.2, 0.25]]
    assert paces.complete()
    assert paces.seconds() == [[], [0.1, 0.2]]
    assert paces.slowest_s() == 0.5


@pytest.mark.slow
def test_a_run_interrupted_while_workers_are_measured_has_chosen_nothing(tmp_path):
    presser = Messages(signal.SIGINT)
    result = train(small_config(tmp_path, slow="0=20,1=20", **TWO), observer=presser)
    assert presser.done
    assert (result.status, result.steps, stored(result)) == ("interrupted", 0, ("auto", None))
    assert not presser.choices()
