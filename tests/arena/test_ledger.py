"""Every ticket once per epoch, whoever dies: a model of the ledger, and its single promises."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlxhog import _native
from mlxhog.arena import Arena, plan
from mlxhog.arena import ledger as module
from mlxhog.arena.ledger import ORPHAN_GRACE_NS, Ledger, TicketState
from mlxhog.errors import CheckpointError
from tests.forked import CONTEXT
from tests.pairs import max_examples
from tests.threads import LIMIT_S

WORDS_BYTES = 640
NEXT = 0  # byte of the word `next`; see the table in mlxhog/arena/ledger.py


def make_ledger(n, ring):
    words = np.zeros(WORDS_BYTES + 128, np.uint8)
    words = words[-words.ctypes.data % 128 :][:WORDS_BYTES]
    slots = np.zeros(ring, np.uint64)
    segments, layout = {"ledger": words, "tickets": slots}, SimpleNamespace(n_tickets=n)
    arena = SimpleNamespace(segment=segments.__getitem__, layout=layout)
    return Ledger(arena), words, slots


def work_off(ledger, owner, until_epoch):
    """Claim and finish everything before `until_epoch`; the tickets in order."""
    tickets = []
    while ledger.watermark < until_epoch * ledger.n:
        claimed = ledger.claim(owner)
        if claimed is None or claimed[0] >= until_epoch:
            assert claimed is None or ledger.give_back(*claimed, owner)
            return tickets
        assert ledger.begin_apply(*claimed, owner)
        assert ledger.finish(*claimed, owner)
        tickets.append(claimed)
    return tickets


def some_worker_is(state):
    return precondition(lambda machine: state in [s for _, s in machine.held.values()])


class LedgerMachine(RuleBasedStateMachine):
    """Workers that claim, apply and die in every state, a supervisor that reaps, and resumes.

    Deaths between two machine instructions are made by writing what such a death leaves.
    """

    @initialize(n=st.integers(1, 9), ring=st.sampled_from([4, 8, 32]))
    def begin(self, n, ring):
        self.n = n
        self.ledger, self.words, self.slots = make_ledger(n, ring)
        self.held = {owner: (None, "idle") for owner in (1, 2, 3)}  # -> (ticket, state)
        self.owners = 3
        self.dead = {}
        self.applied = Counter()  # ticket -> times its update was finished
        self.torn = Counter()
        self.unannounced = False  # a return that only a sweep will find
        self.now = 0

    def pick(self, data, state):
        """A worker in this state, and its ticket."""
        owners = [owner for owner, (_, s) in self.held.items() if s == state]
        owner = data.draw(st.sampled_from(owners))
        return owner, self.held[owner][0]

    def waiting(self):
        """Returned tickets, as the slots say."""
        window = range(self.ledger.watermark, _native.load_u64(self.words, NEXT))
        tickets = map(self.ledger.locate, window)
        return [t for t in tickets if self.ledger.state(*t) == TicketState.RETURNED]

    @precondition(lambda machine: len(machine.held) < 5)
    @rule()
    def join(self):
        self.owners += 1
        self.held[self.owners] = (None, "idle")

    @some_worker_is("idle")
    @rule(data=st.data())
    def claim(self, data):
        (owner, _), waiting = self.pick(data, "idle"), self.waiting()
        ticket = self.ledger.claim(owner)
        if waiting and not self.unannounced:
            assert ticket in waiting
        if ticket is None:  # only with a whole ring between the oldest in flight and the next
            ahead = _native.load_u64(self.words, NEXT) - self.ledger.watermark
            assert ahead >= self.slots.size
            oldest = self.ledger.locate(self.ledger.watermark)
            assert self.ledger.state(*oldest) != TicketState.DONE
            return
        self.leased(owner, ticket)

    @some_worker_is("idle")
    @rule(data=st.data(), ahead=st.integers(-2, 8))
    def claim_exact(self, data, ahead):
        owner, _ = self.pick(data, "idle")
        ticket = self.ledger.locate(max(0, self.ledger.watermark + ahead))
        is_open = self.ledger.state(*ticket) in (TicketState.FREE, TicketState.RETURNED)
        is_free = is_open and ahead < self.slots.size
        assert self.ledger.claim_exact(*ticket, owner) == is_free
        if is_free:
            self.leased(owner, ticket)

    def leased(self, owner, ticket):
        assert ticket not in [t for t, _ in (*self.held.values(), *self.dead.values())]
        assert self.applied[ticket] == 0
        assert self.torn[ticket] == 0
        assert self.ledger.state(*ticket) == TicketState.LEASED
        self.held[owner] = (ticket, "leased")

    @some_worker_is("leased")
    @rule(data=st.data())
    def apply(self, data):
        owner, ticket = self.pick(data, "leased")
        for call in (self.ledger.begin_apply, self.ledger.finish, self.ledger.give_back):
            assert not call(*ticket, 1_000)  # of a stranger
        assert self.ledger.begin_apply(*ticket, owner)
        assert not self.ledger.give_back(*ticket, owner)  # its update may have begun
        assert not self.ledger.begin_apply(*ticket, owner)
        self.held[owner] = (ticket, "applying")

    @some_worker_is("applying")
    @rule(data=st.data())
    def finish(self, data):
        owner, ticket = self.pick(data, "applying")
        assert self.ledger.finish(*ticket, owner)
        assert not self.ledger.finish(*ticket, owner)
        self.applied[ticket] += 1
        self.held[owner] = (None, "idle")

    @some_worker_is("leased")
    @rule(data=st.data())
    def give_back(self, data):
        owner, ticket = self.pick(data, "leased")
        assert self.ledger.give_back(*ticket, owner)
        self.held[owner] = (None, "idle")

    @precondition(lambda machine: machine.held)
    @rule(data=st.data())
    def die(self, data):
        owner = data.draw(st.sampled_from(sorted(self.held)))
        self.dead[owner] = self.held.pop(owner)

    @rule()
    def die_between_taking_a_number_and_leasing_it(self):
        if _native.load_u64(self.words, NEXT) < self.ledger.watermark + self.slots.size:
            _native.add_u64(self.words, NEXT, 1)

    @some_worker_is("leased")
    @rule(data=st.data())
    def die_between_returning_and_announcing_it(self, data):
        owner, ticket = self.pick(data, "leased")
        del self.held[owner]
        self.set_state(ticket, TicketState.RETURNED)
        self.unannounced = True

    @some_worker_is("applying")
    @rule(data=st.data())
    def die_between_finishing_and_moving_the_watermark(self, data):
        owner, ticket = self.pick(data, "applying")
        del self.held[owner]
        self.set_state(ticket, TicketState.DONE)
        self.applied[ticket] += 1

    def set_state(self, ticket, state):
        slot = (ticket[0] * self.n + ticket[1]) % self.slots.size
        self.slots[slot] = int(self.slots[slot]) & ~7 | state

    @precondition(lambda machine: machine.dead)
    @rule(data=st.data())
    def reap(self, data):
        owner = data.draw(st.sampled_from(sorted(self.dead)))
        ticket, state = self.dead.pop(owner)
        assert self.ledger.reap(owner) == (state == "leased", state == "applying")
        assert self.ledger.reap(owner) == (0, 0)
        self.torn[ticket] += state == "applying"

    @rule()
    def sweep(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "monotonic_ns", lambda: self.now)
            self.ledger.sweep_orphans()
            self.now += ORPHAN_GRACE_NS
            self.ledger.sweep_orphans()
        self.unannounced = False

    @rule(ring=st.sampled_from([64, 128]))
    def checkpoint_and_resume_with_other_workers(self, ring):
        position = self.ledger.position()
        self.ledger, self.words, self.slots = make_ledger(self.n, ring)
        self.ledger.restore(position)
        self.held, self.dead, self.unannounced = {}, {}, False
        start = position["epoch"] * self.n
        numbers = {*range(start + position["watermark"]), *(start + t for t in position["done"])}
        counted = {self.ledger.locate(g) for g in numbers}
        torn = {ticket for ticket, times in self.torn.items() if times}
        applied = {ticket for ticket, times in self.applied.items() if times}
        assert applied <= counted <= applied | torn

    @invariant()
    def nothing_is_applied_twice(self):
        assert all(times <= 1 for times in self.applied.values())

    @invariant()
    def everything_below_the_watermark_is_applied_or_torn(self):
        for ticket in map(self.ledger.locate, range(self.ledger.watermark)):
            assert self.applied[ticket] or self.torn[ticket]

    def teardown(self):
        """At the end of an epoch every ticket is done exactly once."""
        self.dead.update(self.held)
        for owner, (ticket, state) in self.dead.items():
            self.ledger.reap(owner)
            self.torn[ticket] += state == "applying"
        self.sweep()
        end = self.ledger.locate(_native.load_u64(self.words, NEXT))[0] + 1
        self.applied.update(work_off(self.ledger, self.owners + 1, until_epoch=end))
        assert self.ledger.watermark >= end * self.n
        self.nothing_is_applied_twice()
        self.everything_below_the_watermark_is_applied_or_torn()


TestLedgerAgainstItsModel = LedgerMachine.TestCase
TestLedgerAgainstItsModel.settings = max_examples(200, stateful_step_count=50)


@given(n=st.integers(1, 20), ring=st.sampled_from([2, 4, 64]))
def test_one_worker_sees_every_ticket_of_every_epoch_in_order(n, ring):
    ledger, _, _ = make_ledger(n, ring)
    epochs = 1 + 40 * ring // n  # more than 32 laps: the lap number in a slot has wrapped
    assert work_off(ledger, 1, epochs) == [(e, t) for e in range(epochs) for t in range(n)]
    assert ledger.position() == {"epoch": epochs, "watermark": 0, "done": [], "torn": 0, "n": n}


def test_an_orphan_comes_back_after_its_grace_and_not_before(monkeypatch):
    ledger, words, _ = make_ledger(n=4, ring=8)
    now = 1
    monkeypatch.setattr(module, "monotonic_ns", lambda: now)
    _native.add_u64(words, NEXT, 1)  # someone took number 0 and died
    assert ledger.sweep_orphans() == 0
    now += ORPHAN_GRACE_NS - 1
    assert ledger.sweep_orphans() == 0
    now += 1
    assert ledger.sweep_orphans() == 1
    assert ledger.claim(1) == (0, 0)
    assert ledger.claim(1) == (0, 1)


def test_an_end_lies_directly_behind_so_many_tickets_that_are_not_done():
    ledger, _, _ = make_ledger(n=100, ring=16)
    for ticket in (0, 1, 4, 6):
        assert ledger.claim_exact(0, ticket, 1)
        assert ledger.begin_apply(0, ticket, 1)
        assert ledger.finish(0, ticket, 1)
    assert [ledger.end_after(count) for count in range(6)] == [2, 3, 4, 6, 8, 9]


def test_a_position_of_another_size_is_refused():
    ledger, _, _ = make_ledger(10, 16)
    with pytest.raises(CheckpointError, match="counts 11 batches per epoch, this run 10"):
        ledger.restore({**ledger.position(), "n": 11})


EPOCHS, WORKERS = 80, 3  # the ring goes round 39 times


def work(handle, owner):
    """Take tickets and mark each in `hits`, until all epochs are done."""
    arena = Arena.from_handle(handle)
    ledger, hits = Ledger(arena), arena.segment("hits")
    while ledger.watermark < EPOCHS * ledger.n:  # also while others finish theirs
        for epoch, number in work_off(ledger, owner, EPOCHS):
            hits[epoch * ledger.n + number] += 1


def test_processes_that_race_for_tickets_get_each_once_while_the_ring_goes_round():
    n = 500
    layout = plan({}, max_workers=WORKERS, n_tickets=n, extra={"hits": ("uint8", n * EPOCHS)})
    with Arena.create(layout) as arena:
        owners = [arena.workers.acquire_slot(slot).incarnation for slot in range(1, WORKERS + 1)]
        processes = [
            CONTEXT.Process(target=work, args=(arena.handle(), owner), daemon=True)
            for owner in owners
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LIMIT_S)
            assert process.exitcode == 0
        assert (arena.segment("hits") == 1).all()
