"""The workflow files are valid, and their steps run here, but for what only a Mac can do.

`xcrun` stands in for Apple's compiler: it notes how it was called and reads the file.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
import yaml

from mlxhog import cli
from tools import dump

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

ELSEWHERE = {
    ".ci/run": "runs this test",
    "install": "the first step of .ci/run",
    "tests that need no GPU": "the suite of which this test is one",
    "tests on the GPU": "without one, all of them are skipped",
    "doctor": "20 s of processor time; tests/doctor runs it with --quick",
    "Apple's Metal compiler": "macOS only: asks Xcode for its compiler",
    "build the wheels": "an hour's containers and compilers; .ci/run builds a wheel",
    "check the wheels": "of the step before; .ci/run checks its own",
    "install and train": "of the step before; .ci/run installs and trains",
    "build the source distribution, and a wheel of it": "compiles everything, minutes",
}
"""Steps that are not run here, and why."""

XCRUN = """#!/bin/sh
echo "$@" >> "$XCRUN_LOG"
for word in "$@"; do case "$word" in *.metal) cat "$word" > /dev/null || exit 1;; esac; done
"""


def steps():
    """Every step that runs a command, with the last values of its matrix if it uses them."""
    results = {}
    for file in FILES:
        for job in yaml.safe_load(file.read_text())["jobs"].values():
            matrix = job["strategy"]["matrix"]
            lists = {key: value for key, value in matrix.items() if key != "include"}
            plain = [dict(zip(lists, one, strict=True)) for one in product(*lists.values())]
            for values, step in product(matrix.get("include", plain), job["steps"]):
                if "run" in step:
                    name = step.get("name", step["run"])
                    used = {key: x for key, x in values.items() if f"matrix.{key}" in step["run"]}
                    label = f"{file.stem}-{name}".replace(" ", "_")
                    results[label] = pytest.param(name, step, used, id=label)
    return list(results.values())


@pytest.mark.slow
def test_the_files_are_what_github_takes():
    assert len(FILES) == 3
    command = [sys.executable, "-m", "check_jsonschema"]
    options = ["--builtin-schema", "vendor.github-workflows"]
    process = subprocess.run(
        [*command, *options, *FILES], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_what_a_step_calls_that_is_not_run_here_exists():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    markers = {line.split(":")[0] for line in settings["ini_options"]["markers"]}
    calls = [
        shlex.split(line, comments=True)
        for step in steps()
        if step.values[0] in ELSEWHERE
        for line in step.values[1]["run"].splitlines()
    ]
    commands = [words[1] for words in calls if words[:1] == ["mlxhog"]]
    scripts = [words[1] for words in calls if words[:1] == ["python"] and words[1] != "-m"]
    tests = [words for words in calls if words[:3] == ["python", "-m", "pytest"]]
    used = {word for words in tests for word in words[words.index("-m", 2) + 1].split()}
    assert set(commands) <= cli.COMMANDS.keys()
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
    assert used - {"not", "and", "or"} <= markers
    assert commands
    assert scripts
    assert used


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "step", "values"), [s for s in steps() if s.values[0] not in ELSEWHERE]
)
def test_the_steps_of_the_workflows_run(tmp_path, name, step, values):
    """As GitHub runs them: bash, ended by the first command that fails, where the files are."""
    script = step["run"]
    for key, value in values.items():
        script = script.replace(f"${{{{ matrix.{key} }}}}", value)
    assert "${{" not in script
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "xcrun").write_text(XCRUN)
    (tmp_path / "bin" / "xcrun").chmod(0o755)
    log = tmp_path / "log"
    python = Path(sys.executable).parent
    environment = {
        **os.environ,
        **{key: str(value) for key, value in step.get("env", {}).items()},
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{python}{os.pathsep}{os.environ['PATH']}",
        "RUNNER_TEMP": str(tmp_path),
        "XCRUN_LOG": str(log),
    }
    bash = shutil.which("bash")
    assert bash is not None
    process = subprocess.run(
        [bash, "-e", "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "::warning::" not in process.stdout, process.stdout
    if name == "compile every kernel":
        standards = values["standards"].split()
        expected = {
            f"-sdk macosx metal -std={standard} -Wall -Werror -c {tmp_path}/metal/{text} "
            "-o /dev/null"
            for text, standard in product(dump.texts(), standards)
        }
        lines = log.read_text().splitlines()
        assert (set(lines), len(lines)) == (expected, len(expected))
