"""Every `next:` line of a command runs; a long one is ended by Ctrl-C as soon as it trains."""

import io
import os
import re
import shlex
import signal
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from unittest import mock

import pytest

from mlxhog.cli import main
from tests.another_process import Program
from tests.training.small import small_config
from tests.words import misread_by_zsh

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

INTERRUPTED = 130
TRAINS = re.compile(r"^step \d", re.MULTILINE)
SMALLER = " --workers mlx:cpu*2 --seq-len 32 --batch-size 2 --data text --val-subset-tokens 512"
"""Ends a line that begins a run."""


class Output(io.StringIO):
    """The output of a command, which is interrupted at a pattern."""

    def __init__(self, until):
        super().__init__()
        self._until = until

    def write(self, text):
        size = super().write(text)
        if self._until is not None and self._until.search(self.getvalue()):
            self._until = None
            signal.raise_signal(signal.SIGINT)
        return size


class Shell:
    """A folder in which lines run, and the `next:` lines of their output."""

    def __init__(self, folder):
        self.folder, self.next = folder, []
        self.environment = {"XDG_CACHE_HOME": str(folder / "cache")}
        small_config(folder)  # writes a text and an architecture

    def run(self, line, until=None):
        """Run a line to its end, or press Ctrl-C at a pattern; keep its `next:` lines."""
        program, *words = shlex.split(line)
        assert program == "mlxhog"
        words, file = (words[:-2], words[-1]) if words[-2:-1] == [">"] else (words, ".log")
        output = Output(until)
        with (
            chdir(self.folder),
            mock.patch.dict(os.environ, self.environment),
            redirect_stdout(output),
            redirect_stderr(output),
        ):
            code = main(words)
        text = output.getvalue()
        (self.folder / file).write_text(text)
        assert code in ((0,) if until is None else (0, INTERRUPTED)), f"$ {line}\n{text}"
        return self._kept(text)

    @contextmanager
    def training(self, line):
        """Run a line in another process; it trains in the block, and gets Ctrl-C at the end."""
        words = shlex.split(line)[1:]
        with Program(*words, cwd=self.folder, **self.environment) as process:
            while not TRAINS.match(process.stderr.readline()):
                assert process.poll() is None
            yield
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=120)
        assert process.returncode == INTERRUPTED, f"$ {line}\n{output}"
        self._kept(output)

    def _kept(self, output):
        self.next += [line for line in next_lines(output) if line not in self.next]
        return output


def next_lines(output):
    """The commands of `next:` and `continue:` lines, and those below them."""
    return re.findall(r"^(?:next: |continue: |      )(mlxhog .*)", output, re.MULTILINE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The shell after a run ended, continued, was interrupted, and was watched meanwhile."""
    shell = Shell(tmp_path_factory.mktemp("runs"))
    shell.run(f"mlxhog train --model small.yaml --strategy hogwild --steps 2{SMALLER}")
    shell.run("mlxhog train --resume latest --steps 2")
    with shell.training("mlxhog train --resume latest --time 10m"):
        (line,) = next_lines(shell.run("mlxhog show latest"))
        shell.next.remove(line)  # it is for a run in progress
        shell.run(line, re.compile(r"step \d"))
    shell.run("mlxhog watch latest")
    shell.run("mlxhog show latest")
    for kind in ("record", "rounds"):
        line = f"mlxhog train --model small.yaml --determinism {kind} --steps 2{SMALLER}"
        shell.run(f"{line} --strategy {'hogwild' if kind == 'record' else 'sync'}")
    return shell


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """The shell after a study stopped by its budget, and after all others with `next:` lines."""
    shell = Shell(tmp_path_factory.mktemp("studies"))
    space = "space: {depth: 2, mixers: [gated-conv, mlstm], channels: [swiglu], dim: 16}"
    (shell.folder / "space.yaml").write_text(space)
    line = "mlxhog mad search --space space.yaml --tasks in-context-recall --steps 4"
    shell.run(f"{line} --study s --backend mlx --budget 1")
    assert any(line.startswith("mlxhog mad resume s") for line in shell.next)
    shell.run("mlxhog mad resume s")
    shell.run("mlxhog mad consensus s --top 2")
    shell.run("mlxhog mad consensus s --output w.yaml")
    shell.run("mlxhog mad deepen w.yaml --depth 4 --output 'four layers.yaml'")
    for command in ("models", "mad tasks", "mad suites", "mad layers"):
        shell.run(f"mlxhog {command}")
    return shell


@pytest.mark.parametrize("kind", ["runs", "studies"])
def test_every_next_line_can_be_pasted(kind, request):
    shell = request.getfixturevalue(kind)
    assert [part for line in shell.next for part in misread_by_zsh(line)] == []
    for line in list(shell.next):  # without the lines that these print
        is_long, is_new = (line.startswith(f"mlxhog train{more}") for more in ("", " --model"))
        shell.run(line + SMALLER * is_new, TRAINS if is_long else None)
