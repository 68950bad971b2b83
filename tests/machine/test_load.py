"""Whether other programs keep this machine busy."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxhog.machine import load
from mlxhog.machine.load import Load, LoadWatch


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of two processors, in ticks of 10 ms, in which a second goes by at each look."""
    clock = iter(range(100))
    monkeypatch.setattr(load, "_PROC", tmp_path)
    monkeypatch.setattr(load.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(load.os, "getloadavg", lambda: (7.93, 1.0, 1.0))
    monkeypatch.setattr(load.os, "getpid", lambda: 10)
    monkeypatch.setattr(load.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(load.time, "process_time", lambda: 0.0)
    gone = type("Usage", (), {"ru_utime": 0.0, "ru_stime": 0.0})
    monkeypatch.setattr(load.resource, "getrusage", lambda who: gone)
    works(tmp_path, 0)
    process(tmp_path, 11, parent=10, ticks=0)
    process(tmp_path, 12, parent=11, ticks=0)
    process(tmp_path, 99, parent=1, ticks=0)
    return tmp_path


def works(folder: Path, ticks: int) -> None:
    """Let the processors have worked so long."""
    (folder / "stat").write_text(f"cpu  {ticks} 0 0 500 0 0 0 0 0 0\ncpu0 1 2\n")


def process(folder: Path, pid: int, parent: int, ticks: int) -> None:
    """Let a process have worked that long, under a name that is hard to split off."""
    (folder / str(pid)).mkdir(exist_ok=True)
    zeros = "0 " * 9
    (folder / str(pid) / "stat").write_text(f"{pid} (a ) b) S {parent} {zeros}{ticks} 0 0 0 20 0")


def test_a_machine_is_busy_by_the_work_of_others_and_not_by_our_own(proc: Path) -> None:
    watch = LoadWatch()
    works(proc, 190)
    process(proc, 11, parent=10, ticks=90)
    process(proc, 12, parent=11, ticks=90)
    quiet = watch.look()
    assert (quiet.busy, quiet.others) == (False, pytest.approx(0.07))

    watch = LoadWatch()
    works(proc, 190 + 100)
    process(proc, 99, parent=1, ticks=100)
    busy = watch.look()
    assert (busy.busy, busy.others) == (True, pytest.approx(0.97))
    assert str(busy) == "cannot be told: busy machine (load average 7.9 on 2 processors)"


def test_without_proc_the_load_average_before_the_measurement_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    averages = iter([(3.0, 0.0, 0.0), (9.0, 0.0, 0.0)])
    monkeypatch.setattr(load, "_PROC", tmp_path / "none")
    monkeypatch.setattr(load.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(load.os, "getloadavg", lambda: next(averages))
    assert LoadWatch().look() == Load(others=3.0, processors=8, average=9.0)
