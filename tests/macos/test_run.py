"""A training run on a simulated macOS: arena, spawned workers, deaths, readers, resume."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.macos.simulation import ROOT, environment, linux_only, simulated, with_caffeinate
from tests.processes import alive
from tests.threads import wait_until

pytestmark = [linux_only, pytest.mark.slow]

TRAIN = """
import json, os, sys
from pathlib import Path
from tests.soak.killer import Killer
from tests.training.small import small_config

class Awaiting(Killer):
    # It holds all workers until a file exists.
    def _look(self, session):
        if awaited.exists():
            return super()._look(session)
        self._hold(session, True)

if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    awaited = Path(options.pop("awaited", "."))
    killer = Awaiting(kills=options.pop("kills"))
    result = killer.train(small_config(Path(sys.argv[1]), **options))
    print(json.dumps([result.status, result.restarts, result.steps]))
"""


def test_killed_workers_are_replaced(tmp_path):
    log = tmp_path / "qos"
    awake, path = with_caffeinate(tmp_path)
    options = {"kills": 2, "workers": "mlx:cpu*2", "steps": 80, "awaited": str(awake)}
    printed = simulated(TRAIN, tmp_path, json.dumps(options), FAKE_QOS_LOG=log, PATH=path)
    status, restarts, steps = json.loads(printed.splitlines()[-1])
    assert (status, restarts) == ("done", 2)
    assert steps >= 78  # a step that died with its worker is not taken
    asked = [line.split() for line in log.read_text().splitlines()]
    assert len({pid for pid, _ in asked}) == 4, "every worker asks for performance cores"
    option, waits, pid = awake.read_text().split()
    assert (option, waits) == ("-i", "-w")
    status = json.loads(next(tmp_path.glob("runs/*/run.json")).read_text())
    assert int(pid) == status["supervisor_pid"]


def test_a_sandboxed_run_trains_on_a_file_and_says_so(tmp_path):
    options = {"kills": 1, "workers": "mlx:cpu*2", "strategy": "sync", "steps": 60}
    printed = simulated(TRAIN, tmp_path, json.dumps(options), FAKE_SANDBOX_GROUP="A1.group/")
    assert json.loads(printed.splitlines()[-1])[:2] == ["done", 1]
    assert not list(tmp_path.glob("runs/*/arena-*")), "the file has no name"


def test_a_reader_attaches_and_when_the_supervisor_is_killed_workers_leave_and_it_resumes(tmp_path):
    options = {"kills": 0, "workers": "mlx:cpu*2", "steps": 100_000, "save_every": "1s"}
    command = [sys.executable, "-c", TRAIN, str(tmp_path), json.dumps(options)]
    child = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE)
    try:
        files = (tmp_path / "runs").glob
        metrics = wait_until(
            lambda: [file for file in files("*/metrics.jsonl") if "\n" in file.read_text()],
            what="a training run",
        )[0]  # fmt: skip
        run, first = metrics.parent, json.loads(metrics.read_text().splitlines()[0])
        pids = [worker["pid"] for worker in first["workers"]]
        assert all(map(alive, pids))
        wait_until((run / "checkpoints" / "latest").exists, what="a checkpoint")
        socket = json.loads((run / "run.json").read_text())["socket"]  # a long path is elsewhere
        read = "import sys; from pathlib import Path; from mlxhog.arena import Arena\n"
        read += "print(Arena.connect(Path(sys.argv[1])).counters.load('steps'))"
        assert int(simulated(read, socket)) > 0
    finally:
        os.kill(child.pid, signal.SIGKILL)
        _, errors = child.communicate()
    assert b"Traceback" not in errors, errors.decode()
    wait_until(lambda: not any(map(alive, pids)), what="the workers to leave")
    more = {"kills": 0, "workers": "mlx:cpu*2", "steps": 5, "resume": str(run)}
    assert json.loads(simulated(TRAIN, tmp_path, json.dumps(more)).splitlines()[-1])[0] == "done"
