"""Real processes share a ledger and race for its tickets: every ticket counts once."""

from mlxhog.arena import Arena, plan
from mlxhog.arena.ledger import Ledger
from tests.forked import CONTEXT

EPOCHS, WORKERS = 80, 3  # the ring goes round 39 times


def work(handle, owner):
    """Take tickets and mark each in `hits`, until all epochs are done."""
    arena = Arena.from_handle(handle)
    ledger, hits = Ledger(arena), arena.segment("hits")
    while ledger.watermark < EPOCHS * ledger.n:
        ticket = ledger.claim(owner)
        if ticket is None:
            continue
        if ticket[0] >= EPOCHS:
            ledger.give_back(*ticket, owner)
            continue
        assert ledger.begin_apply(*ticket, owner)
        hits[ticket[0] * ledger.n + ticket[1]] += 1
        assert ledger.finish(*ticket, owner)


def test_processes_that_race_for_tickets_get_each_once_while_the_ring_goes_round():
    n = 500
    layout = plan({}, max_workers=WORKERS, n_tickets=n, extra={"hits": ("uint8", n * EPOCHS)})
    with Arena.create(layout) as arena:
        processes = []
        for slot in range(1, WORKERS + 1):
            owner = arena.workers.acquire_slot(slot).incarnation
            process = CONTEXT.Process(target=work, args=(arena.handle(), owner), daemon=True)
            process.start()
            processes.append(process)
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        assert (arena.segment("hits") == 1).all()
