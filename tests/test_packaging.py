"""What is installed, and the workflow files: they are valid, and what their steps call exists."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module, metadata, resources
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mlxhog import cli
from mlxhog.doctor.checks import TESTED
from tests import processes

ROOT = Path(__file__).parents[1]


DATA = {
    "mlxhog": "py.typed data/texts/sotu.jsonl.xz data/texts/sotu.tokenizer.json "
              "data/texts/SOURCES.md",
    "mlxhog.display": "web/uPlot.iife.min.js web/uPlot-LICENSE.txt",
    "mlxhog.models": " ".join(["py.typed", *(f.name for f in (ROOT / "models").glob("*.yaml"))]),
}  # fmt: skip


def test_packages_carry_their_data_licence_native_module_and_command():
    for package, names in DATA.items():
        assert all(resources.files(package).joinpath(name).is_file() for name in names.split())
    assert any(str(path).endswith("LICENSE") for path in metadata.files("mlxhog") or [])
    assert import_module("mlxhog._native").__spec__.origin.endswith((".so", ".pyd"))
    (entry,) = metadata.entry_points(group="console_scripts", name="mlxhog")
    assert entry.value == "mlxhog.__main__:main"


def test_only_pyproject_holds_the_version_and_the_citation_is_of_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    assert metadata.version("mlxhog") == version
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (cited["version"], cited["license"]) == (version, project["license"])
    files = [
        str(file.relative_to(ROOT))
        for folder in ("mlxhog", "models", "metal")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", ".cpp", ".h", ".txt")
        and re.search(rf"\b{re.escape(version)}\b", file.read_text())
    ]
    assert not files


FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "files"),
    [("citation-file-format", [ROOT / "CITATION.cff"]), ("github-workflows", FILES)],
)
def test_the_citation_and_the_workflows_are_what_github_takes(schema, files):
    words = ["-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    process = processes.python(*words)
    assert process.returncode == 0, process.stdout + process.stderr
    assert len(FILES) == 4


def checkout(folder):
    """A checkout: the real front door, and sources that must not be imported behind it."""
    package = folder / "mlxhog"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "mlxhog" / "__init__.py", package)
    for source in (ROOT / "mlxhog").glob("[!_]*"):
        name = source.name if source.suffix == ".py" else f"{source.name}.py"
        (package / name).write_text("raise AssertionError('a module of the sources')\n")
    return folder


def python(*arguments, cwd, packages=None):
    """Run Python where mlxhog is installed in `packages`, and nowhere else."""
    others = [path for path in sys.path if "packages" in Path(path).name]  # site-, dist-
    path = os.pathsep.join([str(packages), *others] if packages else [])
    # -S: without the hooks of an editable installation
    return processes.python("-S", *arguments, cwd=cwd, PYTHONPATH=path)


def test_sources_that_are_not_installed_say_what_they_are_and_the_way_out(tmp_path):
    process = python("-c", "import mlxhog", cwd=checkout(tmp_path))
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "sources of mlxhog, which lack the compiled parts" in last
    assert "python -m pip install -c constraints.txt ." in last


@pytest.mark.slow
def test_in_the_checkout_every_way_to_start_python_takes_the_whole_installed_package(tmp_path):
    here, packages = checkout(tmp_path / "checkout"), tmp_path / "site-packages"
    for name in ("mlxhog", "mlxhog/models", "mlxhog/metal"):  # with what Python has compiled
        ignore = shutil.ignore_patterns("*.pyc.*")  # and is writing now, for another test
        shutil.copytree(ROOT / name.removeprefix("mlxhog/"), packages / name, ignore=ignore)
    shutil.copy(import_module("mlxhog._native").__spec__.origin, packages / "mlxhog")
    (here / "text.txt").write_text("Never wait, add without a lock. " * 1000)
    script = here / "script.py"
    script.write_text(
        "import mlxhog\n"
        "result = mlxhog.train(steps=2, workers='mlx:cpu', strategy='hogwild', model='tiny',\n"
        "                      data='text.txt', batch_size=1, seq_len=32, observer=None)\n"
        "print(result.status, result.steps, mlxhog.__file__)\n"
    )
    for arguments in (["script.py"], ["-c", script.read_text()], ["-m", "mlxhog", "models"]):
        process = python(*arguments, cwd=here, packages=packages)
        assert process.returncode == 0, process.stderr
        if arguments[0] != "-m":
            file = packages / "mlxhog" / "__init__.py"
            assert process.stdout.splitlines()[-1] == f"done 2 {file}"


def pinned(**here):
    """The pins of constraints.txt, all or those of a system."""
    lines = (line.partition("#")[0] for line in (ROOT / "constraints.txt").read_text().splitlines())
    pins = [Requirement(line) for line in lines if line.strip()]
    return [one for one in pins if not (here and one.marker) or one.marker.evaluate(here)]


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_a_framework_is_pinned_on_every_system(system):
    pins = {one.name: one.specifier for one in pinned(sys_platform=system)}
    for name in ("torch", "mlx"):
        assert [one.operator for one in pins[name]] == ["=="]


def allowed_pythons():
    """The minor versions of Python 3 that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = SpecifierSet(project["requires-python"])
    return [n for n in range(30) if f"3.{n}.1" in allowed]


def test_every_python_that_is_allowed_is_built_tested_and_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    minors = allowed_pythons()
    assert project["tool"]["cibuildwheel"]["build"] == [f"cp3{n}-*" for n in minors]
    tested = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    matrix = tested["jobs"]["linux"]["strategy"]["matrix"]["python"]
    assert matrix == [f"3.{n}" for n in minors]
    version = "Programming Language :: Python :: 3."
    named = [one for one in project["project"]["classifiers"] if one.startswith(version)]
    assert named == [f"{version}{n}" for n in minors]


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_pins_are_versions_that_the_package_takes_and_that_doctor_calls_tested(system):
    here = {"sys_platform": system, "platform_machine": "arm64"}
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = [one for one in map(Requirement, lines) if not one.marker or one.marker.evaluate(here)]
    own = "macos" if system == "darwin" else system
    for pin in pinned(sys_platform=system):
        (version,) = (one.version for one in pin.specifier)
        for one in needed:
            assert one.name != pin.name or version in one.specifier
        if pin.name in TESTED:
            assert TESTED[pin.name].get(own, TESTED[pin.name][""]) == version
    (torch,) = (one for one in needed if one.name == "torch")
    assert ("2.13.0" in torch.specifier) == (system == "linux"), "it adds wrong on an M1 or M2"


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
    assert commands
    assert scripts
    assert commands <= cli.COMMANDS[""].keys()
    assert all((ROOT / script).is_file() for script in scripts), scripts
    assert all(find_spec(module) for module in modules), modules
    assert marks
    assert marks - {"not", "and", "or"} <= markers


def job_of(stem, name):
    """A job of a workflow, and its steps by their names."""
    (file,) = (file for file in FILES if file.stem == stem)
    job = yaml.safe_load(file.read_text())["jobs"][name]
    return job, {step.get("name", step.get("uses")): step for step in job["steps"]}


def test_the_workflow_for_macs_asks_doctor_and_the_gpu_first_and_each_fails_it():
    job, steps = job_of("macos", "metal")
    order = ["install", "doctor", "compile every kernel", "tests on the GPU",
             "actions/upload-artifact@v5", "tests that need no GPU"]  # fmt: skip
    assert [name for name in steps if name in order] == order
    assert steps["install"]["id"] == "install"
    for name in order[2:]:  # also after a step that failed: a run should collect every error
        assert steps[name]["if"] == "always() && steps.install.outcome == 'success'"
    assert not any(words in str(job["steps"]) for words in ("|| echo", "::warning", "|| true"))
    rows = {row["macos"]: row.get("preview", False) for row in job["strategy"]["matrix"]["include"]}
    assert rows == {"macos-15": False, "macos-26": False, "xcode-27": True}
    assert '-m "not metal and not slow" -n 3' in steps["tests that need no GPU"]["run"]


def test_a_pull_request_trains_on_a_mac_on_arm64_linux_and_with_every_python():
    smoke, _ = job_of("macos", "smoke")
    assert "mlxhog train" in str(smoke["steps"])
    matrix = job_of("ci", "linux")[0]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{n}" for n in allowed_pythons()]
    assert matrix["include"] == [{"machine": "ubuntu-24.04-arm", "python": "3.12"}]


def test_a_text_that_does_not_compile_does_not_keep_the_next_one_from_the_compiler(tmp_path):
    """The step of the workflow, with a compiler that refuses two of three texts."""
    step = job_of("macos", "metal")[1]["compile every kernel"]
    programs, script = tmp_path / "bin", step["run"]
    programs.mkdir()
    for name, text in (
        ("python", 'mkdir -p "$3"; touch "$3/a.metal" "$3/b.metal" "$3/c.metal"'),
        ("xcrun", 'case "$*" in *b.metal*) exit 0;; *) echo "error: $*" >&2; exit 1;; esac'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    script = script.replace("${{ matrix.standards }}", "metal3.1 metal3.2")
    process = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": f"{programs}:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path)},
    )  # fmt: skip
    assert process.returncode == 1
    assert "4 texts do not compile" in process.stdout
    assert process.stdout.count("error: ") == 4
    assert (tmp_path / "compile.log").read_text().count("metal3.2 ") >= 3
