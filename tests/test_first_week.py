"""The twelve tasks of docs/getting-started.md, as they stand there, with shorter budgets."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.own_plugins import Ended, mlxhog

PAGE = Path(__file__).resolve().parents[1] / "docs" / "getting-started.md"
SMALL = "--workers mlx:cpu --threads 1 --batch-size 1 --seq-len 32"
SHORTER = (
    (r"--model 5m (.* --time)", r"--model tiny \1"),
    (r"--time (10m|1h)", f"--steps 3 {SMALL}"),
    (r"--epochs 3", f"--epochs 1 {SMALL}"),
    (r"--time 60", f"--tokens 1k --val-subset-tokens 1k --pairs 2 {SMALL}"),
    (r"(generate|eval) (\w+)", r"\1 \2 --backend mlx:cpu"),
    (r"load\('latest'", "load('latest', backend='mlx:cpu'"),
    (r"--max-new-tokens 100", "--max-new-tokens 5"),
    (r"max_new_tokens=40", "max_new_tokens=5"),
)
OURS = {"mlxhog": "-m mlxhog", "python": ""}
"""What this Python is given to be a program of the page."""


def run_command(command):
    """Run a command with less work: here, or in a shell if it is more than one of ours."""
    for pattern, words in SHORTER:
        command = re.sub(pattern, words, command)
    program, *words = shlex.split(command)
    if program == "mlxhog" and ">" not in words:
        return mlxhog(".", *words)
    here = f'{program}() {{ {shlex.quote(sys.executable)} {OURS[program]} "$@"; }}'
    process = subprocess.run(
        ["bash", "-c", f"{here}\n{command}"], capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    return Ended(process.returncode, process.stdout, process.stderr)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_task_of_a_first_week_is_at_most_two_commands_and_they_work(tmp_path, monkeypatch):
    week = PAGE.read_text("utf-8").partition("## A first week")[2]
    blocks = re.findall(r"```sh\n(.*?)```", week, re.DOTALL)
    tasks = [block.splitlines() for block in blocks]
    assert len(tasks) == 12
    assert all(1 <= len(commands) <= 2 for commands in tasks)
    notes = tmp_path / "notes"
    notes.mkdir()
    words = "the river runs to the sea and the sea returns it as rain".split()
    for number in range(12):
        text = " ".join(words[(k * (number + 3)) % len(words)] for k in range(900))
        (notes / f"{number}.txt").write_text(text)
    lines = [
        json.dumps({"prompt": f"The {word} is", "completion": f" {word}."})
        for word in sorted(set(words)) * 2
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    output = ""
    for command in (one for commands in tasks for one in commands):
        ended = run_command(command)
        assert ended.code == 0, f"{command}\n{ended}"
        output += ended.out
    assert "bits per byte" in output
    assert (tmp_path / "shared" / "config.json").exists()
    assert len(list((tmp_path / "runs").glob("*answers*"))) == 0
