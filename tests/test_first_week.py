"""What README and docs/getting-started.md tell a new user to type works, with shorter budgets."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.own_plugins import Ended, mlxhog

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--workers mlx:cpu --threads 1 --batch-size 1 --seq-len 32"
SHORTER = (
    (r"--model 5m (.* --time)", r"--model tiny \1"),
    (r"--time (10m|1h)", f"--steps 3 {SMALL}"),
    (r"--epochs 3", f"--epochs 1 {SMALL}"),
    (r"--time 60", f"--tokens 1k --val-subset-tokens 1k --pairs 2 {SMALL}"),
    (r"(generate|eval) (\w+)", r"\1 \2 --backend mlx:cpu"),
    (r"load\('latest'", "load('latest', backend='mlx:cpu'"),
    (r"--max-new-tokens 100", "--max-new-tokens 5"),
    (r"max_new_tokens=(40|100)", "max_new_tokens=5"),
    (r"time=60", 'steps=3, workers="mlx:cpu", threads=1, batch_size=1, seq_len=32'),
    (r"load\(result.run", 'load(result.run, backend="mlx:cpu"'),
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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a user, with notes/ and pairs.jsonl."""
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
    return tmp_path


def blocks(page, language, after):
    """The blocks of a language below a heading."""
    text = (ROOT / page).read_text("utf-8").partition(f"\n## {after}\n")[2]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_task_of_a_first_week_is_at_most_two_commands_and_they_work(folder):
    tasks = [
        block.splitlines() for block in blocks("docs/getting-started.md", "sh", "A first week")
    ]
    assert len(tasks) == 12
    assert all(1 <= len(commands) <= 2 for commands in tasks)
    output = ""
    for command in (one for commands in tasks for one in commands):
        ended = run_command(command)
        assert ended.code == 0, f"{command}\n{ended}"
        output += ended.out
    assert "bits per byte" in output
    assert (folder / "shared" / "config.json").exists()
    assert len(list((folder / "runs").glob("*answers*"))) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_readme_work_in_their_order_and_so_do_its_lines_of_python(folder):
    commands = blocks("README.md", "sh", "Five commands")[0].splitlines()
    for command in (one.partition("#")[0] for one in commands):
        if "serve" not in command:  # which does not end; tests/serving
            ended = run_command(command)
            assert ended.code == 0, f"{command}\n{ended}"
    assert "done" in ended.out
    for lines in blocks("README.md", "python", "Five commands"):
        ended = run_command(f"python -c {shlex.quote(lines)}")
        assert ended.code == 0, f"{lines}\n{ended}"


@pytest.mark.slow
def test_the_page_of_models_has_the_sizes_that_a_dry_run_prints():
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d.]+) M \| ([\d.]+) GB \| ([\d.]+) ([MG]B) \|$", page, re.M
    )
    assert len(rows) == 5
    for name, parameters, memory, saved, unit in rows:
        words = "--workers mlx:cpu,torch:cpu --threads 1 --dry-run --json"
        plan = json.loads(mlxhog(".", "train", "--model", name, *words.split()).out)
        assert plan["parameters"] / 1e6 == pytest.approx(float(parameters), rel=0.01)
        assert plan["memory_bytes"] / 1e9 == pytest.approx(float(memory), rel=0.05)
        in_bytes = float(saved) * {"MB": 1e6, "GB": 1e9}[unit]
        assert plan["checkpoint_bytes"] == pytest.approx(in_bytes, rel=0.05)
