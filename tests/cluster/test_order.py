"""No batch of a cluster is trained twice while machines join, leave and die: model and promises."""

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlxhog import _native
from mlxhog.arena import blocks
from mlxhog.arena.blocks import OWN_EPOCHS, Blocks
from mlxhog.cluster import claims as claims_module
from mlxhog.cluster import order
from mlxhog.cluster.claims import NEXT, RESERVED, Claims, Reserve
from mlxhog.cluster.order import Order
from mlxhog.errors import ArenaError, CheckpointError, RunError
from tests.cluster.stores import MemoryStore, arena_of, ledger_of, train
from tests.pairs import max_examples


class Machine:
    """One machine: its arena, the tickets that its workers hold, and its link, if it has one."""

    def __init__(self, name, n, ring):
        self.name, self.arena = name, arena_of(n, ring, name)
        self.ledger = ledger_of(self.arena)
        order.begin(self.arena, self.ledger, None, keep=False)
        self.table, self.link = Blocks(self.arena, self.ledger), None
        self.held, self.owner = {}, 1  # ticket -> owner

    def link_to(self, store):
        self.link = Order(self.arena, self.ledger, Claims(store))


class ClusterMachine(RuleBasedStateMachine):
    """Machines that join, train, leave and die; links and lighthouses that are killed."""

    @initialize(
        n=st.integers(1, 12), ring=st.sampled_from([4, 8, 32]), per_epoch=st.integers(1, 12)
    )
    def begin(self, n, ring, per_epoch):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(blocks, "BLOCKS_PER_EPOCH", per_epoch)
        self.patch.setattr(claims_module, "RESERVE", 16)
        self.folder = tempfile.TemporaryDirectory()
        self.n, self.ring, self.names = n, ring, 0
        self.machines, self.gone = [], []
        self.fetched = {}  # batch of the cluster -> the only machine and ticket that got it
        self.trained = Counter()  # batches of the cluster
        self.own = Counter()  # machine -> batches of its own order
        self.start_lighthouse()

    def start_lighthouse(self):
        self.store = MemoryStore()
        self.reserve = Reserve(self.store, Path(self.folder.name) / "order.json")

    def teardown(self):
        if hasattr(self, "patch"):
            self.patch.undo()
            self.folder.cleanup()

    def pick(self, data, having=lambda machine: True):
        return data.draw(st.sampled_from([m for m in self.machines if having(m)]))

    @precondition(lambda self: len(self.machines) < 4)
    @rule()
    def join(self):
        self.names += 1
        self.machines.append(Machine(f"m{self.names}", self.n, self.ring))
        self.link(self.machines[-1])

    def link(self, machine):
        if self.store.reachable:
            machine.link_to(self.store)

    @precondition(lambda self: self.machines)
    @rule(data=st.data())
    def leave_or_die(self, data):
        machine = self.pick(data)
        self.machines.remove(machine)
        self.gone.append(machine)

    @precondition(lambda self: self.machines)
    @rule(data=st.data(), count=st.integers(1, 6))
    def fetch(self, data, count):
        machine = self.pick(data)
        for _ in range(count):
            ticket = machine.ledger.claim(machine.owner)
            if ticket is None:
                return
            machine.held[ticket] = machine.owner
            batch = machine.table.at(*ticket)
            assert machine.table.at(*ticket) == batch
            if batch[0] < OWN_EPOCHS:
                owner = (machine.name, ticket)
                assert self.fetched.setdefault(batch, owner) == owner

    @precondition(lambda self: any(m.held for m in self.machines))
    @rule(data=st.data())
    def finish(self, data):
        machine = self.pick(data, lambda m: m.held)
        ticket = data.draw(st.sampled_from(sorted(machine.held)))
        batch, owner = machine.table.at(*ticket), machine.held.pop(ticket)
        assert machine.ledger.begin_apply(*ticket, owner)
        assert machine.ledger.finish(*ticket, owner)
        if batch[0] < OWN_EPOCHS:
            self.trained[batch] += 1
        else:
            self.own[machine.name] += 1

    @precondition(lambda self: any(m.held for m in self.machines))
    @rule(data=st.data())
    def workers_die(self, data):
        machine = self.pick(data, lambda m: m.held)
        machine.ledger.reap(machine.owner)
        machine.held, machine.owner = {}, machine.owner + 1

    @precondition(lambda self: any(m.link for m in self.machines))
    @rule(data=st.data())
    def refill(self, data):
        machine = self.pick(data, lambda m: m.link)
        try:
            machine.link.refill()
        except ConnectionError:
            assert not self.store.reachable
            machine.link = None

    @precondition(lambda self: any(m.link for m in self.machines) and self.store.reachable)
    @rule(data=st.data(), count=st.integers(1, 3))
    def link_is_killed_between_claim_and_table(self, data, count):
        machine = self.pick(data, lambda m: m.link)
        Claims(self.store).claim(count)
        machine.link = None

    @precondition(lambda self: any(m.link is None for m in self.machines))
    @rule(data=st.data())
    def link_starts(self, data):
        self.link(self.pick(data, lambda m: m.link is None))

    @rule()
    def lighthouse_looks_at_its_reserve(self):
        if self.store.reachable:
            self.reserve.keep()

    @rule()
    def unplug(self):
        self.store.reachable = False

    @rule()
    def plug_in(self):
        self.store.reachable = True

    @rule()
    def lighthouse_is_killed_and_restarted(self):
        self.start_lighthouse()
        for machine in self.machines:
            machine.link = None

    @invariant()
    def every_batch_is_trained_once(self):
        assert all(count == 1 for count in getattr(self, "trained", {}).values())

    @invariant()
    def blocks_that_are_done_were_trained(self):
        length = blocks.block_tickets(getattr(self, "n", 1))
        machines = [*getattr(self, "machines", []), *getattr(self, "gone", [])]
        done = sum(machine.table.counts.done for machine in machines)
        assert done * length <= sum(getattr(self, "trained", {}).values())

    @invariant()
    def own_blocks_are_counted(self):
        length = blocks.block_tickets(getattr(self, "n", 1))
        for machine in getattr(self, "machines", []):
            own_done = machine.table.counts.own_done
            assert own_done * length <= self.own[machine.name]
            whole = machine.table.finished * length
            if machine.ledger.watermark == machine.ledger.handed_out == whole:
                assert own_done * length == self.own[machine.name]


TestCluster = ClusterMachine.TestCase
TestCluster.settings = max_examples(150, stateful_step_count=60)


@pytest.fixture
def store(tmp_path):
    store = MemoryStore()
    Reserve(store, tmp_path / "order.json")
    return store


def linked(store, name, n=1024):
    machine = Machine(name, n, 2048)
    machine.link_to(store)
    machine.link.refill()
    return machine


def test_two_machines_train_every_batch_of_the_cluster_once(store):
    machines = [linked(store, name) for name in "ab"]
    batches = []
    for step in range(300):
        for machine in machines:
            batches += train(machine.ledger, machine.table, 1 + step % 3)
            machine.link.refill()
    assert len({*batches}) == len(batches)
    assert max(epoch for epoch, _ in batches) < OWN_EPOCHS
    mapped = sum(machine.table.counts.mapped for machine in machines)
    assert store.add(NEXT, 0) == mapped  # no block is lost


def test_a_machine_without_the_authority_trains_on_own_blocks_and_counts_them(store):
    machine = linked(store, "a")
    ahead = machine.table.ahead
    assert all(epoch < OWN_EPOCHS for epoch, _ in train(machine.ledger, machine.table, ahead))
    alone = train(machine.ledger, machine.table, 2 * machine.table.length)
    assert all(epoch >= OWN_EPOCHS for epoch, _ in alone)
    assert len({*alone}) == len(alone)
    assert machine.table.counts.own_done == 2
    machine.link.refill()
    assert train(machine.ledger, machine.table)[0][0] < OWN_EPOCHS


def test_machines_that_train_alone_have_different_orders(store):
    alone = [train(m.ledger, m.table) for m in (Machine(name, 1024, 2048) for name in "ab")]
    assert alone[0] != alone[1]


def test_a_link_that_is_killed_after_its_claim_loses_those_blocks_and_no_others(store):
    machine = linked(store, "a")
    Claims(store).claim(3)
    machine.link_to(store)
    train(machine.ledger, machine.table, machine.table.ahead)
    machine.link.refill()
    assert store.add(NEXT, 0) == machine.table.counts.mapped + 3


def test_a_restarted_lighthouse_begins_behind_every_claim(tmp_path):
    path, first = tmp_path / "order.json", MemoryStore()
    Reserve(first, path)
    claimed = Claims(first).claim(1000)
    second = MemoryStore()
    Reserve(second, path)
    assert Claims(second).claim(1).start >= claimed.stop


def test_no_machine_claims_what_the_disk_does_not_know(tmp_path):
    store = MemoryStore()
    Reserve(store, tmp_path / "order.json")
    machine = Claims(store)
    claims = [*machine.claim(10**6), *machine.claim(1)]
    assert max(claims) < store.add(RESERVED, 0)
    assert store.add(NEXT, 0) <= store.add(RESERVED, 0)


def test_two_machines_that_claim_the_last_reserved_blocks_stay_below_the_reserve(tmp_path):
    store = MemoryStore()
    Reserve(store, tmp_path / "order.json")
    rest = store.add(RESERVED, 0) - 2

    class Interrupted:
        def add(self, key, amount):
            if key == NEXT and amount:
                Claims(store).claim(rest)
            return store.add(key, amount)

    claimed = Claims(Interrupted()).claim(5)
    assert list(claimed) == [rest, rest + 1]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_store_that_begins_anew_within_a_claim_gives_no_block_twice(tmp_path, call):
    path, first, second = tmp_path / "order.json", MemoryStore(), MemoryStore()
    Reserve(first, path)
    claims = [*Claims(first).claim(100)]

    class Restarting:
        calls = 0

        def add(self, key, amount):
            self.calls += 1
            if self.calls == call:
                Reserve(second, path)
            return (first if self.calls < call else second).add(key, amount)

    claims += Claims(Restarting()).claim(5)
    claims += Claims(second).claim(100)
    assert len({*claims}) == len(claims)


def test_a_store_that_lost_its_record_begins_behind_the_blocks_of_a_member(store, tmp_path):
    machine = linked(store, "a")
    claimed = machine.table.cursor
    other = MemoryStore()
    reserve = Reserve(other, tmp_path / "of another folder.json")
    machine.link_to(other)
    reserve.keep()
    assert Claims(other).claim(1).start >= claimed


def test_the_cursor_does_not_fall_when_two_threads_raise_it(store, monkeypatch):
    table = linked(store, "a").table
    swap, meanwhile = _native.cas_u64, [500]

    def late(*arguments):
        if meanwhile:
            table.raise_cursor(meanwhile.pop())  # of the other thread
        return swap(*arguments)

    monkeypatch.setattr(_native, "cas_u64", late)
    table.raise_cursor(400)
    assert table.cursor == 500


def test_a_full_ring_of_tickets_in_flight_keeps_its_batches(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCKS_PER_EPOCH", 4)
    machine = Machine("a", 12, 8)
    assert machine.table.length == 3
    train(machine.ledger, machine.table, 2)
    held = {}
    while (ticket := machine.ledger.claim(1)) is not None:
        held[ticket] = machine.table.at(*ticket)
    assert len(held) == 8
    assert held == {ticket: machine.table.at(*ticket) for ticket in held}


def test_a_ticket_that_was_over_long_ago_is_refused_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCKS_PER_EPOCH", 4)
    machine = Machine("a", 12, 8)
    train(machine.ledger, machine.table, 30)
    position = machine.table.position()
    with pytest.raises(ArenaError, match="local block 0 is over"):
        machine.table.at(0, 0)
    assert machine.table.position() == position


def test_a_damaged_record_of_the_order_is_refused_by_name(tmp_path):
    path = tmp_path / "order.json"
    path.write_text('{"format": "mlxhog-order-1", "reserved": -3}')
    with pytest.raises(RunError, match=r"order\.json.*reserved -3.*remove it"):
        Reserve(MemoryStore(), path)


def test_a_store_that_is_not_prepared_is_refused():
    machine = Machine("a", 1024, 2048)
    with pytest.raises(ConnectionError, match="no reserve of blocks yet"):
        machine.link_to(MemoryStore())


def test_a_resumed_machine_trains_the_rest_of_its_blocks(store):
    machine = linked(store, "a")
    length = machine.table.length
    before = train(machine.ledger, machine.table, length + 1)
    skipped, later = machine.ledger.claim(7), machine.ledger.claim(1)
    machine.table.at(*skipped), machine.table.at(*later)
    machine.ledger.begin_apply(*later, 1)
    machine.ledger.finish(*later, 1)
    position, table = machine.ledger.position(), machine.table.position()
    rest = [machine.table.at(*skipped)]
    rest += train(machine.ledger, machine.table, machine.table.ahead)

    resumed = Machine("a", 1024, 2048)
    resumed.ledger.restore(position)
    order.begin(resumed.arena, resumed.ledger, table, keep=True)
    again = train(resumed.ledger, Blocks(resumed.arena, resumed.ledger), len(rest))
    assert again == rest
    assert not {*again} & {*before}
    assert table["cursor"] == machine.table.counts.mapped


def test_a_joiner_with_an_older_checkpoint_leaves_its_blocks(store):
    machine = linked(store, "a")
    before = train(machine.ledger, machine.table, machine.table.length + 1)
    position, table = machine.ledger.position(), machine.table.position()
    joiner = Machine("a again", 1024, 2048)
    joiner.ledger.restore(position)
    order.begin(joiner.arena, joiner.ledger, table, keep=False)
    assert joiner.ledger.watermark % joiner.table.length == 0
    joiner.link_to(store)
    joiner.link.refill()
    left = range(machine.table.counts.mapped * machine.table.length)
    batches = train(joiner.ledger, joiner.table, 3)
    assert not {epoch * 1024 + ticket for epoch, ticket in batches} & {*left}
    assert not {*batches} & {*before}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"length": 3}, "blocks have 3 tickets"),
        ({"first": 7}, "the ledger stands in block 0"),
        ({"blocks": [4, 4]}, "twice"),
        ({"blocks": [-1]}, "whole numbers"),
        ({"blocks": "x"}, "whole numbers"),
        ({"own": None}, "whole numbers"),
    ],
)
def test_a_damaged_position_is_refused_with_its_problem(store, change, problem):
    machine = linked(store, "a")
    position = machine.table.position()
    with pytest.raises(CheckpointError, match=problem):
        machine.table.begin(0, {**position, **change})
