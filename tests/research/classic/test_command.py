"""`mlxhog research classic`: what it prints, and how it ends."""

import json
import multiprocessing
import os
import signal

import pytest

from mlxhog.cli import main
from mlxhog.research.classic import problems
from mlxhog.research.classic.result import ClassicResult, Epoch, sections, warnings
from mlxhog.research.classic.run import _ClassicRun
from tests.cli.command import told
from tests.pairs import each_of
from tests.research.classic.small import hinge

LAST = (
    "problem", "strategy", "workers", "seconds", "examples_per_s", "objective", "serial_objective",
    "lost_updates",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(problems, "create", lambda name, config: hinge())


def test_without_a_name_it_lists_the_problems(capsys):
    assert main(["research", "classic"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(problems.PROBLEMS)


def test_its_json_ends_with_what_is_promised(capsys):
    printed = told(capsys, "research", "classic", "svm", "--workers", "2")
    assert tuple(printed)[-len(LAST) :] == LAST
    assert printed["examples_per_s"] == pytest.approx(printed["examples"] / printed["seconds"])
    assert printed["serial_objective"] == printed["serial_measures"]["objective"]
    assert [row["epoch"] for row in printed["epochs"]] == [1, 2, 3]


def test_the_table_says_what_the_numbers_mean(capsys, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))  # else it says: busy machine
    assert main(["research", "classic", "svm", "--workers", "2", "--write", "lossless"]) == 0
    output = capsys.readouterr().out
    answer = output.splitlines()[0]
    assert answer.startswith("hogwild lossless, 2 workers: ")
    assert "objective" in answer
    assert answer.endswith(" x its speed")
    assert "start-up" not in output
    for words in ("serial, 1 worker", "hogwild lossless, 2 workers", "0 of 600"):  # lost updates
        assert words in output


def test_divergence_is_exit_code_4_with_a_learning_rate_to_try(capsys):
    assert main(["research", "classic", "svm", "--lr", "1e6", "--json"]) == 4
    output = capsys.readouterr()
    assert "serial diverged, so hogwild was not begun" in output.err
    assert "try --lr 0.1" in output.err
    printed = json.loads(output.out)
    assert (printed["status"], printed["speedup"]) == ("diverged", None)


def test_a_signal_ends_the_command_with_130_and_leaves_no_process(capsys, monkeypatch):
    run_epoch = _ClassicRun._run_epoch

    def interrupted(*how):
        advice = run_epoch(*how)
        signal.raise_signal(signal.SIGTERM)
        return advice

    before = set(multiprocessing.active_children())  # of other files, in the same process
    monkeypatch.setattr(_ClassicRun, "_run_epoch", interrupted)
    printed = told(capsys, "research", "classic", "svm", "--workers", "2", code=130)
    assert (printed["status"], len(printed["epochs"])) == ("interrupted", 1)
    assert not set(multiprocessing.active_children()) - before


def run(objective, seconds, *, strategy="hogwild", workers=2, status="done"):
    epoch = Epoch(1, 0.1, seconds, seconds * workers, 1000, {"objective": objective})
    return ClassicResult(
        problem="svm", strategy=strategy, write="racy", workers=workers, status=status, start_s=0.1,
        initial={"objective": 10.0}, epochs=(epoch,), lost_updates=5, probe_updates=1000,
    )  # fmt: skip


ALONE = run(1.0, 2.0, strategy="serial", workers=1)
INTERRUPTED = run(1.1, 1.0, status="interrupted")


@each_of(
    ("result", "serial", "answer"),
    [
        (run(1.0, 1.0), ALONE, "serial's objective, 2.00 x its speed"),
        (run(1.1, 4.0), ALONE, "objective +10.00% from serial's, 0.50 x its speed"),
        (INTERRUPTED, INTERRUPTED, "objective 1.1 interrupted after 1 epochs"),
        (run(1e9, 1.0, status="diverged"), ALONE, "diverged in epoch 1"),
    ],
)
def test_the_first_line_is_the_answer(result, serial, answer):
    first, numbers = sections("data", result, serial, [], everything=False)
    assert str(first.notes[0]) == f"hogwild racy, 2 workers: {answer}"
    assert len(str(first.notes[0])) <= 80
    assert ("lost updates", "5 of 1,000") == (numbers.rows[-1][0], numbers.rows[-1][-1])


@each_of(
    ("result", "load", "words"),
    [
        (run(20.0, 1.0), 0.1, ["The objective rose from 10: the learning rate is too large; try"]),
        (run(1.0, 4.0, workers=5), 5.0, ["5 workers, and a load of 5.0 before, on 4 cores"]),
        (run(1.0, 1.0), 0.1, []),
    ],
)
def test_what_spoils_the_numbers_is_said(result, load, words):
    for warning, expected in zip(warnings(result, load, 4), words, strict=True):
        assert expected in warning
