"""The completions of a command line in a shell."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlxhog.cli import COMMANDS, main


def completed(capsys, *words, shell="bash"):
    assert main(["completion", shell, "--", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_commands_options_and_values_are_those_of_the_parsers(capsys):
    assert set(COMMANDS) <= set(completed(capsys, ""))
    assert completed(capsys, "trai") == ["train"]
    assert {"--steps", "--strategy"} <= set(completed(capsys, "train", "--st"))
    assert completed(capsys, "train", "--strategy", "hog") == ["hogwild"]
    assert completed(capsys, "train", "--force", "") == ["true", "false"]
    assert completed(capsys, "mad", "sea") == ["search"]
    assert "--space" in completed(capsys, "mad", "search", "--sp")
    assert "matrix-completion" in completed(capsys, "classic", "m")
    assert "tiny" in completed(capsys, "train", "--model", "t")
    assert completed(capsys, "completion", "z") == ["zsh"]
    assert completed(capsys, "trian", "") == []


def test_files_are_left_to_the_shell(capsys):
    assert completed(capsys, "train", "--data", "") == []


def test_runs_are_completed_by_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("20260102-101500-sotu", "no-run"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "20260102-101500-sotu" / "run.json").write_text("{}")
    expected = ["latest", "20260102-101500-sotu"]
    for words in (["generate", ""], ["train", "--resume", ""], ["watch", ""], ["stop", ""]):
        assert completed(capsys, *words) == expected


def test_bash_gets_what_follows_the_break_of_its_word(capsys):
    words = ["generate", "latest", "--backend", "torch", ":", "c"]
    assert completed(capsys, *words) == ["cpu"]
    assert completed(capsys, "train", "--strategy", "=", "hog") == ["hogwild"]
    assert completed(capsys, "train", "--strategy=hog", shell="zsh") == ["--strategy=hogwild"]
    (line,) = completed(capsys, "train", "--optimize", shell="fish")
    assert line.startswith("--optimizer\tupdate rule")


def test_json_is_one_line(capsys):
    assert main(["completion", "zsh", "--json"]) == 0
    assert "compdef" in json.loads(capsys.readouterr().out)["script"]
    assert main(["completion", "zsh", "--json", "--", "trai"]) == 0
    assert json.loads(capsys.readouterr().out) == ["train"]


DRIVERS = {
    "bash": 'eval "$(mlxhog completion bash)"; COMP_WORDS=(mlxhog {words}); COMP_CWORD={last}; '
    '_mlxhog; printf "%s\\n" "${{COMPREPLY[@]}}"',
    "zsh": "compdef() {{ :; }}; compadd() {{ shift; print -l -- $@; }}; "
    'eval "$(mlxhog completion zsh)"; words=(mlxhog {words}); CURRENT={last}+1; _mlxhog',
    "fish": "mlxhog completion fish | source; complete -C 'mlxhog {words}'",
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
    assert {"--steps", "--strategy"} <= {
        line.split("\t")[0] for line in process.stdout.splitlines()
    }
    assert process.stderr == ""
