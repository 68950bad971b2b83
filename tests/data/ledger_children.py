"""What the worker processes of the ledger's test do."""

import random
from time import monotonic_ns

from mlxhog.arena import Arena
from mlxhog.data.ledger import Ledger


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
    while ledger.epoch < epochs:
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
