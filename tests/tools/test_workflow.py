"""The macOS workflow, which cannot run here, names only what exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from mlxhog import cli

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / ".github" / "workflows" / "macos.yml").read_text()
WORKFLOW = yaml.safe_load(TEXT)
(JOB,) = WORKFLOW["jobs"].values()
SYSTEMS = {
    each["macos"]: each["standards"].split() for each in JOB["strategy"]["matrix"]["include"]
}
COMMANDS = [
    shlex.split(line, comments=True)
    for step in JOB["steps"]
    for line in step.get("run", "").splitlines()
]


def after(*words: str) -> list[list[str]]:
    """What follows these words in the commands that begin with them, up to a `||` or a `>`."""
    results = []
    for command in COMMANDS:
        if command[: len(words)] == list(words):
            rest = command[len(words) :]
            ends = [rest.index(sign) for sign in ("||", ">") if sign in rest]
            results.append(rest[: min(ends, default=len(rest))])
    return results


def test_it_runs_by_hand_and_weekly_and_never_for_a_merge():
    triggers = WORKFLOW[True]  # YAML 1.1 reads the key `on` as a truth value
    assert set(triggers) == {"workflow_dispatch", "schedule"}
    assert re.fullmatch(r"\d+ \d+ \* \* \d", triggers["schedule"][0]["cron"])


def test_it_runs_on_both_systems_and_each_goes_to_its_end():
    assert not JOB["strategy"]["fail-fast"]
    assert list(SYSTEMS) == ["macos-15", "macos-26"]
    assert JOB["runs-on"] == "${{ matrix.macos }}"
    names = [step.get("name") for step in JOB["steps"]]
    late = JOB["steps"][names.index("tests that need no GPU") :]
    assert all(step["if"] == "always()" for step in late)


def test_the_modules_and_commands_it_names_exist():
    modules = [command[2] for command in COMMANDS if command[:2] == ["python", "-m"]]
    assert "tools.dump" in modules
    others = set(modules) - {"pip"}  # which setuptools warns of when it is looked for
    assert [name for name in others if importlib.util.find_spec(name) is None] == []
    (doctor,) = after("mlxhog", "doctor")
    assert "doctor" in cli.COMMANDS
    assert doctor == ["--json"]


def test_it_compiles_the_folder_that_it_dumps():
    ((folder,),) = after("python", "-m", "tools.dump")
    assert folder == "$RUNNER_TEMP/metal"
    assert f"for text in {folder}/*.metal; do" in TEXT.replace('"', "")


@pytest.mark.parametrize("options", after("python", "-m", "pytest"), ids=" ".join)
def test_pytest_knows_its_options_and_markers(options, tmp_path):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    known = {line.split(":")[0] for line in settings["ini_options"]["markers"]}
    expression = options[options.index("-m") + 1]
    assert set(expression.split()) - {"not", "and", "or"} <= known
    (tmp_path / "test_one.py").write_text(
        "import pytest\n@pytest.mark.metal\ndef test_on_a_gpu(): pass\ndef test_anywhere(): pass\n"
    )
    config = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *config, "-p", "no:cacheprovider", *options, "-vv", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert ("test_on_a_gpu" in process.stdout) == (expression == "metal")
    assert ("test_anywhere" in process.stdout) == (expression == "not metal")


def test_apple_compiles_in_the_languages_that_the_frameworks_ask_for_and_warnings_are_errors():
    assert {"metal3.1", "metal3.2"} <= set(SYSTEMS["macos-15"])
    assert {"metal3.1", "metal4.0"} <= set(SYSTEMS["macos-26"])
    assert "for standard in ${{ matrix.standards }}; do" in TEXT
    compile_line = next(line for line in TEXT.splitlines() if "-Werror" in line)
    assert compile_line.split() == [
        *("xcrun", "-sdk", "macosx", "metal", "-std=$standard", "-Wall", "-Werror"),
        *("-c", '"$text"', "-o", "/dev/null"),
    ]


def test_the_report_of_doctor_is_kept():
    upload = JOB["steps"][-1]
    assert upload["uses"].startswith("actions/upload-artifact@")
    assert upload["with"]["path"] == "doctor.json"
    assert "mlxhog doctor --json > doctor.json" in TEXT


def test_packages_come_as_constrained_and_no_index_is_named():
    for rest in after("python", "-m", "pip", "install"):
        assert rest[:2] == ["-c", "constraints.txt"]
    assert "://" not in TEXT
    assert "index-url" not in TEXT
