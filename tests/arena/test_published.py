"""The copies a run publishes: whoever dies or stops at whatever moment, the others go on."""

import itertools
import time
from contextlib import contextmanager

import numpy as np
import pytest

from mlxhog.arena import Arena, plan, published
from mlxhog.arena.child import Child
from mlxhog.arena.published import SeqlockCounters, SeqlockReader, Snapshots
from mlxhog.arena.requests import socket_path
from tests.arena.children import WAIT_S
from tests.arena.test_arena import Spec
from tests.threads import wait_until

SPECS = {"a": Spec((40, 50)), "b": Spec((7,)), "c": Spec((64, 64))}


@pytest.fixture
def arena():
    layout = plan(SPECS, max_workers=2, n_tickets=1, extra=published.segments(2))
    with Arena.create(layout) as arena:
        yield arena


def filled(value):
    """What publishes a model of one number, as the version of that number."""

    def fill(out):
        out[:] = value
        return int(value), int(value)

    return fill


def take(copies):
    """The version of the newest copy, and the numbers in it."""
    out = np.full(2000, -1, np.float32)
    copy = copies.read(out)
    assert copy is not None
    return copy.version, np.unique(out).tolist()


def publish_half(lane):
    """Be amid a copy for ever."""

    def fill(out):
        out[: out.size // 2] = 99
        lane.arena.counters["pause"] = 1
        time.sleep(WAIT_S)
        return 99, 99

    Snapshots(lane.arena).publish(fill)


def hold(lane, path):
    """Read the newest copy, and be in the midst of it until told to go on."""
    counters, reader = lane.arena.counters, Arena.connect(path)
    reader.ask_for_snapshots()
    copies = Snapshots(reader)
    floats = copies.floats

    def slow(number):
        if not counters["pause"]:
            counters["pause"] = 1
            wait_until(lambda: counters["pause"] == 2, WAIT_S, "to go on")
        return floats(number)

    copies.floats = slow
    return take(copies)


@contextmanager
def amid(arena, function, *arguments):
    """A child that is in the midst of a function; it is killed at the end."""
    with Child(arena, 1) as child:
        child.start(function, *arguments)
        wait_until(lambda: arena.counters["pause"] == 1, WAIT_S, "amid")
        yield child


def test_a_publisher_killed_amid_a_copy_leaves_the_last_one(arena):
    copies = Snapshots(arena)
    assert copies.read(np.empty(8, np.float32)) is None
    for value in (3, 2, 1):  # copies take turns, and the newest is read
        copies.publish(filled(value))
        assert take(copies) == (value, [value])
    with amid(arena, publish_half):
        assert take(copies) == (1, [1])
    assert take(copies) == (1, [1])
    copies.publish(filled(2))  # whoever goes on writes over what is half done
    assert take(copies) == (2, [2])


def test_a_reader_that_is_overtaken_before_it_copies_names_what_it_has(arena, monkeypatch):
    for looks in range(1, 4):  # before its number and counter are known, or after
        copies, counter, calls = Snapshots(arena), Snapshots(arena)._counter, itertools.count(1)
        copies.publish(filled(1))

        def overtaken(number, counter=counter, calls=calls, looks=looks):
            if next(calls) == looks:
                for value in (2, 3):
                    Snapshots(arena).publish(filled(value))
            return counter(number)

        monkeypatch.setattr(copies, "_counter", overtaken)
        assert take(copies) == (3, [3])


@pytest.mark.slow
def test_a_reader_that_stopped_is_counted_is_overtaken_and_reads_again(arena, tmp_path):
    copies, path = Snapshots(arena), socket_path(tmp_path)
    copies.publish(filled(1))
    with arena.serve(path) as server, Arena.connect(path):
        with amid(arena, hold, path) as reader:
            wait_until(lambda: (server.came, server.present) == (1, 1), WAIT_S, "one reader")
            for value in (2, 3):
                copies.publish(filled(value))
            arena.counters["pause"] = 2
            assert reader.await_result(WAIT_S) == (3, [3])
        wait_until(lambda: not server.present, WAIT_S, "no reader")


def test_marks_say_who_is_amid_an_update(arena):
    one, other, reader = SeqlockCounters(arena, 1), SeqlockCounters(arena, 2), SeqlockReader(arena)
    before = reader.quiet()
    one.begin_update()
    one.begin_update()  # as the successor of a worker that died there
    other.begin_update()
    assert (reader.quiet(), reader.writers()) == (None, 2)
    one.end_update()
    assert (reader.quiet(), reader.writers()) == (None, 1)
    other.end_update()
    other.end_update()  # whoever ends it once more changes nothing
    assert before not in (None, reader.quiet())
    assert reader.quiet() is not None


def test_a_copy_that_an_update_comes_into_is_repeated_and_else_not_called_whole(arena):
    mark, reader = SeqlockCounters(arena, 1), SeqlockReader(arena)

    def copying(amid):
        tries = iter(amid)

        def copy():
            if next(tries):
                mark.begin_update()
                arena.counters.add("version")
                mark.end_update()

        return reader.copy(lambda: arena.counters.load("version"), copy, 60.0)

    assert copying([True, True, False]) == (2, 2)
    assert copying([True] * 4) == (5, 6)
