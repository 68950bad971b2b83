"""Whether other programs keep this machine busy."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from mlxhog.base import load
from mlxhog.base.load import Load, LoadWatch


class Machine:
    """A machine of two processors as psutil describes it; a second goes by at each look.

    Attributes:
        busy_s: of both processors.
        family_s: of this process, its child and its grandchild.
    """

    Error = load.psutil.Error

    def __init__(self, *, macos):
        self.busy_s, self.family_s, self.macos, self.now_s = 0.0, [0.0, 0.0, 0.0], macos, 0.0

    def monotonic(self):
        self.now_s += 1.0
        return self.now_s

    def cpu_times(self):
        other = {} if self.macos else {"irq": 0.0, "softirq": 0.0, "steal": 0.0}
        return SimpleNamespace(user=self.busy_s, nice=0.0, system=0.0, idle=9e9, **other)

    def Process(self, place=0):  # noqa: N802  psutil's name
        def times():
            if self.family_s[place] is None:  # it has just ended
                raise self.Error(place)
            own = {"user": self.family_s[place], "system": 0.0}
            return SimpleNamespace(**own, children_user=0.0, children_system=0.0)

        return SimpleNamespace(
            cpu_times=times, children=lambda recursive: [self.Process(1), self.Process(2)]
        )


@pytest.fixture(params=[False, True], ids=["linux", "macos"])
def machine(request, monkeypatch):
    machine = Machine(macos=request.param)
    monkeypatch.setattr(load, "psutil", machine)
    monkeypatch.setattr(load.time, "monotonic", machine.monotonic)
    monkeypatch.setattr(load.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(load.os, "getloadavg", lambda: (7.93, 1.0, 1.0))
    times = SimpleNamespace(children_user=0.0, children_system=0.0)
    monkeypatch.setattr(load.os, "times", lambda: times)
    return machine


def test_a_machine_is_busy_by_the_work_of_others_and_not_by_our_own(machine):
    watch = LoadWatch()
    machine.busy_s, machine.family_s = 1.9, [0.0, 0.9, 0.9]
    quiet = watch.look()
    assert (quiet.busy, quiet.others) == (False, pytest.approx(0.07))

    watch = LoadWatch()
    machine.busy_s += 1.0
    busy = watch.look()
    assert (busy.busy, busy.others) == (True, pytest.approx(0.97))
    machine.family_s[2] = None
    assert watch.look().busy
    assert str(busy) == "cannot be told: busy machine (load average 7.9 on 2 processors)"


def test_a_busy_child_of_ours_is_not_other_programs_work():
    burn = "import sys, time; end = time.process_time() + .5; print(1, flush=True)\n"
    burn += "while time.process_time() < end: pass\nprint(2, flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "1\n"
        own_s, busy_s, began_s = load._own_s(), load._busy_s(), time.monotonic()
        assert child.stdout.readline() == "2\n"
        assert load._own_s() - own_s > 0.4
        assert load._busy_s() - busy_s > 0.4
        assert time.monotonic() > began_s
        child.stdin.close()
    assert Load(others=0.5, processors=2, average=9.0).busy is False
