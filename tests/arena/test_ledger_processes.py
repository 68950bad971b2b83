"""Real processes share a ledger, race for its tickets and are killed: every ticket counts once."""

import random
from multiprocessing.connection import wait
from time import monotonic_ns

import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.ledger import Ledger
from tests.forked import CONTEXT


def spin(ns):
    end = monotonic_ns() + ns
    while monotonic_ns() < end:
        pass


def work(handle, owner, epochs, seed, pause_ns):
    """Take tickets and mark each in `hits`, until `epochs` epochs are done.

    Between two marks it lingers for up to `pause_ns`, twice as long before the first.
    """
    rng = random.Random(seed * 1000 + owner)
    arena = Arena.from_handle(handle)
    ledger, hits = Ledger(arena), arena.segment("hits")
    while ledger.watermark < epochs * ledger.n:
        ticket = ledger.claim(owner)
        if ticket is None or ticket[0] >= epochs:
            if ticket is not None:
                ledger.give_back(*ticket, owner)
            spin(100_000)
            continue
        spin(2 * rng.random() * pause_ns)
        assert ledger.begin_apply(*ticket, owner)
        spin(rng.random() * pause_ns)
        hits[ticket[0] * ledger.n + ticket[1]] += 1
        spin(rng.random() * pause_ns)
        assert ledger.finish(*ticket, owner)


def hits_after(n, epochs, workers, kills, seed, pause_ns):
    """How often each ticket was marked, and the tickets of dead workers that were half applied."""
    layout = plan({}, max_workers=workers, n_tickets=n, extra={"hits": ("uint8", n * epochs)})
    rng, torn = random.Random(seed), 0
    moments = sorted(rng.sample(range(50, n * epochs - 200), kills))
    with Arena.create(layout) as arena:
        ledger, table = Ledger(arena), arena.workers

        def start(slot):
            owner = table.acquire_slot(slot=slot).incarnation
            args = (arena.handle(), owner, epochs, seed, pause_ns)
            process = CONTEXT.Process(target=work, args=args, daemon=True)
            process.start()
            table.seated(slot, process.pid)
            return process

        processes = {slot: start(slot) for slot in range(1, workers + 1)}
        while ledger.watermark < epochs * ledger.n:
            wait([p.sentinel for p in processes.values()], timeout=0.002)
            if moments and ledger.watermark >= moments[0]:
                moments.pop(0)
                processes[rng.randint(1, workers)].kill()  # nothing where it has ended
            for slot, process in processes.items():
                if process.exitcode not in (None, 0):
                    process.join()
                    table.mark_dead(slot)
                    torn += ledger.reap(table.entry(slot).incarnation).torn
                    processes[slot] = start(slot)
            ledger.sweep_orphans()
        for process in processes.values():
            process.join(60)
            assert process.exitcode == 0
        assert not moments
        return arena.segment("hits").copy(), torn


@pytest.mark.slow
def test_processes_killed_at_random_moments_lose_and_repeat_no_ticket():
    hits, torn = hits_after(n=400, epochs=4, workers=4, kills=8, seed=0, pause_ns=200_000)
    assert hits.max() == 1
    assert (hits == 0).sum() <= torn


def test_processes_that_race_for_tickets_get_each_once_while_the_ring_goes_round():
    hits, _ = hits_after(n=500, epochs=80, workers=3, kills=0, seed=0, pause_ns=0)  # 39 laps
    assert (hits == 1).all()
