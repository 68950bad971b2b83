"""`--strategy auto`: it begins with the likely strategy, and measured times change it."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from mlxhog import train
from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.requests import ask
from mlxhog.arena.workers import State
from mlxhog.base.workers import WorkerSpec
from mlxhog.config.budget import Budget
from mlxhog.training import choose_strategy
from mlxhog.training import run as runs
from mlxhog.training.choose_strategy import (
    LAST_ROUNDS,
    LEAST_LOST,
    LOCK_FREE,
    MOST_LOST,
    ROUNDS,
    StepTime,
    by_likelihood,
    gain,
    lost_by_last_rounds,
    lost_in_rounds,
    rounds_would_lose,
)
from mlxhog.training.plan import make_plan
from mlxhog.training.state import change, load
from tests.training.asking import LIMIT_S, endless, trained, until
from tests.training.small import Messages, checkpoint_of, identical, parameters, small_config
from tests.training.test_elastic import has_left, works

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
    one, slow = (0.02,) * LAST_ROUNDS, (0.03,) * LAST_ROUNDS
    paused = (0.02,) * (LAST_ROUNDS - 1)
    assert lost_by_last_rounds(rounds(one[1:], slow[1:])) is None  # too few
    assert lost_by_last_rounds(rounds(one, slow)) == pytest.approx(1 / 5)
    for first, second, ends in (
        (one, one, False),
        (one, slow, True),
        (one, (*paused, 9.0), False),  # once
        (one, (*paused[1:], 9.0, 9.0), True),
        (one + one, slow + one, False),  # it became fast
    ):
        assert (lost_by_last_rounds(rounds(first, second)) > MOST_LOST) == ends


def test_rounds_begin_when_they_would_lose_less_than_the_limit():
    lock_free = [[StepTime(64, s, 0.0)] * 64 for s in (0.02, 0.02)]
    assert rounds_would_lose(lock_free, 2) == pytest.approx(0.0)
    held_up = [[StepTime(64, s, 0.0) for s in (0.02, 0.08) * 32] for _ in range(2)]
    held_up[1].reverse()
    assert rounds_would_lose(held_up, 2) > LEAST_LOST


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
        assert own.budget == named.budget
        for kind in ("state_segments", "shared_segments"):
            assert getattr(own.optimizer, kind) == getattr(named.optimizer, kind)
        assert own.strategy == named.strategy
        assert own.stored == replace(named.stored, strategy=None)
        assert own.automatic == named.automatic
        assert own.schedule(0.0)(0.5, 10) == named.schedule(0.0)(0.5, 10)
        for name, segment in named.layout.segments.items():
            has = plan.layout.segments[name]
            assert (has.dtype, has.count >= segment.count) == (segment.dtype, True), name
    # Slots for workers that join have a ring of records, and state that is private in both.
    private = set(plan.optimizer.state_segments) & set(plan.other.optimizer.state_segments)
    free = plan.free_slots * (len(private) * plan.layout.n_floats * 4 + (1 << 20))
    assert plan.arena_bytes <= max(one.arena_bytes for one in alone.values()) + free


# -- runs ------------------------------------------------------------------------------------------


def stored(result):
    """The strategy in the run's configuration, and the one in its checkpoint."""
    values = yaml.safe_load((Path(result.run) / "config.yaml").read_text())
    return values["strategy"], checkpoint_of(result).state["regime"]


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
        for kind in averaging.optimizer.state_segments:  # those of slot 1 are everybody's
            for name, part in arena.layout.parts(f"{kind}.1").items():
                value = rng.random(part.size, np.float32)
                arena.segment(f"{kind}.1")[part.offset : part.offset + part.size] = value
                before[f"{kind}/{name}"] = part, value
        change(averaging, lock_free, arena)
        if lock_free.optimizer.shared_segments:
            assert arena.counters.load("version") - arena.counters.load("moments_since") == 5
        for segment in lock_free.strategy.segments(len(plan.layout.slots)):
            assert not arena.segment(segment).any()
        arena.counters.store("version", 9)  # two steps, one of each worker
        for slot in (1, 2):
            arena.workers.entry(slot).opt_step += 1
        change(lock_free, averaging, arena)
        steps = 7 if lock_free.optimizer.shared_segments else 6
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
    end = time.monotonic() + LIMIT_S
    while strategy not in [event["strategy"] for event in changes(directory)]:
        assert time.monotonic() < end, (directory / "events.jsonl").read_text()
        act()
        time.sleep(0.02)


def check_tickets(result, first):
    """Every batch was trained once: two in each round, one in each lock-free step."""
    state = checkpoint_of(result).state
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


def looked_at(monkeypatch, **constants):
    """A rule that looks at few steps, with other constants."""
    for name, value in {"LAST_ROUNDS": 8, "GRADIENTS": 8, **constants}.items():
        monkeypatch.setattr(choose_strategy, name, value)


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

    looked_at(monkeypatch)
    config = endless(tmp_path, optimizer="muon", lr=None, slow="0=10,1=10", **AUTO)
    result = trained(config, disturb)
    ended, *_ = changes(Path(result.run))
    assert ended["lost"] > choose_strategy.MOST_LOST
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

    looked_at(monkeypatch, MOST_LOST=1.0, ABSENT_S=0.5)
    result = trained(endless(tmp_path, slow="1=late:1500ms", **AUTO), come_and_go)
    first, *_ = changes(Path(result.run))
    assert "no round has begun" in first["text"]
    assert first["step"] == 0


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
    # Changes whenever enough steps were looked at.
    looked_at(monkeypatch, GRADIENTS=1, MOST_LOST=-1.0, ABSENT_S=1e9)
    monkeypatch.setattr(runs, "Training", Deadly)
    monkeypatch.setattr(Deadly, "kills", kills, raising=False)
    # Workers that sleep leave their cores to the supervisor, so that there are enough changes.
    config = small_config(tmp_path, steps=200, restarts=20, slow="0=5,1=5", **AUTO)
    result = train(config)
    assert not kills
    assert (result.status, result.steps, result.restarts) == ("done", 200, 9)
    assert len(changes(Path(result.run))) >= 6
    check_tickets(result, "sync")
