"""`--strategy auto` changes its strategy by the measured cost of rounds."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from mlxhog import train
from mlxhog.arena import Arena
from mlxhog.arena.requests import ask
from mlxhog.arena.workers import State
from mlxhog.checkpoint import checkpoint
from mlxhog.config.budget import Budget
from mlxhog.training import change_strategy, choose_strategy, session, worker
from mlxhog.training.change_strategy import (
    RULE,
    ChangeRule,
    StepTime,
    lost_in_rounds,
)
from mlxhog.training.checkpoints import fill_parameters
from mlxhog.training.moments import carry_over
from mlxhog.training.plan import make_plan
from mlxhog.training.supervisor import Supervisor
from tests.training.asking import endless, trained, until
from tests.training.small import small_config
from tests.training.test_alternatives import open_config
from tests.training.test_choose_strategy import measure_briefly
from tests.training.test_elastic import has_left, works

AUTO = {"strategy": "auto", "workers": "mlx:cpu*2"}


# -- the rule --------------------------------------------------------------------------------------


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
    became_fast = rounds(one + one, slow + one)
    assert RULE.ends(became_fast) is None


def test_rounds_begin_when_they_would_lose_less_than_the_limit():
    lock_free = [[StepTime(64, s, 0.0)] * RULE.gradients for s in (0.02, 0.02)]
    assert RULE.begins(lock_free, 2) == pytest.approx(0.0)
    held_up = [[StepTime(64, s, 0.0) for s in (0.02, 0.08) * 32] for _ in range(2)]
    held_up[1].reverse()
    assert RULE.begins(held_up, 2) is None


@pytest.mark.parametrize("factor", np.linspace(1.0, 4.0, 31))
def test_no_speeds_end_rounds_and_begin_them(factor):
    """With shares as large as they are at the start, of a text of which each may be divided."""
    seconds = (0.02,) * RULE.gradients, (0.02 * factor,) * RULE.gradients
    apart = [[StepTime(64, s, 0.0) for s in own] for own in seconds]
    assert RULE.ends(rounds(*seconds)) is None or RULE.begins(apart, 1) is None


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
    assert Budget(tokens=1000).step_limit(100, steps=3, tokens=600) == 3 + 4


# -- the state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "soap"])
def test_a_change_and_back_keeps_the_moments_and_their_number_of_steps(tmp_path, optimizer):
    plan = make_plan(open_config(tmp_path, optimizer=optimizer))
    averaging, lock_free = (plan.with_strategy(name, measured=True) for name in ("sync", "hogwild"))
    rng = np.random.default_rng(0)
    with Arena.create(plan.layout) as arena:
        fill_parameters(plan, arena)
        arena.counters.store("version", 7)
        for slot in (1, 2):
            entry = arena.workers.acquire_slot(slot=slot)
            entry.opt_step, entry.state = 5, State.RUNNING
        before = {}
        for kind in averaging.private_state:  # those of slot 1 are everybody's
            for name, part in arena.layout.parts(f"{kind}.1").items():
                value = rng.random(part.size, np.float32)
                arena.segment(f"{kind}.1")[part.offset : part.offset + part.size] = value
                before[f"{kind}/{name}"] = part, value
        carry_over(averaging, lock_free, arena)
        if lock_free.shared_state:
            assert arena.counters.load("version") - arena.counters.load("moments_since") == 5
        for segment in lock_free.strategy.segments(len(plan.layout.slots)):
            assert not arena.segment(segment).any()
        arena.counters.store("version", 9)  # two steps, one of each worker
        for slot in (1, 2):
            arena.workers.entry(slot).opt_step += 1
        carry_over(lock_free, averaging, arena)
        steps = 7 if lock_free.shared_state else 6
        assert [arena.workers.entry(slot).opt_step for slot in (1, 2)] == [steps] * 2
        for key, (part, value) in before.items():
            kind = key.partition("/")[0]
            for slot in (1, 2):
                now = arena.segment(f"{kind}.{slot}")[part.offset : part.offset + part.size]
                assert np.array_equal(now, value), key
        assert not arena.segment("sync.words").any()


# -- runs ------------------------------------------------------------------------------------------


def changes(directory):
    """The changes of a run, from its events."""
    lines = (directory / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == "strategy"]


def wait_for(directory, strategy, act=lambda: None):
    """Wait until a run has changed to a strategy, acting meanwhile."""
    end = time.monotonic() + 60
    while strategy not in [event["strategy"] for event in changes(directory)]:
        assert time.monotonic() < end, (directory / "events.jsonl").read_text()
        act()
        time.sleep(0.02)


def check_tickets(result, first):
    """Every batch was trained once: two in each round, one in each lock-free step."""
    assert result.checkpoint is not None
    state = checkpoint.load(Path(result.checkpoint)).state
    tickets, step, strategy = 0, 0, first
    for event in (*changes(Path(result.run)), {"step": result.steps, "strategy": "end"}):
        tickets += (event["step"] - step) * (2 if strategy == "sync" else 1)
        step, strategy = event["step"], event["strategy"]
    ledger = state["ledger"]
    assert ledger["done"] == []
    assert ledger["epoch"] * ledger["n"] + ledger["watermark"] == tickets
    assert state["used"]["steps"] == result.steps


@pytest.fixture
def averages(monkeypatch):
    """Every measurement of gradients says that rounds cost nothing."""

    def choose(seconds, sequences):
        return choose_strategy.MeasuredStrategy("sync", 1.0, (0.0,) * 2, (0.0,) * 2)

    monkeypatch.setattr(choose_strategy, "choose", choose)
    monkeypatch.setattr(worker, "main", measure_briefly)


@pytest.mark.slow
def test_a_run_whose_worker_is_stopped_ends_its_rounds_and_begins_them_when_it_is_not(
    tmp_path, averages, monkeypatch
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
        wait_for(directory, "sync")

    monkeypatch.setattr(change_strategy, "RULE", ChangeRule(rounds=8, gradients=8))
    config = endless(tmp_path, optimizer="muon", lr=None, slow="0=10,1=10", **AUTO)
    result = trained(config, disturb)
    ended, *_ = changes(Path(result.run))
    assert ended["lost"] > RULE.most_lost
    assert "rounds lost" in ended["text"]
    assert result.restarts == 0
    check_tickets(result, "sync")
    assert [one["strategy"] for one in metrics(result)][-1] == changes(Path(result.run))[-1][
        "strategy"
    ]


def metrics(result):
    lines = (Path(result.run) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_rounds_end_where_a_worker_is_not_there_and_before_others_join_or_leave(
    tmp_path, averages, monkeypatch
):
    def come_and_go(directory):
        wait_for(directory, "hogwild")
        wait_for(directory, "sync")
        ask(directory, "join", workers="mlx:cpu")
        until(directory, works(3, steps=5))
        last = changes(directory)[-1]
        assert (last["strategy"], last["text"]) == (
            "hogwild", "strategy hogwild: workers join and leave without rounds",
        )  # fmt: skip
        ask(directory, "leave")
        until(directory, has_left(3))

    rule = ChangeRule(most_lost=1.0, gradients=8, absent_s=0.5)
    monkeypatch.setattr(change_strategy, "RULE", rule)
    result = trained(endless(tmp_path, slow="1=late:1500ms", **AUTO), come_and_go)
    first, *_ = changes(Path(result.run))
    assert "no round has begun" in first["text"]
    assert first["step"] == 0


class Always(ChangeRule):
    """Changes whenever enough steps were looked at."""

    def ends(self, steps):
        return 1.0 if all(len(own) >= self.rounds for own in steps) else None

    def begins(self, steps, sequences):
        return 0.0


class Deadly(Supervisor):
    """Kills workers at moments of changes, each in another change.

    Attributes:
        kills: moments and numbers of workers that are still to die; the last one is next.
    """

    kills: list[tuple[str, int]]

    def holding_still(self):
        self._kill_at("pause")
        return super().holding_still()

    def all_built(self):
        self._kill_at("choice")
        built = super().all_built()
        if built:
            self._kill_at("end")
        return built

    def _kill_at(self, moment):
        kills, started = self.kills, self.arena.counters.load("steps") > 10
        if started and kills and kills[-1][0] == moment and len(self.pool) == 2:
            _, victims = kills.pop()
            for process in list(self.pool.values())[:victims]:
                process.process.kill()


@pytest.mark.slow
def test_a_death_at_any_moment_of_a_change_loses_no_batch(tmp_path, averages, monkeypatch):
    kills = [(moment, victims) for victims in (1, 2) for moment in ("pause", "choice", "end")]
    monkeypatch.setattr(change_strategy, "RULE", Always(rounds=8, gradients=8, growth=1))
    monkeypatch.setattr(session, "Supervisor", Deadly)
    monkeypatch.setattr(Deadly, "kills", kills, raising=False)
    # Workers that sleep leave their cores to the supervisor, so that there are enough changes.
    config = small_config(tmp_path, steps=200, restarts=20, slow="0=5,1=5", **AUTO)
    result = train(config)
    assert not kills
    assert (result.status, result.steps, result.restarts) == ("done", 200, 9)
    assert len(changes(Path(result.run))) >= 6
    check_tickets(result, "sync")


@pytest.mark.slow
def test_a_named_strategy_never_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(change_strategy, "RULE", Always(rounds=2, gradients=2))
    options = {"strategy": "sync", "sync_shares": "speed", "workers": "mlx:cpu*2"}
    result = train(small_config(tmp_path, steps=30, **options))
    assert not changes(Path(result.run))
