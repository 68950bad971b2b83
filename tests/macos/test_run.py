"""A training run on a simulated macOS: arena, spawned workers, deaths, readers, resume."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.macos.simulation import (
    ROOT,
    environment,
    linux_only,
    simulated,
    with_caffeinate,
)
from tests.processes import alive
from tests.threads import wait_until
from tests.training.test_deaths import run_directory

pytestmark = linux_only

TRAIN = """
import json, os, sys
from pathlib import Path
from tests.training.small import small_config
from tests.training.test_deaths import Killer
if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    killer = Killer(kills=options.pop("kills"))
    result = killer.train(small_config(Path(sys.argv[1]), **options))
    print(json.dumps([result.status, result.restarts, result.steps]))
"""


@pytest.mark.slow
def test_killed_workers_are_replaced(tmp_path):
    options = {"kills": 2, "workers": "mlx:cpu*2", "steps": 80}
    log = tmp_path / "qos"
    awake, path = with_caffeinate(tmp_path)
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


ON_M5 = """
import json, os, sys
from pathlib import Path
from mlxhog.training.run import train
from tests.training.small import small_config

def run(value):
    os.environ.pop("MLX_ENABLE_TF32", None)
    if value is not None:
        os.environ["MLX_ENABLE_TF32"] = value
    messages = []
    config = small_config(Path(sys.argv[1]), workers="mlx:gpu", steps=2, strategy="serial")
    result = train(config, observer=lambda progress: messages.append(progress.message or ""))
    status = json.loads((Path(result.run) / "run.json").read_text())
    named = [one for one in messages if "TF32" in one]
    return status["tf32"], named, os.environ.get("MLX_ENABLE_TF32")

if __name__ == "__main__":
    print(json.dumps([run(value) for value in (None, "0", "1")]))
"""


@pytest.mark.slow
def test_a_run_on_an_m5_names_tf32_once_records_it_and_keeps_the_users_value(tmp_path):
    facts = {"FAKE_METAL": 1, "FAKE_CHIP": "Apple M5", "FAKE_LEVELS": "Super:4,Efficiency:6"}
    by_default, off, on = json.loads(simulated(ON_M5, tmp_path, **facts).splitlines()[-1])
    assert off == [False, [], "0"]
    for (recorded, named, value), why, kept in (
        (by_default, "default", None),
        (on, "MLX_ENABLE_TF32=1 is set", "1"),
    ):
        assert (recorded, len(named), value) == (True, 1, kept)
        assert why in named[0]
        assert "MLX_ENABLE_TF32=0 switches that off" in named[0]


@pytest.mark.slow
def test_a_sandboxed_run_trains_on_a_file_and_says_so(tmp_path):
    options = {"kills": 1, "workers": "mlx:cpu*2", "strategy": "sync", "steps": 60}
    printed = simulated(TRAIN, tmp_path, json.dumps(options), FAKE_SANDBOX_GROUP="A1.group/")
    assert json.loads(printed.splitlines()[-1])[:2] == ["done", 1]
    assert not list(tmp_path.glob("runs/*/arena-*")), "the file has no name"


@pytest.mark.slow
def test_a_reader_attaches_and_when_the_supervisor_is_killed_workers_leave_and_it_resumes(tmp_path):
    options = {"kills": 0, "workers": "mlx:cpu*2", "steps": 100_000, "save_every": "1s"}
    command = [sys.executable, "-c", TRAIN, str(tmp_path), json.dumps(options)]
    child = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE)
    try:
        run = run_directory(tmp_path)
        first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        pids = [worker["pid"] for worker in first["workers"]]
        assert all(map(alive, pids))
        wait_until((run / "checkpoints" / "latest").exists, 60, "a checkpoint")
        socket = json.loads((run / "run.json").read_text())["socket"]  # a long path is elsewhere
        read = "import sys; from pathlib import Path; from mlxhog.arena import Arena\n"
        read += "print(Arena.connect(Path(sys.argv[1])).counters.load('steps'))"
        assert int(simulated(read, socket)) > 0
    finally:
        os.kill(child.pid, signal.SIGKILL)
        _, errors = child.communicate()
    assert b"Traceback" not in errors, errors.decode()
    wait_until(lambda: not any(map(alive, pids)), 60, "the workers to leave")
    more = {"kills": 0, "workers": "mlx:cpu*2", "steps": 5, "resume": str(run)}
    assert json.loads(simulated(TRAIN, tmp_path, json.dumps(more)).splitlines()[-1])[0] == "done"
