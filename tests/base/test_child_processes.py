"""Worker processes are spawned into slots, told from each other by how they die, and reaped."""

import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.workers import WorkerState
from mlxhog.base import child_processes
from mlxhog.base.child_processes import Death, WorkerPool, WorkerProcess, last_lines_of
from mlxhog.base.processes import require_descriptors
from mlxhog.errors import EnvironmentLacks
from tests.arena import children
from tests.processes import alive, below
from tests.threads import LIMIT_S, wait_until

pytestmark = pytest.mark.usefixtures("spawned_workers")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arena():
    with Arena.create(plan({}, max_workers=3, n_tickets=1)) as arena:
        yield arena


def spawn(target, *arguments, **options):
    return WorkerProcess(target, arguments, name="mlxhog-test", threads=1, **options)


def test_a_fault_an_exit_and_a_kill_are_told_from_each_other():
    fault = spawn(children.meet_fault).reap(None)
    left = spawn(children.leave, 3).reap(None)
    stuck = spawn(children.stay)
    os.kill(stuck.pipe.recv(), signal.SIGKILL)
    killed = stuck.reap(None)
    assert [death.is_fault for death in (fault, left, killed)] == [True, False, False]
    assert [death.signal_name for death in (fault, left, killed)] == [None, None, "SIGKILL"]
    assert [str(death) for death in (left, killed)] == [
        "exit code 3",
        "signal SIGKILL, perhaps for lack of memory",
    ]


def test_each_kill_of_the_kernel_for_lack_of_memory_explains_one_death(monkeypatch):
    kills = child_processes.oom_kills()
    processes = [spawn(children.stay) for _ in range(3)]
    for process in processes[:2]:
        os.kill(process.pipe.recv(), signal.SIGKILL)
    monkeypatch.setattr(child_processes, "oom_kills", lambda: kills + 1)
    first, second = (process.reap(LIMIT_S) for process in processes[:2])
    assert str(first) == "signal SIGKILL, by the kernel for lack of memory"
    assert str(second) == "signal SIGKILL, perhaps for lack of memory"
    monkeypatch.setattr(child_processes, "oom_kills", lambda: kills + 2)
    assert str(processes[2].reap()) == "signal SIGKILL"  # by this process
    for process in processes:
        process.close()


def test_the_way_out_of_a_lack_of_memory_names_the_limit_and_any_other_death_keeps_its_own():
    less = "fewer.*smaller.*GiB.*memory"
    for death, last, way_out in (
        (Death(-9), "", less),
        (Death(-9, lacked_memory=True), "", less),
        (Death(1), "error: the memory is used up: this machine has 9 available", less),
        (Death(1), "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", less),
        (Death(1), "MemoryError", less),
        (Death(-6), "  what():  std::bad_alloc", less),
        (Death(-9, was_asked_for=True), "it left no message", "^more$"),
        (Death(-11), "Fatal Python error: Segmentation fault", "^more$"),
    ):
        assert re.search(way_out, death.way_out(last, otherwise="more")), (death, last)


def test_a_process_that_does_not_end_in_time_is_killed_and_reaped_once():
    process = spawn(children.stay)
    pid = process.pipe.recv()
    assert process.reap(0.05) == Death(-signal.SIGKILL)
    assert not process.is_alive()
    assert not alive(pid)
    assert pid not in [child.pid for child in multiprocessing.active_children()]
    assert process.reap(0.05) == Death(-signal.SIGKILL)
    process.close()
    process.close()
    assert process.pipe.closed


def test_a_slot_belongs_to_a_process_until_a_pool_hears_of_its_death_and_reaps_it(arena):
    pool, entry = WorkerPool(), arena.workers.entry(2)
    pool[2] = spawn(children.stay, table=arena.workers, slot=2)
    pool[3] = spawn(children.echo)
    assert pool[2].pipe.recv() == entry.pid
    assert (entry.state, entry.dead) == (WorkerState.STARTING, 0)
    assert pool.wait(0.05) == []
    pool[2].kill()
    assert (entry.state, entry.dead) == (WorkerState.STARTING, 0)
    assert pool.wait(LIMIT_S) == [2]
    assert pool.reap(2).signal_name == "SIGKILL"
    assert (entry.state, entry.dead) == (WorkerState.DEAD, 1)
    assert list(pool) == [3]
    pool[3].pipe.send("hello")
    assert pool[3].pipe.recv() == "hello"
    pool[3].pipe.close()  # it leaves
    assert pool.reap(3, None) == Death(0)


BEGIN = """
import threading
from mlxhog.base.child_processes import WorkerProcess
from tests.arena import children

def hold():
    process = WorkerProcess(children.stay, (), name="mlxhog-test")
    print(process.pipe.recv(), flush=True)
    up.set()
    process.reap(None)

up = threading.Event()
threading.Thread(target=hold, daemon=True).start()
up.wait()
"""


def program(code):
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code], text=True, env=environ, **pipes)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_one_that_spawned_it(number):
    with program(BEGIN + "input()") as parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait(LIMIT_S)
        wait_until(lambda: not alive(pid))


def test_a_process_of_a_daemon_thread_ends_with_the_program():
    with program(BEGIN) as ended:
        out, err = ended.communicate(timeout=LIMIT_S)
    assert (ended.returncode, err) == (0, "")
    wait_until(lambda: not alive(int(out)))


def test_an_exit_code_that_another_thread_collects_is_waited_for():
    """A spawn elsewhere polls all children: `waitpid` there, a moment before it notes the code."""
    process = WorkerProcess(children.leave, (3,), name="mlxhog-test")
    os.waitpid(process.pid, 0)
    process.process.join()
    assert process.process.exitcode is None
    noted = threading.Timer(0.05, setattr, (process.process._popen, "returncode", 3))
    noted.start()
    assert process.reap() == Death(3)
    noted.join()


SPAWNING = """
from mlxhog.base.child_processes import WorkerProcess
from tests.arena import children

while True:
    WorkerProcess(children.echo, (b"x" * 10**6,), name="mlxhog-test", threads=1)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_of_spawning_leaves_no_process():
    moments = random.Random(0)
    for _ in range(6):
        with program(SPAWNING) as parent:
            wait_until(lambda parent=parent: below(parent.pid) != [])
            time.sleep(moments.uniform(0.0, 0.1))  # where in the start it is killed
            pids = below(parent.pid)
            parent.kill()
        wait_until(lambda pids=pids: not any(map(alive, pids)))


def test_without_a_free_descriptor_nothing_is_spawned_and_the_message_says_what_to_do(arena):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as descriptors:
        descriptors.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with suppress(OSError):
            while True:
                descriptors.callback(os.close, os.dup(2))
        with pytest.raises(EnvironmentLacks, match="256 .ulimit -n.; raise it with: ulimit"):
            spawn(children.stay, table=arena.workers, slot=1)
        with pytest.raises(EnvironmentLacks, match="a run needs 8 open files, and 0 more"):
            require_descriptors(8, "a run")
    assert arena.workers.entry(1).state == WorkerState.DEAD
    spawn(children.leave, 0, table=arena.workers, slot=1).close()  # the slot is free
    require_descriptors(8, "a run")


def test_the_last_lines_of_a_log_are_those_with_text_and_a_missing_log_has_none(tmp_path):
    (tmp_path / "log").write_text("one\n\ntwo\n \n")
    assert last_lines_of(tmp_path / "log") == ["one", "two"]
    for path in (tmp_path, tmp_path / "missing"):
        assert last_lines_of(path) == ["it left no message"]
