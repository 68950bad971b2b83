"""Arguments beyond their arrays and corrupt shared memory give an error, at once."""

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.errors import ArenaError
from tests.pairs import each_of


def board():
    """Aligned zeros for a board, the ledger's words or a worker table."""
    raw = np.zeros(4096 + 128, np.uint8)
    return raw[-raw.ctypes.data % 128 :][:4096]


@each_of(
    ("call", "arguments"),
    [("claim", (1,)), ("claim_exact", (3, 1)), ("reap", (1,)), ("orphans", ()), ("position", ())],
)
def test_a_corrupt_ledger_is_an_error_of_every_call(call, arguments):
    words, slots = board()[:640], np.zeros(8, np.uint64)
    _native.store_u64(words, 0, 4)  # next
    _native.store_u64(words, 128, 5)  # watermark
    _native.store_u64(words, 256, 1)  # returns
    with pytest.raises(ArenaError, match="next is 4 and the watermark 5, with a ring"):
        getattr(_native.TicketLedger(words, slots), call)(*arguments)
    _native.store_u64(words, 128, 0)
    slots[1] = 1 << 40 | 6
    with pytest.raises(ArenaError, match="ticket 1 is in state 6"):
        _native.TicketLedger(words, slots).orphans()


def test_no_slot_ever_holds_a_word_that_it_held_in_an_earlier_lap():
    slots = np.zeros(8, np.uint64)
    ledger = _native.TicketLedger(board()[:640], slots)
    held = [set() for _ in range(8)]
    for ticket in range(8 * 70):  # a worker stopped for 32 or 64 laps would meet its word again
        assert ledger.claim(7) == ticket
        word = int(slots[ticket % 8])
        assert word not in held[ticket % 8]
        held[ticket % 8].add(word)
        assert ledger.begin_apply(ticket, 7)
        assert ledger.finish(ticket, 7)
