"""A store, a ledger and a table in plain memory, for tests of the order."""

from types import SimpleNamespace

import numpy as np

from mlxhog.arena import blocks
from mlxhog.arena.ledger import Ledger

WORDS_BYTES = 640


class MemoryStore:
    """The counters of a lighthouse, which may be out of reach."""

    def __init__(self):
        self.counters, self.reachable = {}, True

    def add(self, key, amount):
        if not self.reachable:
            raise ConnectionError("the store is out of reach")
        self.counters[key] = self.counters.get(key, 0) + amount
        return self.counters[key]


def arena_of(n, ring, run_id):
    """An arena with a ledger and a table of blocks, and nothing else."""
    words = np.zeros(WORDS_BYTES + 128, np.uint8)
    words = words[-words.ctypes.data % 128 :][:WORDS_BYTES]
    ((name, (dtype, count)),) = blocks.segment(n, ring).items()
    table = np.zeros(count + 8, dtype)
    table = table[-table.ctypes.data % 8 :][:count]
    segments = {"ledger": words, "tickets": np.zeros(ring, np.uint64), name: table}
    return SimpleNamespace(
        readonly=False,
        segment=segments.__getitem__,
        layout=SimpleNamespace(n_tickets=n),
        run_id=run_id,
    )


def ledger_of(arena):
    return Ledger(arena)


def train(ledger, table, count=1, owner=1):
    """Take, fetch and finish tickets; the batches."""
    batches = []
    for _ in range(count):
        ticket = ledger.claim(owner)
        assert ticket is not None
        batches.append(table.at(*ticket))
        assert ledger.begin_apply(*ticket, owner)
        assert ledger.finish(*ticket, owner)
    return batches
