"""Every `next:` line that a command prints can be pasted, with and without layers of one's own.

Commands run in processes of their own, from a shell, as people run them. A line that would take
long is ended by Ctrl-C as soon as it trains.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mlxhog

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_layer.py"
PRODUCT = Path(next(iter(mlxhog.__path__)))
INTERRUPTED = 130
TRAINS = re.compile(r"^step \d", re.MULTILINE)
WATCHES = re.compile(r"step \d")
LONG = "mlxhog train "
"""Begins a line that trains for longer than a test may."""
TINY = "--workers mlx:cpu*2 --strategy hogwild --seq-len 32 --eval-tokens 512"


class Shell:
    """A folder in which lines are run, and the lines that their output says to run next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.next: list[str] = []
        self.environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    @contextmanager
    def started(self, line: str) -> Iterator[subprocess.Popen[str]]:
        """Begin a line, whose output comes in one stream; it does not outlive the block."""
        process = subprocess.Popen(
            f"exec {line}", shell=True, cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
        )  # fmt: skip
        with process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, line: str) -> str:
        """Run a line to its end, and keep what it says to run next."""
        with self.started(line) as process:
            return self.end(process)

    def interrupt(self, line: str, running: re.Pattern[str] = TRAINS) -> str:
        """Begin a line, press Ctrl-C when it runs, and keep what it says to run next."""
        with self.started(line) as process:
            output = wait_for(process, running)
            process.send_signal(signal.SIGINT)
            return self.end(process, output, codes=(0, INTERRUPTED))

    def end(
        self, process: subprocess.Popen[str], output: str = "", codes: tuple[int, ...] = (0,)
    ) -> str:
        """Wait for the end of a process, and keep what it says to run next."""
        rest, _ = process.communicate()
        assert process.returncode in codes, f"$ {process.args}\n{output}{rest}"
        lines = list(next_lines(output + rest))
        self.next += [line for line in lines if line not in self.next]
        return output + rest

    def run_next(self) -> None:
        """Run every line that was kept, in order; what they print themselves is not followed."""
        for line in list(self.next):
            if line.startswith(LONG):
                self.interrupt(line)
            else:
                self.run(line)


def wait_for(process: subprocess.Popen[str], pattern: re.Pattern[str]) -> str:
    """Return the output of a process up to a line."""
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if pattern.search(line):
            return output
    process.wait()
    raise AssertionError(f"{process.args} ended before {pattern.pattern!r}:\n{output}")


def next_lines(output: str) -> Iterator[str]:
    """Yield the commands of `next:` and `go on:` lines, and those below them."""
    below = False
    for line in output.splitlines():
        said = re.match(r"(?:next|go on): (.*)", line)
        if said:
            yield said[1]
        elif below and line.startswith("      mlxhog "):
            yield line.strip()
        below = bool(said) or (below and line.startswith("      mlxhog "))


def search(shell: Shell, mixers: str, how: str = "") -> None:
    """A study of two candidates that is stopped by its budget, then continues to its end."""
    space = f"space: {{depth: 2, mixers: {mixers}, channels: [swiglu], dim: 16}}"
    (shell.folder / "space.yaml").write_text(space)
    line = f"mlxhog mad search --space space.yaml --tasks in-context-recall --steps 4 {how}"
    shell.run(f"{line} --study s --backend mlx --budget 1")
    assert any(line.startswith("mlxhog mad resume s") for line in shell.next)
    shell.run("mlxhog mad resume s")
    shell.run("mlxhog mad vote s --top 2")
    shell.run("mlxhog mad vote s --out w.yaml")


def train(shell: Shell, how: str) -> None:
    """A run that ends, continues, is interrupted, and is looked at meanwhile and afterwards."""
    shell.run(f"mlxhog train {how} --steps 2 {TINY}")
    shell.run("mlxhog train --resume latest --steps 2")
    with shell.started("mlxhog train --resume latest --time 10m") as process:
        output = wait_for(process, TRAINS)
        (line,) = next_lines(shell.run("mlxhog show latest"))
        shell.next.remove(line)  # it is for while the run trains
        shell.interrupt(line, WATCHES)
        process.send_signal(signal.SIGINT)
        shell.end(process, output, codes=(INTERRUPTED,))
    shell.run("mlxhog watch latest")
    shell.run("mlxhog show latest")


def rows(folder: Path) -> Path:
    """A file of examples for `mlxhog classic`."""
    lines = [f"{1 - 2 * (n % 2)} {n % 3 + 1}:1 {n % 5 + 4}:0.5" for n in range(40)]
    (folder / "rows.svm").write_text("\n".join(lines) + "\n")
    return folder / "rows.svm"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Where a run has been trained, watched and interrupted."""
    shell = Shell(tmp_path_factory.mktemp("runs"))
    train(shell, "")
    return shell


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Where a study has been searched, and what else says what to run next has been run."""
    shell = Shell(tmp_path_factory.mktemp("studies"))
    search(shell, "[gated-conv, mlstm]")
    shell.run("mlxhog mad scale w.yaml --depth 4 --out 'four layers.yaml'")
    shell.run(f"mlxhog classic svm --data {rows(shell.folder)} --save svm.safetensors --epochs 1")
    for line in ("mlxhog models", "mlxhog mad tasks", "mlxhog mad layers"):
        shell.run(line)
    return shell


def test_every_next_line_after_a_run_can_be_pasted(runs: Shell) -> None:
    runs.run_next()


def test_every_next_line_after_a_study_can_be_pasted(studies: Shell) -> None:
    studies.run_next()


def test_every_printer_of_a_next_line_is_reached(runs: Shell, studies: Shell) -> None:
    said = [*runs.next, *studies.next, "mlxhog watch "]  # which `train` has run
    unreached = {
        place: text for place, text in printers() if not any(one.startswith(text) for one in said)
    }
    assert not unreached, "let a command here print them, so that they are run"


OWN = "--layers-from my_layer.py"


def test_every_next_line_after_a_run_with_own_layers_can_be_pasted(tmp_path: Path) -> None:
    (tmp_path / "my_layer.py").write_text(EXAMPLE.read_text())
    (tmp_path / "own.yaml").write_text("model: {dim: 16, layers: [my_layer, swiglu]}")
    shell = Shell(tmp_path)
    train(shell, f"--model own.yaml {OWN}")
    shell.run_next()


def test_every_next_line_after_a_study_with_own_layers_can_be_pasted(tmp_path: Path) -> None:
    (tmp_path / "my_layer.py").write_text(EXAMPLE.read_text())
    shell = Shell(tmp_path)
    search(shell, "[{type: my_layer, expand: [1, 2]}]", OWN)
    shell.run_next()


def printers() -> Iterator[tuple[str, str]]:
    """Yield place and beginning of every text of the product that says what to run next."""
    for file in sorted(PRODUCT.rglob("*.py")):
        tree = ast.parse(file.read_text())
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
            if isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            if id(node) not in documentation and (at := node.value.find("next: ")) >= 0:
                text = node.value[at:].removeprefix("next: ")
                yield f"{file.relative_to(PRODUCT)}:{node.lineno}", text
