"""The workflow files are valid, and what their steps call exists."""

import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from mlxhog import cli

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.slow
def test_the_files_are_what_github_takes():
    assert len(FILES) == 3
    command = [sys.executable, "-m", "check_jsonschema"]
    options = ["--builtin-schema", "vendor.github-workflows"]
    process = subprocess.run(
        [*command, *options, *FILES], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_commands_scripts_modules_and_marks_of_the_steps_exist():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    markers = {line.split(":")[0] for line in settings["ini_options"]["markers"]}
    jobs = [job for file in FILES for job in yaml.safe_load(file.read_text())["jobs"].values()]
    texts = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    calls = [shlex.split(line, comments=True) for text in texts for line in text.splitlines()]
    commands = {words[1] for words in calls if words[:1] == ["mlxhog"]}
    of_python = [words[1:] for words in calls if words[:1] == ["python"]]
    scripts = {words[0] for words in of_python if words[0].endswith(".py")}
    modules = {words[1] for words in of_python if words[0] == "-m" and "tools." in words[1]}
    tests = [words[2:] for words in of_python if words[:2] == ["-m", "pytest"]]
    marks = {w for words in tests if "-m" in words for w in words[words.index("-m") + 1].split()}
    assert commands, scripts
    assert commands <= cli.COMMANDS.keys()
    assert all((ROOT / script).is_file() for script in scripts), scripts
    assert all(find_spec(module) for module in modules), modules
    assert marks
    assert marks - {"not", "and", "or"} <= markers
