"""The completions of a command line in a shell."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlxhog.cli import COMMANDS
from mlxhog.cli.completion import SCRIPTS
from tests.cli.command import said
from tests.display.sample_run import write_run


def completed(capsys, line, shell="bash"):
    """The completions of the last word of a line; one that ends with a space begins another."""
    return said(capsys, "completion", shell, "--", *line.split(" ")).out.splitlines()


def test_commands_options_and_values_are_those_of_the_parsers(capsys):
    for line, words in (
        ("", COMMANDS[""]),
        ("train --st", ["--steps", "--strategy"]),
        ("mad search --sp", ["--space"]),
        ("research classic m", ["matrix-completion"]),
        ("train --model t", ["tiny"]),
    ):
        assert set(words) <= set(completed(capsys, line))
    for line, words in (
        ("trai", ["train"]),
        ("train --strategy hog", ["hogwild"]),
        ("train --no-keep-b", ["--no-keep-best"]),
        ("mad sea", ["search"]),
        ("completion z", ["zsh"]),
        ("trian ", []),
        ("train --data ", []),  # files are left to the shell
        ("generate latest --backend torch : c", ["cpu"]),  # as bash splits words
        ("train --strategy = hog", ["hogwild"]),
    ):
        assert completed(capsys, line) == words
    assert completed(capsys, "train --strategy=hog", shell="zsh") == ["--strategy=hogwild"]
    for words, facts in (([], {"script": SCRIPTS["zsh"]}), (["--", "trai"], ["train"])):
        assert json.loads(said(capsys, "completion", "zsh", "--json", *words).out) == facts


def test_runs_are_completed_by_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "no-run").mkdir(parents=True)
    write_run(tmp_path / "runs", "20260102-101500-sotu")
    for line in ("generate ", "train --resume ", "watch ", "stop "):
        assert completed(capsys, line) == ["latest", "20260102-101500-sotu"]


DRIVERS = {
    "bash": 'eval "$(mlxhog completion bash)"; COMP_WORDS=(mlxhog {words}); COMP_CWORD={last}; '
    '_mlxhog; printf "%s\\n" "${{COMPREPLY[@]}}"',
    "zsh": "compdef() {{ :; }}; compadd() {{ shift; print -l -- $@; }}; "
    'eval "$(mlxhog completion zsh)"; words=(mlxhog {words}); CURRENT={last}+1; _mlxhog',
}


@pytest.mark.parametrize("shell", [shell for shell in DRIVERS if shutil.which(shell)])
def test_the_shell_itself_completes(shell, tmp_path):
    program = tmp_path / "mlxhog"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mlxhog "$@"\n')
    program.chmod(0o755)
    script = DRIVERS[shell].format(words="train --st", last=2)
    process = subprocess.run(
        [shell, "-c", script], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert {"--steps", "--strategy"} <= {*process.stdout.splitlines()}
    assert process.stderr == ""
