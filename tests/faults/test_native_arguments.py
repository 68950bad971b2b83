"""Hostile arguments and corrupt shared memory give an error: no crash, no endless call.

What an older build dies of runs in a child process with a limit on time and memory.
"""

import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.errors import ArenaError
from tests.arena.test_ledger import ledger_on
from tests.faults.native_fuzz import board
from tests.processes import limit_memory

HUGE = (1 << 64) - 1


def limited():
    """In the child: end rather than fill the machine."""
    limit_memory(3 << 30)
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def child(*command):
    """What a limited child says; fails with its last words unless it ends with 0."""
    process = subprocess.run(
        [sys.executable, *command],
        capture_output=True, text=True, timeout=240, check=False, preexec_fn=limited,
    )  # fmt: skip
    assert process.returncode == 0, (
        process.returncode,
        process.stdout[-300:],
        process.stderr[-3000:],
    )
    return process.stdout


def script(body):
    """What a script says that sees this module's imports."""
    head = """
        import numpy as np, threading
        from mlxhog import _native
        from mlxhog._native import ops
        from tests.faults.native_fuzz import board
    """
    return child("-c", textwrap.dedent(head) + textwrap.dedent(body))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_random_calls_of_every_native_function_end_in_a_result_or_an_error(seed):
    out = child("-m", "tests.faults.native_fuzz", str(seed), "4000")
    assert out.splitlines()[-1].startswith("done")


@pytest.mark.parametrize("word0", [5, HUGE, HUGE - 1])
def test_add_at_refuses_lock_words_whose_last_number_wraps(word0):
    out = script(f"""
        words, flat = np.zeros(8, np.uint32), np.zeros(4096, np.float32)
        locks = _native.Locks(words, board(), 1, 1)
        try:
            _native.add_at(locks, 0, flat, 0, 64, 16, {word0}, np.array([20, 40], np.int32),
                           np.ones(2, np.float32))
        except ValueError as error:
            print(error)
        assert not flat.any() and not words.any()
    """)
    assert f"4 lock words from {word0} on: there are 8" in out


def test_the_classic_problems_refuse_lock_words_whose_last_number_wraps():
    out = script(f"""
        locks = _native.Locks(np.zeros(8, np.uint32), board(), 1, 1)
        pairs, fixed = np.array([[0, 1, 0]], np.int32), np.zeros(2, np.uint8)
        x, order = np.zeros((2, 3), np.float32), np.zeros(1, np.int32)
        scheme = _native.ClassicScheme("aig", board(), locks, {HUGE}, 0, 1)
        for made in (
            lambda: _native.CutProblem(x, pairs, fixed).run(scheme, order, 0.1),
            lambda: _native.CutProblem(x, pairs, fixed, word0={HUGE}),
        ):
            try:
                made()
            except ValueError as error:
                print("refused:", error)
    """)
    assert out.count("refused:") == 2


@pytest.mark.parametrize("how", ["take_reaching(u, 0, n, 1, None, 0.5, True)",
                                 "take_largest(u, 0, n, 1, None, n // 2, True)"])  # fmt: skip
def test_a_pending_step_that_others_write_is_never_read_past_what_was_counted(how):
    out = script(f"""
        n, over = 1 << 16, threading.Event()
        u = np.zeros(n, np.float32)
        def write():
            while not over.is_set():
                np.copyto(u, np.float32(1))
                np.copyto(u, np.float32(0))
        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(300):
            index, values = _native.{how}
            assert len(index) == len(values) and (np.diff(index) > 0).all()
        over.set()
        writer.join()
        print("whole")
    """)
    assert out == "whole\n"


def words_of(**values):
    """A ledger's memory: its words by name, and 8 free slots."""
    words = board()[:640]
    for name, value in values.items():
        at = ("next", "watermark", "returns", "noticed", "torn").index(name) * 128
        _native.store_u64(words, at, value)
    return words, np.zeros(8, np.uint64)


LEDGER_CALLS = {
    "claim": (1,), "claim_exact": (3, 1), "reap": (1,), "orphans": (),
    "announce_returns": (), "position": (),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("upper", "lower"), [(HUGE, 0), (9, 0), (4, 5)])
def test_a_ledger_whose_window_is_impossible_is_an_error_at_once(upper, lower):
    # `claim` searches only where it has not noticed all
    out = script(f"""
        from mlxhog.errors import ArenaError
        from tests.faults.test_native_arguments import words_of
        for call, arguments in {LEDGER_CALLS}.items():
            noticed = int(call == "announce_returns")
            words, slots = words_of(next={upper}, watermark={lower}, returns=1, noticed=noticed)
            try:
                getattr(_native.TicketLedger(words, slots), call)(*arguments)
            except ArenaError as error:
                print(call, error)
    """)
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(LEDGER_CALLS)
    for line in lines:
        assert f"next is {upper} and the watermark {lower}, with a ring of 8" in line
        assert "resume it from its last checkpoint" in line


def test_a_slot_in_no_state_is_an_error():
    words, slots = words_of(next=3)
    slots[1] = 1 << 40 | 6
    ledger = ledger_on(words, slots, 4)
    with pytest.raises(ArenaError, match="ticket 1 is in state 6"):
        ledger.sweep_orphans()
    with pytest.raises(ArenaError, match="ticket 1 is in state 6"):
        ledger.state(0, 1)


def test_a_watermark_beyond_all_laps_is_refused():
    words, slots = words_of()
    with pytest.raises(ValueError, match="wanted a number of tickets below"):
        _native.TicketLedger(words, slots).restore(HUGE - 8, [HUGE - 7], 0)


def test_no_slot_ever_holds_a_word_that_it_held_in_an_earlier_lap():
    words, slots = words_of()
    ledger = _native.TicketLedger(words, slots)
    held = [set() for _ in range(8)]
    for ticket in range(
        8 * 70
    ):  # a worker stopped for 32 laps, or for 64, would meet its word again
        assert ledger.claim(7) == ticket
        word = int(slots[ticket % 8])
        assert word not in held[ticket % 8]
        held[ticket % 8].add(word)
        assert ledger.begin_apply(ticket, 7)
        assert ledger.finish(ticket, 7)


def test_a_graph_of_more_vertices_than_memory_costs_no_memory():
    out = script("""
        met = np.zeros(2, np.int64)
        for n in (1 << 62, (1 << 64) - 1):
            _native.edge_degrees(np.array([0, 0, 0]), np.zeros(0, np.int32), n, met)
            print(met)
            _native.edge_degrees(np.array([0, 1, 2]), np.array([3, 3], np.int32), n, met)
            print(met)
    """)
    assert out == "[0 0]\n[2 2]\n" * 2


def test_a_slot_that_no_lock_word_can_name_is_refused():
    table = np.zeros(70_000 * 512, np.uint8)
    with pytest.raises(ValueError, match="wanted 1 to 65535"):
        _native.Locks(np.zeros(1, np.uint32), table, 65_536, 1)


def test_states_whose_number_of_elements_wraps_are_refused():
    out = script("""
        for shape in ((1, 0, 1, 1 << 32), (1 << 40, 0, 1, 4)):
            q = np.zeros(shape, np.float32)
            try:
                ops.recurrence(q, q, q, np.zeros((1, 0, 1, 1), np.float32), None, None, None, None,
                               q, np.zeros(0, np.float32), None, None, threads=1)
            except ValueError as error:
                print(error)
        try:
            ops.rms_norm(np.zeros((1 << 40, 0), np.float32), np.zeros(0, np.float32),
                         np.zeros((1 << 40, 0), np.float32), eps=1e-6, threads=1)
        except ValueError as error:
            print(error)
    """)
    assert out.count("an array without elements") == 3
