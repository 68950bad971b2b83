"""Workers and supervisors die at any instruction; a run continues, or can be resumed."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from mlxhog import train
from mlxhog.arena.control import Command
from mlxhog.arena.workers import MAX_NONFINITE, State
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.training.session import Session
from tests.processes import alive, workers_of
from tests.threads import wait_until
from tests.training.small import small_config

STEPS = 100_000
RUN_IN_CHILD = f"""
import sys
from pathlib import Path
from mlxhog import train
from tests.training.small import small_config
if __name__ == "__main__":
    options = dict(workers="mlx:cpu*2", steps={STEPS}, save_every="300ms", restarts=1000)
    train(small_config(Path(sys.argv[1]), resume=(sys.argv[2:] or [None])[0], **options))
"""
FORKED = """
from mlxhog.arena import worker_pool
from tests import forked
forked.CONTEXT.set_forkserver_preload(["mlxhog.training.worker"])
worker_pool.get_context = lambda method: forked.CONTEXT
"""
"""Put before it, workers start in milliseconds: most of them die while they train."""
ROOT = Path(__file__).parents[2]


def name_of(options):
    return " ".join(map(str, options.values()))


def assert_no_segment_stays():
    """A segment has a name while it is made: another test's may be seen, but only for a moment."""

    def segments():
        names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []  # macOS lists none
        return {name for name in names if "mh-" in name or "mlxhog" in name}

    seen = segments()
    wait_until(lambda: not seen & segments(), 60, f"{seen} to have no name")


class Killer:
    """Kills workers of a run that trains in this process, each after a step of its own.

    From a kill until every worker is up again none may take a batch, if another kill is to come: so
    the run cannot end before it, however slow the machine is. The next victim is drawn, or is the
    worker of a backend.
    """

    def __init__(self, kills, backends=(), before=lambda: None, number=signal.SIGKILL):
        self.left, self.backends, self.number = kills, backends, number
        self._before, self._random, self._killed = before, random.Random(0), set[int]()
        self._slot = self._steps = 0  # of the next victim, when it was chosen

    def train(self, config, observer=None):
        """Train, and kill."""
        poll = Session.poll

        def poll_and_kill(session, doing=None):
            poll(session, doing)
            if self.left:
                self._look(session)

        with mock.patch.object(Session, "poll", poll_and_kill):
            result = train(config, observer=observer)
        assert self.left == 0, "the run ended before every kill was done"
        return result

    def _look(self, session):
        entries, counters = session.arena.workers, session.arena.counters
        if not counters.load("start_ns"):
            return
        up = {
            seat.slot: seat.spec.backend
            for seat in session.seats
            if session.entry(seat).state == State.RUNNING
            and session.entry(seat).pid not in self._killed
        }
        if len(up) < len(session.seats):
            counters.store("pause", 1)
            return
        if not self._slot:
            name = self.backends[self.left - 1] if self.backends else ""
            self._slot = self._random.choice([k for k in up if name in ("", up[k])])
            self._steps = entries.entry(self._slot).steps
            counters.store("pause", 0)
        victim = entries.entry(self._slot)
        for _ in range(1000):  # the steps of a small run take less than the supervisor's poll
            if victim.steps > self._steps:
                break
            time.sleep(0.0005)
        else:
            return
        self._before()
        time.sleep(self._random.random() * min(0.02, victim.step_s))  # into any part of a step
        os.kill(victim.pid, self.number)
        self._killed.add(victim.pid)
        self.left -= 1
        self._slot = 0
        counters.store("pause", int(self.left > 0))


def train_and_kill(config, kills=1):
    """A killed worker is replaced, and the run reaches its last step."""
    result = Killer(kills=kills).train(config)
    assert result.status == "done"
    assert kills - 1 <= result.restarts <= kills  # the last may die when no step is left
    assert result.steps == config.steps  # exact: a torn step counts, a returned one is repeated
    assert result.torn <= kills
    assert_no_segment_stays()
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "hogwild", "steps": 60},
        {"strategy": "sync", "steps": 40, "sync_shares": "speed", "slow": "1=3",
         "optimizer": "muon"},
        {"strategy": "ssp", "slack": 1, "steps": 60},
        {"strategy": "locked", "steps": 400},  # the lock may return to one worker often
        {"strategy": "sim", "workers": "mlx:cpu", "sim_staleness": "uniform:0:3", "steps": 60},
        {"delay_feedback": True, "steps": 60},
    ],
    ids=name_of,
)  # fmt: skip
def test_a_killed_worker_is_replaced_and_the_run_reaches_its_last_step(tmp_path, options):
    result = train_and_kill(small_config(tmp_path, **{"workers": "mlx:cpu*2", **options}), kills=2)
    assert result.lost_update_rate == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "serial", "workers": "mlx:cpu"},
        {"strategy": "sync", "sync_shares": "speed", "optimizer": "muon"},
        {"strategy": "round_robin"},
        {"strategy": "local_sgd", "average_every": 10},
        {"strategy": "diloco", "average_every": 10, "replicas": 1},
        {"blocks": "disjoint", "predict": "none"},
        {"async_after": 0.5},
        {"optimizer": "muon"},
        {"overlap": True},
    ],
    ids=name_of,
)
def test_a_run_whose_workers_all_die_together_reaches_its_last_step(trained_with_kills, options):
    result = trained_with_kills(("step", 2), **{"steps": 30, **options})
    assert result.restarts == len(result.workers)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "steps"), [("sync", 30), ("avg_runs", 50)])
def test_workers_that_die_at_every_command_cost_no_step_and_no_evaluation(
    trained_with_kills, strategy, steps
):
    moments = ("pause", Command.REST, Command.EVALUATE, Command.SAMPLE)
    result = trained_with_kills(
        *((moment, 2) for moment in moments), strategy=strategy, steps=steps, restarts=4,
        save_every=3 * steps // 10, eval_every="1h", sample_every="1h",
    )  # fmt: skip
    assert result.val_bits_per_byte is not None
    assert result.restarts >= 4  # after `pause` and `REST` the run needs both


def start_child(tmp_path, *resume, forked=False):
    script = tmp_path / "child.py"
    script.write_text((FORKED if forked else "") + RUN_IN_CHILD)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(script), str(tmp_path), *map(str, resume)]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)


def run_directory(tmp_path):
    """The run below a folder, once its first line of metrics is whole."""
    files = (tmp_path / "runs").glob
    wait_until(
        lambda: any("\n" in file.read_text() for file in files("*/metrics.jsonl")),
        60,
        "a training run",
    )
    return next(files("*/metrics.jsonl")).parent


@pytest.mark.slow
def test_gradients_that_are_not_finite_are_dropped_counted_and_end_the_run(tmp_path):
    # a step size this large destroys the parameters at the first update
    config = small_config(
        tmp_path, optimizer="sgd", clip=0, lr=1e30, schedule="constant", warmup=0, steps=1000
    )
    result = train(config)
    assert result.status == "diverged"
    assert result.dropped_steps == MAX_NONFINITE


UNBORN = re.compile(
    rb"Traceback [^\n]*\n(  [^\n]*\n)*?  [^\n]*"
    rb"(spawn.py[^\n]*in spawn_main|forkserver.py[^\n]*in main)\n(  [^\n]*\n)*"
    rb"(EOFError[^\n]*|_pickle.UnpicklingError: pickle data was truncated)\n"
)
"""Python's error where a process waits for data of its parent, which is killed before it sends."""


@pytest.mark.slow
def test_random_deaths_leave_no_hang_no_orphan_and_a_run_that_resumes(tmp_path):
    """SIGKILL of one worker, of all, or of the supervisor, at random moments, 12 times.

    The workers of the first supervisor are spawned, and often die before they train.
    """
    chosen = random.Random(1)
    run = None
    deaths = rounds = 0
    while deaths < 12:
        rounds += 1
        forked = rounds > 1
        child = start_child(tmp_path, *([] if run is None else [run]), forked=forked)
        try:
            pids = []
            if run is None:  # the first child lives until there is something to resume
                run = run_directory(tmp_path)
                wait_until((run / "checkpoints" / "latest").exists, 60, "a checkpoint")
            kills_here = chosen.randint(5, 8)
            while kills_here and child.poll() is None:
                time.sleep(chosen.random() * (0.1 if forked else 0.3))
                children = workers_of(child.pid)
                if not children:
                    continue
                pids += children
                for pid in children if chosen.random() < 0.5 else [chosen.choice(children)]:
                    if alive(pid):
                        os.kill(pid, signal.SIGKILL)
                        deaths += 1
                kills_here -= 1
        finally:
            child.kill()
            _, errors = child.communicate()
            deaths += 1
        wait_until(lambda p=pids: not any(map(alive, p)), 60, "the workers to leave")
        errors = UNBORN.sub(b"", errors)
        assert b"Traceback" not in errors, errors.decode()
    assert len(list((tmp_path / "runs").iterdir())) == 1  # it was one run all along
    assert_no_segment_stays()
    state = checkpoint.load(checkpoint.latest(Run(run))).state
    before = state["used"]["steps"]
    assert state["left"]["steps"] == STEPS - before
    result = train(small_config(tmp_path, workers="mlx:cpu*2", steps=5, resume=str(run)))
    assert (result.status, result.steps) == ("done", before + 5)
