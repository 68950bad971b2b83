"""Whether other programs keep this machine busy."""

import os
import subprocess
import sys
from types import SimpleNamespace

from mlxhog.base import load
from mlxhog.base.load import Load, LoadWatch


def test_a_machine_is_busy_by_the_work_of_others_and_not_by_our_own(monkeypatch):
    busy, own, clock = [0.0], [0.0], map(float, range(9))
    monkeypatch.setattr(load, "_busy_s", lambda: busy[0])
    monkeypatch.setattr(load, "_own_s", lambda: own[0])
    monkeypatch.setattr(load, "time", SimpleNamespace(monotonic=clock.__next__))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    watch = LoadWatch()
    busy[0], own[0] = 1.9, 1.8
    assert not watch.look().busy
    watch = LoadWatch()
    busy[0] += 1.0
    assert watch.look().busy
    said = str(Load(others=1.0, processors=2, average=7.93))
    assert said == "inconclusive: busy machine (load average 7.9 on 2 processors)"


def test_a_busy_child_of_ours_is_not_other_programs_work():
    burn = "import sys, time; sys.stdin.readline(); end = time.process_time() + .5\n"
    burn += "while time.process_time() < end: pass\nprint(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        own_s, busy_s = load._own_s(), load._busy_s()
        print(file=child.stdin, flush=True)  # its work begins
        assert child.stdout.readline() == "1\n"
        assert load._own_s() - own_s > 0.4
        assert load._busy_s() - busy_s > 0.4
        child.stdin.close()
