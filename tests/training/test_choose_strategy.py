"""`--strategy auto`: it begins with the likely strategy, and measured times change it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from mlxhog import train
from mlxhog.base.workers import WorkerSpec
from mlxhog.checkpoint import checkpoint
from mlxhog.training.choose_strategy import (
    LOCK_FREE,
    ROUNDS,
    RULE,
    StepTime,
    by_likelihood,
    gain,
    lost_in_rounds,
)
from mlxhog.training.plan import make_plan
from tests.training.small import Messages, identical, parameters, small_config

TWO = {"strategy": "auto", "workers": "mlx:cpu*2"}


# -- the rule --------------------------------------------------------------------------------------


def test_lock_free_workers_gain_what_rounds_lose_to_waiting():
    rng = np.random.default_rng(0)
    assert gain([[0.02] * 50, [0.02] * 50], sequences=2) == pytest.approx(1.0)
    # 12 sequences: 8 for the fast one and 4 for the other take both equally long.
    assert gain([[0.06] * 9, [0.12] * 9], sequences=6) == pytest.approx(1.0)
    # Of 2 sequences the fast one computes both, while the other could have computed one.
    assert gain([[0.01] * 9, [0.02] * 9], sequences=1) == pytest.approx(1.5)
    held_up = [(0.02 * rng.choice([1.0, 6.0], 60, p=[0.9, 0.1])).tolist() for _ in range(2)]
    assert gain(held_up, sequences=2) > 1.2
    for workers in (2, 8):
        times = [rng.uniform(0.01, 0.05, 30).tolist() for _ in range(workers)]
        assert gain(times, sequences=4) > 1.0


def test_workers_that_look_alike_are_taken_for_even():
    gpu, mlx, torch = (WorkerSpec(name, 1) for name in ("mlx:gpu", "mlx:cpu", "torch:cpu"))
    assert by_likelihood([mlx, mlx])[0] == by_likelihood([mlx, torch])[0] == ROUNDS
    two = by_likelihood([mlx, WorkerSpec("mlx:cpu", 2)])
    assert by_likelihood([gpu, mlx]) == two == (LOCK_FREE, ROUNDS)


def rounds(*seconds):
    """Steps of workers whose gradients take so long in each round, until the slowest has ended."""
    lasted = [max(of_round) for of_round in zip(*seconds, strict=True)]
    return [
        [StepTime(64, own, whole - own) for own, whole in zip(times, lasted, strict=True)]
        for times in seconds
    ]


def test_rounds_lose_the_gradients_that_the_same_workers_compute_without_waiting():
    assert lost_in_rounds(rounds((0.02,) * 9, (0.02,) * 9)) == pytest.approx(0.0)
    # A round of .04 s gives two gradients, without waiting three are computed in that time.
    assert lost_in_rounds(rounds((0.02,) * 9, (0.04,) * 9)) == pytest.approx(1 / 3)
    # A worker that gets no sequence is no loss: nothing is known of its speed.
    idle = [StepTime(0, 0.0, 0.02)] * 9
    assert lost_in_rounds([[StepTime(128, 0.02, 0.0)] * 9, idle]) == pytest.approx(0.0)


def test_rounds_end_when_the_last_ones_lose_more_than_the_limit():
    one, slow = (0.02,) * RULE.rounds, (0.03,) * RULE.rounds
    assert RULE.ends(rounds(one, one)) is None
    assert RULE.ends(rounds(one[1:], slow[1:])) is None  # too few
    assert RULE.ends(rounds(one, slow)) == pytest.approx(1 / 5)
    paused = (0.02,) * (RULE.rounds - 1)
    assert RULE.ends(rounds(one, (*paused, 9.0))) is None  # once
    assert RULE.ends(rounds(one, (*paused[1:], 9.0, 9.0))) is not None
    assert RULE.ends(rounds(one + one, slow + one)) is None  # it became fast


def test_rounds_begin_when_they_would_lose_less_than_the_limit():
    lock_free = [[StepTime(64, s, 0.0)] * RULE.gradients for s in (0.02, 0.02)]
    assert RULE.begins(lock_free, 2) == pytest.approx(0.0)
    held_up = [[StepTime(64, s, 0.0) for s in (0.02, 0.08) * 32] for _ in range(2)]
    held_up[1].reverse()
    assert RULE.begins(held_up, 2) is None


# -- plans -----------------------------------------------------------------------------------------

CHOICES = {"sync": ROUNDS, "hogwild": LOCK_FREE}


@pytest.mark.parametrize("budget", [{"steps": 20}, {"steps": None, "tokens": 5000}])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "soap"])
def test_either_strategy_has_the_numbers_that_it_has_when_it_is_named(tmp_path, optimizer, budget):
    given = {**TWO, "optimizer": optimizer, "lr": None, "model": "tiny", **budget}
    config = small_config(tmp_path, **given)
    plan = make_plan(config)
    assert [one.strategy.name for one in (plan, plan.other)] == ["sync", "hogwild"]
    assert plan.changed().changed().strategy == plan.strategy
    alone = {name: make_plan(replace(config, strategy=CHOICES[name])) for name in CHOICES}
    for own in (plan, plan.other):
        named = alone[own.strategy.name]
        for field in ("budget", "private_state", "shared_state"):
            assert getattr(own, field) == getattr(named, field), field
        assert own.strategy == replace(named.strategy, open=True)
        assert own.stored == replace(named.stored, strategy=None)
        assert own.automatic == named.automatic
        assert own.schedule(0.0)(0.5, 10) == named.schedule(0.0)(0.5, 10)
        for name, segment in named.layout.segments.items():
            has = plan.layout.segments[name]
            assert (has.dtype, has.count >= segment.count) == (segment.dtype, True), name
    # Slots for workers that join have a ring of records, and state that is private in both.
    private = set(plan.private_state) & set(plan.other.private_state)
    free = plan.free_slots * (len(private) * plan.layout.n_floats * 4 + (1 << 20))
    assert plan.arena_bytes <= max(one.arena_bytes for one in alone.values()) + free


# -- runs ------------------------------------------------------------------------------------------


def stored(result):
    """The strategy in the run's configuration, and the one in its checkpoint."""
    values = yaml.safe_load((Path(result.run) / "config.yaml").read_text())
    return values["strategy"], checkpoint.load(Path(result.checkpoint)).state["regime"]


@pytest.mark.slow
def test_a_run_says_how_it_begins_and_a_resume_continues_with_its_strategy(tmp_path, monkeypatch):
    messages = Messages()
    first = train(small_config(tmp_path, steps=6, **TWO), observer=messages)
    assert (first.steps, stored(first)) == (6, ("auto", "sync"))
    (line,) = [text for text in messages if text.startswith("strategy ")]
    assert line.startswith("strategy sync, shares by speed to begin with, since workers are on one")
    path = Path(first.checkpoint) / "state.json"
    path.write_text(path.read_text().replace('"regime": "sync"', '"regime": "hogwild"'))
    monkeypatch.setattr("mlxhog.checkpoint.manifest._own_digest", lambda record: record["sha256"])
    plan = make_plan(small_config(tmp_path, steps=6, resume=first.run, **TWO))
    assert (plan.strategy.name, plan.other.strategy.name) == ("hogwild", "sync")
    assert any("hogwild to begin with, as when it was saved" in note for note in plan.notes)


@pytest.mark.slow
def test_one_worker_is_serial_and_leaves_the_choice_to_a_resumed_run(tmp_path):
    messages = Messages()
    first = train(small_config(tmp_path, strategy="auto"), observer=messages)
    assert stored(first) == ("auto", None)
    assert "serial  1 worker" in messages[0]
    assert not [text for text in messages if text.startswith("strategy ")]
    serial = train(small_config(tmp_path, strategy="serial"))
    assert identical(parameters(first), parameters(serial))
    for run in (first.run, serial.run):
        assert make_plan(small_config(tmp_path, resume=run, **TWO)).other is not None
