"""Arguments beyond their arrays and corrupt shared memory give an error, at once."""

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.errors import ArenaError
from tests.arena.test_ledger import ledger_on
from tests.pairs import each_of

HUGE = (1 << 64) - 1


def board():
    """Aligned zeros for a board, the ledger's words or a worker table."""
    raw = np.zeros(4096 + 128, np.uint8)
    return raw[-raw.ctypes.data % 128 :][:4096]


def words_of(**values):
    """A ledger's memory: its words by name, and 8 free slots."""
    words = board()[:640]
    for name, value in values.items():
        at = ("next", "watermark", "returns", "noticed", "torn").index(name) * 128
        _native.store_u64(words, at, value)
    return words, np.zeros(8, np.uint64)


@each_of("word0", [5, HUGE, HUGE - 1])
def test_lock_words_beyond_the_locks_are_refused_and_nothing_is_written(word0):
    words, flat = np.zeros(8, np.uint32), np.zeros(4096, np.float32)
    locks, ones = _native.Locks(words, board(), 1, 1), np.ones(2, np.float32)
    with pytest.raises(ValueError, match=f"4 lock words from {word0} on: there are 8"):
        _native.add_at(locks, 0, flat, 0, 64, 16, word0, np.array([20, 40], np.int32), ones)
    assert not flat.any()
    assert not words.any()


@each_of(
    ("call", "arguments"),
    [("claim", (1,)), ("claim_exact", (3, 1)), ("reap", (1,)), ("orphans", ()), ("position", ())],
)
@each_of(("upper", "lower"), [(HUGE, 0), (9, 0), (4, 5)])
def test_a_corrupt_ledger_is_an_error_of_every_call(call, arguments, upper, lower):
    ledger = _native.TicketLedger(*words_of(next=upper, watermark=lower, returns=1))
    with pytest.raises(ArenaError, match=f"next is {upper} and the watermark {lower}, with a ring"):
        getattr(ledger, call)(*arguments)


def test_a_slot_in_no_state_is_an_error():
    words, slots = words_of(next=3)
    slots[1] = 1 << 40 | 6
    ledger = ledger_on(words, slots, 4)
    with pytest.raises(ArenaError, match="ticket 1 is in state 6"):
        ledger.sweep_orphans()
    with pytest.raises(ArenaError, match="ticket 1 is in state 6"):
        ledger.state(0, 1)


def test_no_slot_ever_holds_a_word_that_it_held_in_an_earlier_lap():
    words, slots = words_of()
    ledger = _native.TicketLedger(words, slots)
    held = [set() for _ in range(8)]
    for ticket in range(8 * 70):  # a worker stopped for 32 or 64 laps would meet its word again
        assert ledger.claim(7) == ticket
        word = int(slots[ticket % 8])
        assert word not in held[ticket % 8]
        held[ticket % 8].add(word)
        assert ledger.begin_apply(ticket, 7)
        assert ledger.finish(ticket, 7)


def test_numbers_that_no_word_can_hold_are_refused():
    words, slots = words_of()
    with pytest.raises(ValueError, match="wanted a number of tickets below"):
        _native.TicketLedger(words, slots).restore(HUGE - 8, [HUGE - 7], 0)
    table = np.zeros(70_000 * 512, np.uint8)
    with pytest.raises(ValueError, match="wanted 1 to 65535"):
        _native.Locks(np.zeros(1, np.uint32), table, 65_536, 1)
