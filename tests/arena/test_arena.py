"""Create, attach, refuse: one arena in this and in spawned processes."""

import errno
import gc
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest

from mlxhog.arena import Arena, plan, segment
from mlxhog.arena.child import Child
from mlxhog.base.resources import MemoryLimit
from mlxhog.errors import ArenaError, EnvironmentLacks
from tests.arena import children
from tests.odd_disk import odd_disk

SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Spec:
    shape: tuple[int, ...]
    kind: str = "dense"


def small_layout(**changes):
    specs = {"w": Spec((10, 3)), "embedding": Spec((7, 5), kind="rows")}
    return plan(specs, **{"max_workers": 2, "n_tickets": 4, **changes})


@pytest.fixture
def arena():
    with Arena.create(small_layout(private=("m",))) as arena:
        yield arena


def test_a_new_arena_is_zero_and_its_views_are_the_shared_bytes(arena):
    assert not arena.params.any()
    arena.param("w")[2, 1] = 5
    slot = arena.layout.slots["w"]
    assert arena.params[slot.offset + 7] == 5
    assert arena.param("embedding").shape == (7, 5)
    assert arena.probe.shape == (64,)
    assert arena.segment("m.2").size == arena.params.size
    assert (arena.write, arena.readonly) == ("lossless", False)
    assert arena.lost_update_rate() is None
    arena.probe[:], arena.workers.entry(1).probe_adds = 5, 10
    assert arena.lost_update_rate() == 0.5


def test_an_unknown_name_is_refused(arena):
    for call, words in (
        (lambda: arena.param("nothing"), "no parameter 'nothing'"),
        (lambda: arena.segment("nothing"), "no segment 'nothing'"),
        (lambda: Arena.create(small_layout(), write="careless"), "no write mode 'careless'"),
    ):
        with pytest.raises(ArenaError, match=words):
            call()


@pytest.mark.usefixtures("spawned_workers")
def test_workers_killed_while_attached_leave_their_values(arena):
    for slot in (1, 2):
        with Child(arena, slot) as child:
            assert not child.call(children.WAIT_S, children.write)
    assert (arena.param("w") == 7).all()


def test_counters_are_shared_and_a_reader_cannot_write_them_nor_parameters(arena):
    with Arena.from_handle(arena.handle()) as other:
        assert arena.counters.add("steps", 5) == 0
        assert other.counters.add("steps", -2) == 5
        assert arena.counters.load("steps") == 3
        assert not other.counters.compare_exchange("steps", 5, 9)
        assert other.counters.compare_exchange("steps", 3, 9)
    with Arena.from_handle(arena.handle(), readonly=True) as reader:
        with pytest.raises(ValueError, match="read-only"):
            reader.params[0] = 1
        with pytest.raises(TypeError):
            reader.counters.add("version")
        assert reader.counters.load("steps") == 9
        arena.param("w")[:] = 2
        assert (reader.param("w") == 2).all()


def test_arrays_outlive_close_and_the_arena_refuses_everything_else():
    arena = Arena.create(small_layout())
    params = arena.params
    params[:] = 3
    for _ in range(2):
        arena.close()
    assert params.sum() == 3 * params.size
    for call in (arena.handle, lambda: arena.segment("params")):
        with pytest.raises(ArenaError, match="closed"):
            call()


@pytest.mark.parametrize("forbidden", [False, True])
def test_an_unnamed_file_takes_the_place_of_shared_memory_that_is_forbidden(
    forbidden, tmp_path, monkeypatch
):
    def refuse():
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if forbidden:
        monkeypatch.setattr(segment, "_open_shm", refuse)
    with Arena.create(small_layout(), fallback=tmp_path) as arena:
        assert ("is an unnamed file in" in arena.note) == forbidden
        arena.params[:] = 1
        with Arena.from_handle(arena.handle()) as again:
            assert (again.params == 1).all()
    assert list(tmp_path.iterdir()) == []


def test_without_shared_memory_a_disk_that_cannot_map_the_arena_is_passed_by(tmp_path, monkeypatch):
    fallback = tmp_path / "runs"
    fallback.mkdir()
    refuse = Mock(side_effect=PermissionError(errno.EPERM, "Operation not permitted"))
    monkeypatch.setattr(segment, "_open_shm", refuse)
    with odd_disk(fallback, "shared_maps", errno.ENODEV):
        with Arena.create(small_layout(), fallback=fallback) as arena:
            assert f"unnamed file in {tempfile.gettempdir()}" in arena.note
    with odd_disk("/", "shared_maps", errno.ENODEV):
        with pytest.raises(
            EnvironmentLacks, match="cannot hold it either .No such device.: set TM"
        ):
            Arena.create(small_layout(), fallback=fallback)


def test_an_arena_larger_than_the_machine_is_refused_with_bytes_needed_and_had():
    layout = small_layout(extra={"huge": ("float32", 1 << 50)})
    with pytest.raises(EnvironmentLacks, match=rf"needs {layout.total_bytes:,} bytes .* has \d"):
        Arena.create(layout)


def test_a_full_file_system_is_an_error_and_never_a_bus_error(monkeypatch):
    free = os.statvfs(SHM).f_bavail * os.statvfs(SHM).f_frsize if SHM.is_dir() else 1 << 44
    if hasattr(os, "posix_fallocate"):  # elsewhere only the memory there is tells beforehand
        plenty = MemoryLimit(1 << 60, "a wrong report", "")
        monkeypatch.setattr(segment, "available_shared_memory", lambda: plenty)
    gc.collect()  # what others have left
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(EnvironmentLacks, match="shared memory"):
        segment.create(free + (1 << 40))
    assert len(os.listdir("/dev/fd")) <= before


def test_a_segment_is_its_user_s_alone_and_has_no_name(arena):
    status = os.fstat(arena.handle().fd)
    assert status.st_mode & 0o777 == 0o600
    assert not (SHM.is_dir() and status.st_nlink)
