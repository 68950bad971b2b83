"""`--strategy auto`: it begins with the likely strategy, and measured times change it."""

import json
import math
import os
import signal
import time
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from mlxhog import train
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.requests import ask
from mlxhog.arena.workers import WorkerState
from mlxhog.base.durable import read_lines
from mlxhog.base.workers import WorkerSpec
from mlxhog.config.budget import Budget
from mlxhog.training.plan import strategy_rule
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.strategy_rule import LOCK_FREE, SYNC, StepTime, by_likelihood, gain
from mlxhog.training.supervisor import arena_state, change_strategy
from mlxhog.training.supervisor import training as runs
from mlxhog.training.supervisor.arena_state import change
from mlxhog.training.supervisor.session import Session
from tests.pairs import each_of
from tests.threads import wait_until
from tests.training.asking import LIMIT_S, endless, trained, until
from tests.training.small import Messages, checkpoint_of, filled, small_config, tickets
from tests.training.supervisor.test_elastic import has_left, works

AUTO = {"strategy": "auto", "workers": "mlx:cpu*2"}


def test_lock_free_workers_gain_what_synchronous_steps_lose_to_waiting():
    rng = np.random.default_rng(0)
    for seconds, sequences, expected in (
        # 12 sequences: 8 for the fast one and 4 for the other take both equally long.
        ([[0.06] * 9, [0.12] * 9], 6, 1.0),
        # Of 2 sequences the fast one computes both, while the other could have computed one.
        ([[0.01] * 9, [0.02] * 9], 1, 1.5),
    ):
        assert gain(seconds, sequences) == pytest.approx(expected)
    held_up = [(0.02 * rng.choice([1.0, 6.0], 60, p=[0.9, 0.1])).tolist() for _ in range(2)]
    assert gain(held_up, sequences=2) > 1.2
    lock_free = [[StepTime(64, s, 0.0)] * 64 for s in (0.02, 0.02)]
    assert strategy_rule.sync_would_lose(lock_free, 2) == pytest.approx(0.0)
    lock_free = [[StepTime(64, s, 0.0) for s in (0.02, 0.08)[::k] * 32] for k in (1, -1)]
    assert strategy_rule.sync_would_lose(lock_free, 2) > strategy_rule.max_lost(2)


def test_the_staler_gradients_are_the_more_synchronous_steps_may_lose():
    may_lose = [strategy_rule.max_lost(workers) for workers in (2, 4, 8, 16)]
    assert may_lose == pytest.approx([0.15, 0.254, 0.401, 0.571], abs=1e-3)


def test_workers_that_look_alike_are_taken_for_even():
    gpu, mlx, torch = (WorkerSpec(name, 1) for name in ("mlx:gpu", "mlx:cpu", "torch:cpu"))
    assert by_likelihood([mlx, mlx])[0] == by_likelihood([mlx, torch])[0] == SYNC
    two = by_likelihood([mlx, WorkerSpec("mlx:cpu", 2)])
    assert by_likelihood([gpu, mlx]) == two == (LOCK_FREE, SYNC)


def rounds(*seconds):
    """Steps of workers whose gradients take so long in each round, until the slowest has ended."""
    lasted = [max(of_round) for of_round in zip(*seconds, strict=True)]
    return [
        [StepTime(64, own, whole - own) for own, whole in zip(times, lasted, strict=True)]
        for times in seconds
    ]


ONE, SLOW = ((seconds,) * strategy_rule.LAST_STEPS for seconds in (0.02, 0.03))


def test_synchronous_steps_lose_the_gradients_that_the_workers_compute_without_waiting():
    for first, second, lost in (
        (ONE, ONE, 0.0),
        # Rounds of .03 s give two gradients, without waiting 2.5 are computed in that time.
        (ONE, SLOW, 1 / 5),
        (ONE, (*ONE[1:], 9.0), 0.0),  # once
        (ONE, (*ONE[2:], 9.0, 9.0), 0.879),
        (ONE + ONE, SLOW + ONE, 0.0),  # it became fast
        (ONE[1:], SLOW[1:], None),  # too few
    ):
        share = strategy_rule.lost_by_last_steps(rounds(first, second))
        assert share == pytest.approx(lost, abs=0.01)
    # A worker without a sequence has no speed.
    steps = [[one] * len(ONE) for one in (StepTime(128, 0.02, 0.0), StepTime(0, 0.0, 0.02))]
    assert strategy_rule.lost_by_last_steps(steps) == pytest.approx(0.0)


@each_of(
    ("optimizer", "budget"),
    [("muon", {}), ("adamw", {"steps": None, "tokens": 5000}), ("soap", {})],
)
def test_either_plan_is_that_of_the_strategy_when_it_is_named(tmp_path, optimizer, budget):
    config = small_config(tmp_path, **AUTO, optimizer=optimizer, lr=None, model="tiny", **budget)
    plan = make_plan(config)
    assert [one.strategy.name for one in (plan, plan.other)] == ["sync", "hogwild"]
    assert plan.changed().changed().strategy == plan.strategy
    assert plan.layout.total_bytes == plan.other.layout.total_bytes
    alone = [make_plan(replace(config, strategy=choice)) for choice in (SYNC, LOCK_FREE)]
    for own, named in zip((plan, plan.other), alone, strict=True):
        assert (own.strategy, own.budget) == (named.strategy, named.budget)
        assert own.stored == replace(named.stored, strategy=None)
        assert own.automatic == named.automatic
        assert own.schedule(0.0)(0.5, 10) == named.schedule(0.0)(0.5, 10)
        behind = [list(one.layout.segments)[one.layout.n_kept :] for one in (own, named)]
        assert behind[0] == behind[1]
    rings = plan.free_slots << 20  # of workers that join
    assert plan.arena_bytes <= max(one.arena_bytes for one in alone) + rings


def test_a_budget_continues_at_the_share_that_is_done_in_steps_of_another_size():
    """100 batches: 50 rounds of two, or 100 lock-free steps."""
    in_rounds, lock_free = (Budget(steps=n, equal_steps_before=0.0) for n in (50, 100))
    changed = lock_free.continuing(in_rounds, steps=20)
    assert changed.steps == 20 + 60
    assert changed.progress(steps=20, tokens=0, seconds=0) == pytest.approx(0.4)
    assert changed.progress(steps=80, tokens=0, seconds=0) == 1.0
    again = in_rounds.continuing(changed, steps=40)
    assert again.steps == 40 + 20
    assert again.progress(steps=40, tokens=0, seconds=0) == pytest.approx(0.6)
    of_time = Budget(seconds=60.0)
    assert of_time.continuing(of_time, steps=20) == of_time
    assert Budget(tokens=1000).step_limit(lambda n: n // 100, steps=3, tokens=600) == 3 + 4


@each_of("optimizer", ["muon", "adamw", "soap"])
def test_a_change_and_back_keeps_the_moments_and_their_number_of_steps(tmp_path, optimizer):
    rng = np.random.default_rng(0)
    config = small_config(tmp_path, **AUTO, optimizer=optimizer, lr=None)
    with filled(config) as (averaging, arena, _):
        lock_free = averaging.changed()
        arena.counters.store("version", 7)
        params = arena.params.copy()
        for slot in (1, 2):
            entry = arena.workers.acquire_slot(slot=slot)
            entry.opt_step, entry.state = 5, WorkerState.RUNNING
        before = {}
        for kind in averaging.optimizer.state_segments:  # those of slot 1 are everybody's
            for name, view in arena.views(f"{kind}.1").items():
                view[...] = before[kind, name] = rng.random(view.shape, np.float32)
        change(averaging, lock_free, arena)
        shares = bool(lock_free.optimizer.shared_segments)
        if shares:
            assert arena.counters.load("version") - arena.counters.load("moments_since") == 5
        for segment in lock_free.strategy.segments(averaging.layout.slots):
            assert not arena.segment(segment).any()
        arena.counters.store("version", 9)  # two steps, one of each worker
        for slot in (1, 2):
            arena.workers.entry(slot).opt_step += 1
        change(lock_free, averaging, arena)
        assert [arena.workers.entry(slot).opt_step for slot in (1, 2)] == [6 + shares] * 2
        for (kind, name), value in before.items():
            for slot in (1, 2):
                assert np.array_equal(arena.views(f"{kind}.{slot}")[name], value), name
        assert not arena.segment("strategy.words").any()
        assert np.array_equal(arena.params, params)


def test_a_change_needs_little_memory_and_averages_the_moments_of_workers_bit_for_bit(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(arena_state, "MEAN_FLOATS", 1000)
    rng = np.random.default_rng(0)
    config = small_config(
        tmp_path, **AUTO, optimizer="adamw", moments="private", lr=None, model="tiny"
    )
    with filled(config) as (averaging, arena, _):
        lock_free = averaging.changed()
        saved = {}
        for slot in (1, 2):
            arena.workers.acquire_slot(slot=slot).state = WorkerState.RUNNING
        change(averaging, lock_free, arena)
        for segment in ("m.1", "m.2", "v.1", "v.2"):
            for name, view in arena.views(segment).items():
                view[...] = saved[segment, name] = rng.random(view.shape, np.float32)
        tracemalloc.start()
        change(lock_free, averaging, arena)
        _, max_bytes = tracemalloc.get_traced_memory()
        change(averaging, lock_free, arena)
        tracemalloc.stop()
        assert max_bytes < arena.segment("m.1").nbytes / 4
        for segment in ("m.1", "m.2", "v.1", "v.2"):
            for name, view in arena.views(segment).items():
                both = [saved[f"{segment[0]}.{slot}", name] for slot in (1, 2)]
                assert np.array_equal(view, np.mean(both, axis=0)), (segment, name)


def stored(result):
    """The strategy in the run's configuration, and the one in its checkpoint."""
    values = yaml.safe_load((Path(result.run) / "config.yaml").read_text())
    return values["strategy"], checkpoint_of(result).state["regime"]


@pytest.mark.slow
def test_a_run_says_how_it_begins_and_a_resume_continues_with_its_strategy(tmp_path, monkeypatch):
    messages = Messages()
    monkeypatch.setattr(strategy_rule, "ABSENT_S", math.inf)
    first = train(small_config(tmp_path, steps=6, **AUTO), observer=messages)
    assert (first.steps, stored(first)) == (6, ("auto", "sync"))
    (line,) = [text for text in messages if text.startswith("strategy ")]
    assert line.startswith(
        "strategy sync, speed-weighted shares to begin with, since workers are on one"
    )
    path = Path(first.checkpoint) / "state.json"
    path.write_text(path.read_text().replace('"regime": "sync"', '"regime": "hogwild"'))
    monkeypatch.setattr("mlxhog.checkpoint.manifest._own_digest", lambda record: record["sha256"])
    plan = make_plan(small_config(tmp_path, steps=6, resume=first.run, **AUTO))
    assert (plan.strategy.name, plan.other.strategy.name) == ("hogwild", "sync")
    assert "hogwild to begin with, as when it was saved" in " ".join(plan.notes)


@pytest.mark.slow
def test_one_worker_is_serial_and_leaves_the_choice_to_a_resumed_run(tmp_path):
    messages = Messages()
    first = train(small_config(tmp_path, strategy="auto", steps=2), observer=messages)
    assert stored(first) == ("auto", None)
    assert "serial  1 worker" in messages[0]
    serial = train(small_config(tmp_path, strategy="serial", steps=2))
    for run in (first.run, serial.run):
        assert make_plan(small_config(tmp_path, resume=run, **AUTO)).other is not None


def changes(directory):
    events = read_lines(directory / "events.jsonl", 0, 1 << 20).splitlines()  # none is torn
    return [event for event in map(json.loads, events) if event["kind"] == "strategy"]


def wait_for(directory, strategy, act=lambda: None):
    def has_changed():
        act()
        return strategy in [event["strategy"] for event in changes(directory)]

    wait_until(has_changed, LIMIT_S, strategy, every_s=0.02)


def check_tickets(result):
    """Every batch was trained once: two in each round, one in each lock-free step."""
    state = checkpoint_of(result).state
    batches, step, strategy = 0, 0, "sync"
    for event in (*changes(Path(result.run)), {"step": result.steps, "strategy": "end"}):
        batches += (event["step"] - step) * (2 if strategy == "sync" else 1)
        step, strategy = event["step"], event["strategy"]
    assert state["ledger"]["done"] == []
    assert tickets(state) == batches
    assert state["used"]["steps"] == result.steps


@pytest.fixture
def rule(monkeypatch):
    """Sets constants of the rule, which looks at few steps."""

    def of(**constants):
        for name, value in {"LAST_STEPS": 8, "GRADIENTS": 8, **constants}.items():
            monkeypatch.setattr(strategy_rule, name, value)
            monkeypatch.setattr(change_strategy, name, value, raising=False)

    return of


@pytest.mark.slow
def test_a_run_whose_worker_is_stopped_becomes_lock_free_and_synchronous_again_when_it_is_not(
    tmp_path, rule
):
    def stop_and_continue(pid):
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(0.1)
        finally:
            os.kill(pid, signal.SIGCONT)

    def disturb(directory):
        pid = until(directory, works(2))[2]["pid"]
        wait_for(directory, "hogwild", lambda: stop_and_continue(pid))
        rule(ABSENT_S=math.inf, BEGIN_AT=begin_at)
        wait_for(directory, "sync")

    begin_at = 4.0  # other processes may take half a core from one of the workers meanwhile
    rule(ABSENT_S=math.inf)
    config = endless(tmp_path, optimizer="muon", lr=None, inject_stragglers="0=4,1=4", **AUTO)
    result = trained(config, disturb)
    ended, begun, *others = changes(Path(result.run))
    last = [begun, *others][-1]
    assert ended["lost"] > strategy_rule.max_lost(2)
    assert "synchronous steps lost" in ended["text"]
    assert begun["lost"] < begin_at * strategy_rule.max_lost(2)
    assert "synchronous steps would lose" in begun["text"]
    assert result.restarts == 0
    check_tickets(result)
    *_, metrics = (Path(result.run) / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics)["strategy"] == last["strategy"]


@pytest.mark.slow
def test_synchronous_steps_end_where_a_worker_is_absent_and_before_others_join_or_leave(
    tmp_path, rule, monkeypatch
):
    late_s = 240

    class ComesAtTheChange(Session):
        """Its late worker begins at the first change of the strategy, and is there from then on."""

        def continue_by(self, *args):
            super().continue_by(*args)
            rule(MAX_LOST=1.0, ABSENT_S=math.inf)
            counters, late_ns = self.arena.counters, late_s * 10**9
            if monotonic_ns() - counters.load("start_ns") < late_ns:
                counters.store("start_ns", counters.load("start_ns") - late_ns)

    def come_and_go(directory):
        wait_for(directory, "hogwild")
        wait_for(directory, "sync")
        ask(directory, "join", workers="mlx:cpu")
        until(directory, works(3, steps=5))
        last = changes(directory)[-1]
        assert (last["strategy"], last["text"]) == (
            "hogwild", "strategy hogwild: workers join and leave without synchronous steps",
        )  # fmt: skip
        ask(directory, "leave")
        until(directory, has_left(3))

    monkeypatch.setattr(runs, "Session", ComesAtTheChange)
    rule(MAX_LOST=1.0, ABSENT_S=0.5)
    result = trained(endless(tmp_path, inject_stragglers=f"1=late:{late_s}s", **AUTO), come_and_go)
    first, *_ = changes(Path(result.run))
    assert "no synchronous step has begun" in first["text"]
    assert first["step"] == 0


@pytest.mark.slow
def test_a_death_at_any_moment_of_a_change_loses_no_batch(trained_with_kills, rule):
    kills = [(moment, victims) for victims in (2, 1) for moment in ("end", "choice", "pause")]
    messages = Messages()

    def until_all_are_replaced(directory):
        def deaths():
            return sum("is being replaced" in text for text in messages)

        wait_until(lambda: deaths() == 9, LIMIT_S, "nine deaths")
        step = ask(directory, "status")["step"]  # next are the batches of the dead
        wait_until(lambda: ask(directory, "status")["step"] > step + 20, LIMIT_S, "more steps")

    # Changes whenever enough steps were looked at.
    rule(GRADIENTS=1, MAX_LOST=-1.0, BEGIN_AT=-1.0, ABSENT_S=math.inf)
    run = partial(trained, act=until_all_are_replaced, observer=messages)
    result = trained_with_kills(*kills, begins=10, run=run, steps=100_000, restarts=20, **AUTO)
    assert result.restarts == 9
    check_tickets(result)
