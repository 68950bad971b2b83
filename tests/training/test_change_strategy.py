"""`--strategy auto` changes its strategy by the measured cost of rounds."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from mlxhog import train
from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.requests import ask
from mlxhog.arena.workers import State
from mlxhog.checkpoint import checkpoint
from mlxhog.config.budget import Budget
from mlxhog.training import choose_strategy
from mlxhog.training import run as runs
from mlxhog.training.choose_strategy import RULE, ChangeRule
from mlxhog.training.plan import make_plan
from mlxhog.training.state import change, load
from tests.training.asking import endless, trained, until
from tests.training.small import small_config
from tests.training.test_elastic import has_left, works

AUTO = {"strategy": "auto", "workers": "mlx:cpu*2"}


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
    plan = make_plan(small_config(tmp_path, **AUTO, optimizer=optimizer, lr=None))
    averaging, lock_free = plan, plan.other
    rng = np.random.default_rng(0)
    with Arena.create(plan.layout) as arena:
        load(plan, arena, Ledger(arena))
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
        change(averaging, lock_free, arena)
        if lock_free.shared_state:
            assert arena.counters.load("version") - arena.counters.load("moments_since") == 5
        for segment in lock_free.strategy.segments(len(plan.layout.slots)):
            assert not arena.segment(segment).any()
        arena.counters.store("version", 9)  # two steps, one of each worker
        for slot in (1, 2):
            arena.workers.entry(slot).opt_step += 1
        change(lock_free, averaging, arena)
        steps = 7 if lock_free.shared_state else 6
        assert [arena.workers.entry(slot).opt_step for slot in (1, 2)] == [steps] * 2
        for key, (part, value) in before.items():
            kind = key.partition("/")[0]
            for slot in (1, 2):
                now = arena.segment(f"{kind}.{slot}")[part.offset : part.offset + part.size]
                assert np.array_equal(now, value), key
        assert not arena.segment("rounds.words").any()


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
    monkeypatch.setattr(choose_strategy, "gain", lambda seconds, sequences: 1.0)


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

    monkeypatch.setattr(choose_strategy, "RULE", ChangeRule(rounds=8, gradients=8))
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
    monkeypatch.setattr(choose_strategy, "RULE", rule)
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


class Deadly(runs.Training):
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
    monkeypatch.setattr(choose_strategy, "RULE", Always(rounds=8, gradients=8, growth=1))
    monkeypatch.setattr(runs, "Training", Deadly)
    monkeypatch.setattr(Deadly, "kills", kills, raising=False)
    # Workers that sleep leave their cores to the supervisor, so that there are enough changes.
    config = small_config(tmp_path, steps=200, restarts=20, slow="0=5,1=5", **AUTO)
    result = train(config)
    assert not kills
    assert (result.status, result.steps, result.restarts) == ("done", 200, 9)
    assert len(changes(Path(result.run))) >= 6
    check_tickets(result, "sync")
