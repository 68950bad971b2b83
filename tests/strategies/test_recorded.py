"""Recorded lock-free workers and their repetition, in one process, with deaths at any line."""

from contextlib import ExitStack
from unittest import mock

import numpy as np
import pytest

from mlxhog.arena import event_log
from mlxhog.arena.event_log import Begin, RecordedStep, Torn
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import SGD, AdamW, Muon, RunContext
from mlxhog.optim.gradients import Rows
from mlxhog.strategies.recorded import NEXT, Mismatch, StepJournal, guarded, private_names, settle
from tests.strategies.deaths import FOLDERS, Died, dies, places
from tests.strategies.runs import ONE, begin_step, new_arena, strategy, worker
from tests.threads import in_threads

PARAMS = {
    "dense": ParamSpec("dense", (30, 90), "zeros"),
    "few": ParamSpec("few", (7,), "zeros"),
    "rows": ParamSpec("rows", (6, 40), "zeros", "rows"),
}
KINDS = {
    "shared moments, last": ("last", lambda: AdamW(run=RunContext(shared=True))),
    "shared Muon, last": (
        "last",
        lambda: Muon(run=RunContext(hidden=frozenset({"dense"}), shared=True)),
    ),
    "private moments, own": ("own", lambda: AdamW()),
    "none": ("none", lambda: SGD()),
}


class Runs:
    """Arenas of one configuration, and workers in them."""

    def __init__(self, kind, directory, stack):
        self.kind, (self.prediction, self.make) = kind, KINDS[kind]
        self.directory, self.stack = directory, stack
        (directory / event_log.FOLDER).mkdir(parents=True)

    def arena(self, determinism):
        rule = self.make()
        state = {"private": rule.state_segments, "shared": rule.shared_segments}
        of = self.strategy(determinism)
        arena = self.stack.enter_context(new_arena(of, PARAMS, n_tickets=64, **state))
        n = arena.layout.probe.offset
        arena.params[:n] = np.sin(np.arange(n))
        return arena

    def strategy(self, determinism):
        last = {"optimizer": "adamw", "moments": "shared"} if self.prediction == "last" else {}
        return strategy(
            determinism=determinism, predict=self.prediction, clip=0.5,
            staleness_lr="linear:0.5", **last,
        )  # fmt: skip

    def worker(self, arena, slot, determinism="record"):
        if determinism == "record":
            path = event_log.worker_path(self.directory, slot)
            event_log.append(path, Begin("numpy", 1, "none"))
        return worker(
            arena, slot, self.strategy(determinism), steps=100, optimizer=self.make(),
            schedule=lambda progress, update: 0.1 / (1 + update), run_dir=self.directory,
        )  # fmt: skip

    def log(self, slot):
        return list(event_log.read(event_log.worker_path(self.directory, slot)))


@pytest.fixture
def runs(request, tmp_path):
    with ExitStack() as stack:
        yield Runs(request.param, tmp_path, stack)


every_kind = pytest.mark.parametrize("runs", KINDS, indirect=True)


def gradient(worker, ticket):
    """A gradient that depends on every bit that was read."""
    param_buffer, grads = worker.context.backend.param_buffer, {}
    for name, slot in worker.context.arena.layout.slots.items():
        values = param_buffer[slot.offset : slot.offset + slot.size].reshape(slot.shape)
        grads[name] = np.cos(values * np.float32(ticket + 1))
    chosen = np.array([ticket % 6, (ticket + 2) % 6], np.int32)
    return {**grads, "rows": Rows(np.sort(chosen), grads["rows"][np.sort(chosen)])}


def write(worker, lease):
    worker.write(gradient(worker, lease.ticket), lease, ONE)


def run_interleaved(runs, steps=4):
    """Two workers; each writes after the other has written since its read."""
    arena = runs.arena("record")
    a, b = runs.worker(arena, 1), runs.worker(arena, 2)
    lease = begin_step(a)
    for _ in range(steps):
        other = begin_step(b)
        write(a, lease)
        lease = begin_step(a)
        write(b, other)
    write(a, lease)
    return arena


def replayed(runs, slots=(1, 2)):
    """The logs done again, each slot by a thread of its own."""
    arena, failures = runs.arena("replay"), list[BaseException]()
    workers = []

    def follow(slot):
        worker = None
        try:
            for record in runs.log(slot):
                if isinstance(record, Begin):
                    if worker is not None:
                        arena.workers.mark_dead(slot)
                    worker = runs.worker(arena, slot, "replay")
                    workers.append(worker)
                elif isinstance(record, RecordedStep | Torn):
                    assert worker is not None
                    if worker.repeat_read(record):
                        worker.repeat_write(record, gradient(worker, record.numbers.ticket))
        except BaseException as failure:
            failures.append(failure)
            for other in workers:
                other._order.stop()

    in_threads(follow, slots)
    if failures:
        raise failures[0]
    return arena


def assert_same(a, b):
    for name, segment in a.layout.segments.items():
        if segment.dtype == "float32":
            before, after = a.segment(name), b.segment(name)
            assert before.tobytes() == after.tobytes(), name


@every_kind
def test_workers_that_read_and_write_between_each_other_are_repeated_bit_for_bit(runs):
    recorded = run_interleaved(runs)
    assert_same(recorded, replayed(runs))


@pytest.mark.parametrize("runs", ["private moments, own"], indirect=True)
def test_a_worker_that_read_long_ago_extrapolates_less_and_is_repeated_bit_for_bit(runs):
    recorded = runs.arena("record")
    late, busy = runs.worker(recorded, 1), runs.worker(recorded, 2)
    for one in (late, *[busy] * 6, late):
        write(one, begin_step(one))
    steps = [record for record in runs.log(1) if isinstance(record, RecordedStep)]
    assert [step.numbers.horizon for step in steps] == [1.0, 2 / 7]  # 7 updates, not 2
    assert_same(recorded, replayed(runs))


@pytest.mark.slow
@every_kind
def test_a_worker_that_dies_at_any_line_and_its_successor_are_repeated_bit_for_bit(runs, tmp_path):
    """In its second step, while the other worker goes on."""
    torn = 0
    folders = (*FOLDERS, event_log.__file__)

    def victim_in(runs):
        arena = runs.arena("record")
        victim, other = runs.worker(arena, 1), runs.worker(arena, 2)
        write(victim, begin_step(victim))
        return arena, victim, other, begin_step(other)

    _, whole, _, _ = victim_in(Runs(runs.kind, tmp_path / "first", runs.stack))
    for k, place in enumerate(places(lambda: write(whole, begin_step(whole)), folders)):
        each = Runs(runs.kind, tmp_path / str(k), runs.stack)
        arena, victim, other, held = victim_in(each)
        assert dies(lambda one=victim: write(one, begin_step(one)), place, folders=folders)
        settle(arena, each.directory, 1)
        arena.workers.mark_dead(1)
        victim.context.ledger.reap(victim.context.owner)
        write(other, held)
        heir = each.worker(arena, 1)
        write(heir, begin_step(heir))
        write(other, begin_step(other))
        torn += any(isinstance(record, Torn) for record in each.log(1))
        assert_same(arena, replayed(each))
    assert torn > 9


@pytest.mark.parametrize("runs", ["shared Muon, last", "private moments, own"], indirect=True)
def test_half_of_a_stripe_that_was_written_when_its_worker_died_is_repeated(runs):
    arena = runs.arena("record")
    victim, other = runs.worker(arena, 1), runs.worker(arena, 2)
    lease = begin_step(victim)
    write(other, begin_step(other))
    book = StepJournal(arena, 1)
    with (  # as far as memory goes it dies right there
        mock.patch.object(event_log, "append", side_effect=Died),
        pytest.raises(Died),
    ):
        write(victim, lease)
    word, _ = book.last
    arena.segment(NEXT)[word] -= 1  # memory as it is in the midst of its last access
    arena.segment("locks")[word] = victim._locks.word
    begin, end = guarded(arena.layout, word)[-1]
    arena.params[begin + (end - begin) // 2 : end] += 1.0  # the rest of it was not written so
    for name in private_names(arena.layout, 1):
        private = arena.segment(name)
        private[: private.size // 2] *= 2.0
    settle(arena, runs.directory, 1)
    assert not arena.segment("locks").any()
    arena.workers.mark_dead(1)
    write(other, begin_step(other))
    heir = runs.worker(arena, 1)
    write(heir, begin_step(heir))
    (torn,) = [record for record in runs.log(1) if isinstance(record, Torn)]
    assert torn.writing
    assert torn.unfinished
    assert_same(arena, replayed(runs))


@pytest.mark.parametrize("runs", ["shared moments, last"], indirect=True)
def test_accesses_that_contradict_each_other_are_an_error_and_no_deadlock(runs):
    run_interleaved(runs)
    records = runs.log(1)
    records[-1].accesses[:] = 0
    path = event_log.worker_path(runs.directory, 1)
    path.write_bytes(b"".join(map(event_log.encode, records)))
    with pytest.raises(Mismatch, match="is over: it is at"):
        replayed(runs)
