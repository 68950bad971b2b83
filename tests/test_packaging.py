"""What is installed: one package with its data, its native module and its command."""

import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata, resources
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("package", "file"),
    [
        ("mlxhog", "py.typed"),
        ("mlxhog", "data/texts/sotu.jsonl.xz"),
        ("mlxhog", "data/texts/SOURCES.md"),
        ("mlxhog.report", "web/uPlot.iife.min.js"),
        ("mlxhog.report", "web/uPlot-LICENSE.txt"),
        ("mlxhog.models", "py.typed"),
        ("mlxhog.models", "tiny.yaml"),
    ],
)
def test_a_package_carries_its_data(package, file):
    assert resources.files(package).joinpath(file).is_file()


def test_every_architecture_is_installed():
    installed = {entry.name for entry in resources.files("mlxhog.models").iterdir()}
    assert {file.name for file in (ROOT / "models").glob("*.yaml")} <= installed


def test_the_native_module_is_built_for_this_interpreter():
    assert import_module("mlxhog._native").__spec__.origin.endswith((".so", ".pyd"))


def test_the_command_is_installed():
    (entry,) = metadata.entry_points(group="console_scripts", name="mlxhog")
    assert entry.value == "mlxhog.__main__:main"


def test_only_pyproject_holds_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert metadata.version("mlxhog") == version
    files = [
        str(file.relative_to(ROOT))
        for folder in ("mlxhog", "models", "metal")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", ".cpp", ".h", ".txt")
        and re.search(rf"\b{re.escape(version)}\b", file.read_text())
    ]
    assert not files


def test_the_citation_is_valid_and_of_this_version():
    schema = ["--builtin-schema", "vendor.citation-file-format", str(ROOT / "CITATION.cff")]
    process = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *schema],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])


def test_the_licence_is_installed():
    files = [str(path) for path in metadata.files("mlxhog") or []]
    assert any(path.endswith("LICENSE") for path in files)


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_torch_is_pinned_on_every_system(system):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    (torch,) = [pin for pin in pins if pin.name == "torch"]
    assert torch.marker is None or torch.marker.evaluate({"sys_platform": system})
    assert str(torch.specifier) == "==2.13.0"
