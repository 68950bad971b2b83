"""`mlxhog classic`: what it prints, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlxhog.classic import problems
from mlxhog.cli import main
from tests.classic.small import hinge
from tests.processes import alive, below

ROOT = Path(__file__).parents[2]
LAST = [
    "problem",
    "scheme",
    "workers",
    "seconds",
    "examples_per_s",
    "objective",
    "serial_objective",
    "lost_updates",
]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(problems, "create", lambda name, config: hinge())


def answer(capsys, *words):
    assert main(["classic", "svm", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_without_a_name_it_lists_the_problems(capsys):
    assert main(["classic"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(problems.PROBLEMS)


@pytest.mark.usefixtures("small")
def test_its_json_ends_with_what_is_promised(capsys):
    printed = answer(capsys, "--workers", "2")
    assert list(printed)[-len(LAST) :] == LAST
    assert printed["examples_per_s"] == pytest.approx(printed["examples"] / printed["seconds"])
    assert printed["serial_objective"] == printed["serial_measures"]["objective"]
    assert [row["epoch"] for row in printed["epochs"]] == [1, 2, 3]


@pytest.mark.usefixtures("small")
def test_the_table_says_what_the_numbers_mean(capsys, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))  # else it says: busy machine
    assert main(["classic", "svm", "--workers", "2", "--write", "lossless"]) == 0
    output = capsys.readouterr().out
    answer, *rest = output.splitlines()
    assert answer.startswith("hogwild lossless, 2 workers: ")
    assert "objective" in answer
    assert answer.endswith(" x its speed")
    assert len(answer) <= 80
    assert "start-up" not in output
    assert "serial, 1 worker" in output
    assert "hogwild lossless, 2 workers" in output
    assert "0 of 600" in output  # lost updates


@pytest.mark.usefixtures("small")
def test_stats_count_the_sparsity_as_the_paper_does(capsys):
    printed = answer(capsys, "--stats")
    degrees = np.bincount(hinge().train.indices)
    assert (printed["examples"], printed["coordinates"], printed["omega"]) == (600, 100, 8)
    assert printed["delta"] == degrees.max() / 600
    assert printed["delta"] <= printed["rho"] <= 1
    assert main(["classic", "svm", "--stats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "two examples meet with probability" in lines[0]
    assert [line.split()[0] for line in lines[4:]] == ["omega", "delta", "rho", "p"]


@pytest.mark.usefixtures("small")
def test_divergence_is_exit_code_4_with_a_step_size_to_try(capsys):
    assert main(["classic", "svm", "--lr", "1e6", "--json"]) == 4
    output = capsys.readouterr()
    assert "serial diverged, so hogwild was not begun" in output.err
    assert "try --lr 0.1" in output.err
    printed = json.loads(output.out)
    assert printed["status"] == "diverged"
    assert printed["speedup"] is None


@pytest.mark.slow
def test_a_signal_ends_the_command_with_130_and_leaves_no_process():
    code = (
        "import sys\n"
        "from mlxhog.classic import problems\n"
        "from mlxhog.cli import main, ticker\n"
        "from tests.classic.small import hinge\n"
        "ticker.LINE_S = 0.2\n"
        "problems.create = lambda name, config: hinge(n=60_000)\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(main(['classic', 'svm', '--workers', '2', '--epochs', '100k', '--beta', '1',"
        " '--no-serial', '--json']))\n"
    )
    host = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert host.stderr is not None
    while "objective" not in host.stderr.readline():  # until an epoch was measured
        assert host.poll() is None
    children = below(host.pid)
    host.send_signal(signal.SIGTERM)
    out, _ = host.communicate(timeout=30)
    assert host.returncode == 130
    printed = json.loads(out)
    assert (printed["status"], printed["examples"] > 0) == ("interrupted", True)
    deadline = time.monotonic() + 30
    while any(map(alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
