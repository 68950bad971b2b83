"""The copies a run publishes: whoever dies or stops at whatever moment, the others go on."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxhog.arena import Arena, plan, published
from mlxhog.arena.marks import SEGMENT, Marks, MarksReader
from mlxhog.arena.published import MOST_READERS, Copies, Reader, Readers
from mlxhog.errors import ArenaError
from mlxhog.machine.processes import follow_parent
from tests.arena.children import WAIT_S
from tests.arena.test_arena import SPAWN, Spec

SPECS = {"a": Spec((40, 50)), "b": Spec((7,)), "c": Spec((64, 64))}


@pytest.fixture
def arena() -> Iterator[Arena]:
    layout = plan(SPECS, max_workers=2, n_tickets=1, extra=published.segments(3, 2))
    with Arena.create(layout) as arena:
        yield arena


@pytest.fixture
def page() -> Iterator[tuple[Readers, int]]:
    readers, fd = Readers.create()
    yield readers, fd
    os.close(fd)


def filled(value: float) -> Any:
    """What publishes a model of one number, as the version of that number."""

    def fill(out: np.ndarray) -> tuple[int, int, int]:
        out[:] = value
        return int(value), int(value), 0

    return fill


def take(reader: Reader, copies: Copies) -> tuple[int, list[float]]:
    """The version of the newest copy, and the numbers in it."""
    out = np.full(2000, -1, np.float32)
    copy = reader.take(copies, out)
    assert copy is not None
    return copy.version, np.unique(out).tolist()


def spawned(target: Any, *arguments: Any) -> tuple[Any, Connection]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    return process, ours


def publish_half(handle: Any, pipe: Connection) -> None:
    """In a process: be amid a copy for ever."""
    follow_parent()
    arena = Arena.from_handle(handle)

    def fill(out: np.ndarray) -> tuple[int, int, int]:
        out[: out.size // 2] = 99
        pipe.send("amid")
        pipe.poll(WAIT_S)
        return 99, 99, 0

    Copies(arena).publish(None, fill)


def hold(path: Path, pipe: Connection) -> None:
    """In a process: read the newest copy, and be in the midst of it until told to go on."""
    follow_parent()
    arena = Arena.connect(path)
    assert arena.readers_fd is not None
    reader, copies = Readers.attach(os.dup(arena.readers_fd)).register(), Copies(arena)
    floats, asked = copies.floats, []

    def slow(number: int) -> Any:
        if not asked:
            asked.append(number)
            pipe.send("holds")
            pipe.poll(WAIT_S)
            pipe.recv()
        return floats(number)

    copies.floats = slow  # type: ignore[method-assign]
    pipe.send(take(reader, copies))


def write_into_a_copy(path: Path, pipe: Connection) -> None:
    """In a process: what a reader must not be able to do."""
    arena = Arena.connect(path)
    address = arena.segment("live.1").ctypes.data
    pipe.send("mapped")
    ctypes.memset(address, 1, 4)
    pipe.send("written")


def test_copies_take_turns_and_the_newest_is_read(arena: Arena, page: Any) -> None:
    copies, reader = Copies(arena), page[0].register()
    assert reader.take(copies, np.empty(8, np.float32)) is None
    for value in range(1, 6):
        assert copies.publish(page[0], filled(value))
        assert take(reader, copies) == (value, [value])
    reader.close()
    assert page[0].present() == 0
    assert page[0].came() == 1


def test_a_publisher_killed_amid_a_copy_leaves_the_last_one(arena: Arena, page: Any) -> None:
    copies, reader = Copies(arena), page[0].register()
    copies.publish(page[0], filled(1))
    process, pipe = spawned(publish_half, arena.handle())
    assert pipe.poll(WAIT_S)
    assert take(reader, copies) == (1, [1])
    process.kill()
    process.join(WAIT_S)
    assert take(reader, copies) == (1, [1])
    copies.publish(page[0], filled(2))  # whoever goes on writes over what is half done
    assert take(reader, copies) == (2, [2])


def test_a_reader_killed_while_it_holds_a_copy_holds_it_no_more(
    arena: Arena, page: Any, tmp_path: Path
) -> None:
    readers, fd = page
    copies, path = Copies(arena), tmp_path / "socket"
    copies.publish(readers, filled(1))
    with arena.serve(path, fd):
        process, pipe = spawned(hold, path)
        assert pipe.poll(WAIT_S)
        assert copies.publish(readers, filled(2))
        assert not copies.publish(readers, filled(3))  # its turn is the memory that is held
        assert copies.newest().version == 2  # type: ignore[union-attr]
        os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + WAIT_S
        while not copies.publish(readers, filled(3)):  # a zombie counts as dead
            assert time.monotonic() < deadline
        assert readers.present() == 0
        process.join(WAIT_S)
    assert copies.newest().version == 3  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_reader_that_stopped_is_overtaken_and_reads_again(
    arena: Arena, page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers, fd = page
    copies, path = Copies(arena), tmp_path / "socket"
    copies.publish(readers, filled(1))
    with arena.serve(path, fd):
        process, pipe = spawned(hold, path)
        assert pipe.poll(WAIT_S)
        pipe.recv()
        assert copies.publish(readers, filled(2))
        assert not copies.publish(readers, filled(3))
        monkeypatch.setattr(published, "HOLD_S", 0.0)
        assert copies.publish(readers, filled(3))
        pipe.send("go on")
        assert pipe.poll(WAIT_S)
        assert pipe.recv() == (3, [3])
        process.join(WAIT_S)


def test_a_reader_that_writes_is_ended_by_the_system(
    arena: Arena, page: Any, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with arena.serve(path, page[1]):
        process, pipe = spawned(write_into_a_copy, path)
        assert pipe.poll(WAIT_S)
        assert pipe.recv() == "mapped"
        process.join(WAIT_S)
        assert process.exitcode in (-signal.SIGSEGV, -signal.SIGBUS)
        with pytest.raises(ValueError, match="read-only"):
            Arena.connect(path).segment("live.2")[0] = 1


def test_there_are_only_so_many_readers(page: Any) -> None:
    readers = page[0]
    all_readers = [readers.register() for _ in range(MOST_READERS)]
    with pytest.raises(ArenaError, match=f"{MOST_READERS} readers"):
        readers.register()
    all_readers[5].close()
    readers.register()
    assert readers.present() == MOST_READERS


def test_what_is_no_page_of_readers_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file, pytest.raises(ArenaError, match="readers' page"):
        Readers.attach(os.dup(file.fileno()))


def test_marks_say_who_is_amid_an_update_and_of_what(arena: Arena) -> None:
    one, other = Marks(arena, 1), Marks(arena, 2)
    reader = MarksReader(arena.segment(SEGMENT), arena.layout)
    before, of_a = reader.quiet(), reader.quiet("a")
    one.begin_update()
    one.begin("a")
    assert (reader.quiet(), reader.quiet("a"), reader.writers()) == (None, None, 1)
    assert reader.quiet("b") is not None
    other.begin_update()
    assert reader.writers() == 2
    one.end("a")
    one.end_update()
    assert reader.quiet() is None
    other.end_update()
    assert not reader.unchanged(None, before)
    assert not reader.unchanged("a", of_a)
    assert reader.unchanged(None, reader.quiet())


def test_what_a_dead_worker_was_amid_is_ended_once(arena: Arena) -> None:
    reader = MarksReader(arena.segment(SEGMENT), arena.layout)
    for update in (False, True):
        marks = Marks(arena, 1)
        marks.begin_update()
        marks.begin("b")
        marks.settle(update=update)
        assert reader.quiet("b") is not None
        assert (reader.quiet() is not None) == update
    follower = Marks(arena, 1)
    follower.settle()
    at_rest = reader.quiet()
    follower.settle()
    assert reader.unchanged(None, at_rest)


def test_an_arena_without_marks_is_not_marked() -> None:
    with Arena.create(plan(SPECS, n_tickets=1)) as bare:
        marks = Marks(bare, 1, whole=True)
        marks.begin_update()
        marks.begin("a")
        marks.end("a")
        marks.end_update()
        marks.settle()
        with pytest.raises(ArenaError, match="no segment"):
            Copies(bare)
