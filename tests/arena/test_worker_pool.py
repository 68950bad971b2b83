"""Worker processes are spawned into slots, told from each other by how they die, and reaped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.worker_pool import Death, WorkerPool, WorkerProcess, last_lines
from mlxhog.arena.workers import State
from tests.arena import children
from tests.processes import alive

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("spawned_workers")]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena.create(plan({}, max_workers=3, n_tickets=1)) as arena:
        yield arena


def spawn(target: Callable[..., None], *arguments: object, **options: Any) -> WorkerProcess:
    return WorkerProcess(target, arguments, name="mlxhog-test", threads=1, **options)


def test_a_process_answers_over_its_pipe_and_leaves_when_it_is_closed() -> None:
    process = spawn(children.echo, pipe=True)
    process.pipe.send("hello")
    assert process.pipe.recv() == "hello"
    assert process.is_alive()
    process.pipe.close()
    assert process.reap(None) == Death(0)


def test_a_fault_an_exit_and_a_kill_are_told_from_each_other() -> None:
    fault = spawn(children.meet_fault).reap(None)
    left = spawn(children.leave, 3).reap(None)
    stuck = spawn(children.stay, pipe=True)
    os.kill(stuck.pipe.recv(), signal.SIGKILL)
    killed = stuck.reap(None)
    assert [death.is_fault for death in (fault, left, killed)] == [True, False, False]
    assert [death.signal_name for death in (fault, left, killed)] == [None, None, "SIGKILL"]
    assert [str(death) for death in (left, killed)] == ["exit code 3", "signal SIGKILL"]


def test_a_process_that_does_not_end_in_time_is_killed_and_reaped_once() -> None:
    process = spawn(children.stay, pipe=True)
    pid = process.pipe.recv()
    assert process.reap(0.05) == Death(-signal.SIGKILL)
    assert not process.is_alive()
    assert not alive(pid)
    assert pid not in [child.pid for child in multiprocessing.active_children()]
    assert process.reap(0.05) == Death(-signal.SIGKILL)
    process.close()
    process.close()
    assert process.pipe.closed


def test_a_slot_belongs_to_a_process_until_it_is_reaped(arena: Arena) -> None:
    pool, entry = WorkerPool(), arena.workers.entry(2)
    pool[2] = spawn(children.stay, pipe=True, arena=arena, slots=(2,))
    assert pool[2].pipe.recv() == entry.pid
    assert (entry.state, entry.dead) == (State.STARTING, 0)
    pool[2].kill()
    assert (entry.state, entry.dead) == (State.STARTING, 0)
    assert pool.wait(0.0) == [2]
    assert pool.reap(2).signal_name == "SIGKILL"
    assert (entry.state, entry.dead) == (State.DEAD, 1)
    assert 2 not in pool


def test_a_worker_that_has_finished_stays_so_when_it_is_reaped(arena: Arena) -> None:
    entry = arena.workers.entry(1)
    process = spawn(children.leave, 0, arena=arena, slots=(1, 3))
    entry.state = State.FINISHED
    process.reap(None)
    assert (entry.state, entry.dead) == (State.FINISHED, 1)
    assert arena.workers.entry(3).state == State.DEAD


def test_a_pool_hears_of_the_first_death_and_keeps_the_others() -> None:
    pool = WorkerPool({3: spawn(children.stay, pipe=True), 1: spawn(children.leave, 3)})
    deadline = time.monotonic() + PATIENCE_S
    while not (slots := pool.wait(PATIENCE_S)):
        assert time.monotonic() < deadline
    assert slots == [1]
    assert pool.reap(1) == Death(3)
    assert list(pool) == [3]
    assert pool.wait(0.05) == []
    assert pool.reap(3).signal_name == "SIGKILL"
    assert not pool


PARENT = """
from mlxhog.arena.worker_pool import WorkerProcess
from tests.arena import children

process = WorkerProcess(children.stay, (), name="mlxhog-test", pipe=True)
print(process.pipe.recv(), flush=True)
input()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_one_that_spawned_it(number: int) -> None:
    command = [sys.executable, "-c", PARENT]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environ, **pipes) as parent:  # type: ignore[call-overload]
        try:
            pid = int(parent.stdout.readline())
            parent.send_signal(number)
            parent.wait(PATIENCE_S)
            deadline = time.monotonic() + PATIENCE_S
            while alive(pid):
                assert time.monotonic() < deadline, f"process {pid} has outlived its parent"
                time.sleep(0.01)
        finally:
            parent.kill()


def test_the_last_lines_of_a_log_are_those_of_its_newest_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"old\n" + 9999 * b"x" + b"\nnew\n\n")
    with log.open("rb") as output:
        assert last_lines(output)[-1] == "new"
        assert last_lines(output, log.stat().st_size - 5) == ["new"]
        assert last_lines(output, log.stat().st_size) == ["it left no message"]
