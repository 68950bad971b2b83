"""The copies a run publishes: whoever dies or stops at whatever moment, the others go on."""

import os
import signal

import numpy as np
import pytest

from mlxhog.arena import Arena, plan, published
from mlxhog.arena.published import Copies, Marks, MarksReader
from mlxhog.base.processes import follow_parent
from tests.arena.children import WAIT_S
from tests.arena.test_arena import Spec, spawn
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
    copy = copies.take(out)
    assert copy is not None
    return copy.version, np.unique(out).tolist()


def publish_half(handle, pipe):
    """In a process: be amid a copy for ever."""
    follow_parent()
    arena = Arena.from_handle(handle)

    def fill(out):
        out[: out.size // 2] = 99
        pipe.send("amid")
        pipe.poll(WAIT_S)
        return 99, 99

    Copies(arena).publish(fill)


def hold(path, pipe):
    """In a process: read the newest copy, and be in the midst of it until told to go on."""
    follow_parent()
    arena = Arena.connect(path)
    arena.ask_for_copies()
    copies = Copies(arena)
    floats, asked = copies.floats, []

    def slow(number):
        if not asked:
            asked.append(number)
            pipe.send("holds")
            pipe.poll(WAIT_S)
            pipe.recv()
        return floats(number)

    copies.floats = slow
    pipe.send(take(copies))


def test_a_publisher_killed_amid_a_copy_leaves_the_last_one(arena):
    copies = Copies(arena)
    assert copies.take(np.empty(8, np.float32)) is None
    for value in (3, 2, 1):  # copies take turns, and the newest is read
        copies.publish(filled(value))
        assert take(copies) == (value, [value])
    process, pipe = spawn(publish_half, arena.handle())
    assert pipe.poll(WAIT_S)
    assert take(copies) == (1, [1])
    process.kill()
    process.join(WAIT_S)
    assert take(copies) == (1, [1])
    copies.publish(filled(2))  # whoever goes on writes over what is half done
    assert take(copies) == (2, [2])


def test_a_reader_is_counted_while_its_process_lives(arena, tmp_path):
    copies, path = Copies(arena), tmp_path / "socket"
    copies.publish(filled(1))
    with arena.serve(path) as server, Arena.connect(path):
        process, pipe = spawn(hold, path)
        assert pipe.poll(WAIT_S)
        wait_until(lambda: (server.came, server.present) == (1, 1), WAIT_S, "one reader of copies")
        os.kill(process.pid, signal.SIGKILL)
        process.join(WAIT_S)
        wait_until(lambda: not server.present, WAIT_S, "no reader")


@pytest.mark.slow
def test_a_reader_that_stopped_is_overtaken_and_reads_again(arena, tmp_path):
    copies, path = Copies(arena), tmp_path / "socket"
    copies.publish(filled(1))
    with arena.serve(path):
        process, pipe = spawn(hold, path)
        assert pipe.poll(WAIT_S)
        pipe.recv()
        for value in (2, 3):
            copies.publish(filled(value))
        pipe.send("go on")
        assert pipe.poll(WAIT_S)
        assert pipe.recv() == (3, [3])
        process.join(WAIT_S)


def test_marks_say_who_is_amid_an_update(arena):
    one, other, reader = Marks(arena, 1), Marks(arena, 2), MarksReader(arena)
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
    mark, reader = Marks(arena, 1), MarksReader(arena)

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
