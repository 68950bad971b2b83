"""What the supervisor makes of the workers' records."""

import contextlib
import math
import threading
from dataclasses import replace
from unittest.mock import Mock

import pytest

from mlxhog.arena import Arena, clock, plan
from mlxhog.arena.control import CAPACITY, RING_BYTES, RecordKind, Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.base.workers import WorkerSpec
from mlxhog.cluster.group import ClusterMembers, MemberMachine, Membership
from mlxhog.config.budget import Budget
from mlxhog.display.plain import heading
from mlxhog.progress import Progress
from mlxhog.training.supervisor import monitor
from mlxhog.training.supervisor.monitor import Monitor
from tests.processes import python
from tests.threads import LIMIT_S, join


@contextlib.contextmanager
def monitored(budget=Budget(steps=1), n_workers=1):  # noqa: B008  it is frozen
    """An arena, its monitor, and what appends a step to the ring of a worker."""
    rings = {f"ring.{k + 1}": ("uint8", RING_BYTES) for k in range(n_workers)}
    with Arena.create(plan({}, max_workers=n_workers, n_tickets=1, extra=rings)) as arena:

        def step(worker=1, **numbers):
            ring = Ring(arena.segment(f"ring.{worker}"))
            ring.append(kind=RecordKind.STEP, worker=worker, **{"t_ns": monotonic_ns()} | numbers)

        workers = [WorkerSpec("torch:cpu", 1)] * n_workers
        yield arena, Monitor(arena, workers, budget, Progress()), step


def test_training_bits_are_per_byte_of_text_however_long_a_token_is():
    with monitored() as (_, monitor, step):
        for loss in (6.0, 8.0):  # 10 tokens of 4 bytes each
            step(loss=loss, nats=10 * loss, tokens=10, n_bytes=40)
        monitor.drain()
        progress = monitor.progress()
        assert progress.loss == pytest.approx(7.0)
        assert progress.train_bits_per_byte == pytest.approx(7.0 / 4 / math.log(2))


def test_clock_share_and_time_left_are_of_this_call_and_its_training(monkeypatch):
    before = Budget(seconds=60.0, seconds_before=600.0, steps_before=10)
    with monitored(before) as (arena, resumed, _):
        assert heading(resumed.progress())[1:3] == ["00:00 (0%)", "ETA -"]
        arena.counters.store("start_ns", 1)
        resumed.budget = replace(before, seconds=50.0)  # what a slow start has left
        monkeypatch.setattr(clock, "monotonic_ns", lambda: 1 + int(40e9))
        progress = resumed.progress()
        assert heading(progress)[1:3] == ["00:40 (80%)", "ETA 00:10"]
        assert progress.elapsed_s == pytest.approx(640.0)


@pytest.mark.parametrize(
    ("step_s", "ago_s", "rate"), [(8.0, 6.0, 10 / 8), (3.0, 0.0, 10 / 3), (8.0, 17.0, 0.0)]
)
def test_slow_steps_have_a_throughput_until_a_worker_ends_none_for_two(
    step_s, ago_s, rate, monkeypatch
):
    now_ns = monotonic_ns()
    monkeypatch.setattr(monitor, "monotonic_ns", lambda: now_ns)
    with monitored() as (_, observed, step):
        for k in (3, 2, 1, 0):
            step(t_ns=now_ns - int((ago_s + k * step_s) * 1e9), tokens=10)
        observed.drain()
        assert observed.progress().tokens_per_s == pytest.approx(rate)


def test_no_rate_and_no_time_between_steps_spans_records_that_a_stalled_monitor_has_lost():
    now_ns = monotonic_ns()
    with monitored() as (_, monitor, step):
        for k in (2, 1):
            step(t_ns=now_ns - k * 10**9, tokens=10)
        monitor.drain()
        (slot,) = monitor._slots.values()
        assert (monitor.progress().tokens_per_s, slot.ring.n_lost) == (10.0, 0)
        for _ in range(CAPACITY + 3):
            step(t_ns=now_ns + 10**9, tokens=10)
        monitor.drain()
        assert slot.ring.n_lost == 3
        assert [times[-1] for times in list(slot.times)[:4]] == [None, 1.0, None, 0.0]
        assert len(slot.recent) == CAPACITY


def test_an_ngram_baseline_that_a_run_no_longer_waits_for_ends_at_its_next_block(monkeypatch):
    begun, given_up = threading.Event(), threading.Event()

    def score(train, val, asked_bytes, check):
        check()  # the run is in progress
        begun.set()
        assert given_up.wait(LIMIT_S)
        check()
        return 1.0

    monkeypatch.setattr(monitor.validation_set, "ngram_score", score)
    with monitored() as (_, ours, _):
        ours.find_ngram_baseline(Mock(), 9)
        assert begun.wait(LIMIT_S)
        ours.await_ngram_baseline(0.0)
        given_up.set()
        join([ours._ngram_thread])
        assert ours._ngram is None


COUNTING = """
from unittest.mock import Mock
from mlxhog.training.supervisor.monitor import validation_set
from tests.training.supervisor.test_monitor import monitored

def score(train, val, asked_bytes, check):
    print("begun", flush=True)
    while True:
        check()

validation_set.ngram_score = score
with monitored() as (_, ours, _):
    ours.find_ngram_baseline(Mock(), 9)
    raise SystemExit("the run has failed")
"""


@pytest.mark.slow
def test_a_command_that_ends_at_once_does_not_wait_for_the_ngram_baseline():
    ended = python("-c", COUNTING, limit_s=LIMIT_S)
    assert (ended.stdout, ended.stderr) == ("begun\n", "the run has failed\n")


def test_staleness_and_times_are_counted_for_each_worker():
    with monitored(n_workers=2) as (_, monitor, step):
        for k, (worker, staleness) in enumerate(((1, 0), (1, 1), (2, 1), (1, 1), (2, 12))):
            step(worker, staleness=staleness, t_ns=k * 10**9, compute_s=0.25, wait_s=0.5)
        monitor.drain()
        progress = monitor.progress()
        assert progress.staleness == {0: 1, 1: 3, 12: 1}
        assert [worker.staleness for worker in progress.workers] == [{0: 1, 1: 2}, {1: 1, 12: 1}]
        first, second = monitor.step_times()
        assert first["compute_us"] == [250_000] * 3
        assert (first["wait_s"], first["other_s"], second["other_s"]) == (0.5, 0.75, 1.25)


HERE = MemberMachine(7, "studio", 1_200_000, 40)
AWAY = MemberMachine(9, "air", 300_000, 12, seen_s=90.0)


def met(known, machines, members):
    known.update(Membership(0, 0, members, machines), HERE)
    return {one.name: one for one in known.reports()}


def test_a_machine_is_in_the_quorum_away_or_alone_and_a_forgotten_one_grows_older():
    known = ClusterMembers()
    assert known.reports() == ()
    for members, is_alone, here, away in (
        ((7,), False, "in the quorum", "away"),
        ((7, 9), False, "in the quorum", "in the quorum"),
        ((7, 9), True, "alone", "away"),
    ):
        known.is_alone = is_alone
        states = {name: one.state for name, one in met(known, (AWAY, HERE), members).items()}
        assert states == {"studio": here, "air": away}
    away = met(known, (HERE,), (7,))["air"]  # a new lighthouse does not know it
    assert (away.state, away.rounds) == ("away", 12)
    assert away.seen_s > 90.0


def test_machines_of_one_name_are_told_apart_and_have_no_control_characters():
    others = replace(AWAY, name="studio"), replace(AWAY, id=8, name="a\x1b[2J")
    assert [*met(ClusterMembers(), (HERE, *others), (7,))] == ["studio", "a [2J", "studio (2)"]
