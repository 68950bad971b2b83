"""The rule of the full test run: only Apple hardware excuses a skip."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")


def pytest_in(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run all tests of a folder."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sources", "code", "message"),
    [
        (
            [
                "def test_a(): pass",
                "@pytest.mark.metal\ndef test_a(): pytest.skip('no Apple GPU')",
            ],
            0,
            ["1 passed, 1 skipped"],
        ),
        (
            [
                "def test_a(): pytest.skip('no clang')",
                "@pytest.mark.skip(reason='later')\ndef test_a(): pass",
                "pytest.importorskip('nosuchmodule')",
            ],
            1,
            [
                "skipped without need",
                "test_0.py::test_a: Skipped: no clang",
                "test_1.py::test_a: Skipped: later",
                "could not import 'nosuchmodule'",
            ],
        ),
    ],
    ids=["excused", "needless"],
)
def test_forbid_skips(tmp_path, sources, code, message):
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = metal: x\n")
    for number, source in enumerate(sources):
        (tmp_path / f"test_{number}.py").write_text(f"import pytest\n{source}\n")
    process = pytest_in(tmp_path, "--forbid-skips")
    assert process.returncode == code, process.stdout
    output = process.stdout.partition("skipped without need")
    for words in message:
        assert words in (process.stdout if code == 0 else "".join(output[1:]))


@pytest.mark.slow
def test_skips_in_other_processes_are_forbidden_too(tmp_path):
    """In a folder of a marker's name, which excuses nothing."""
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = metal: x\n")
    (tmp_path / "metal").mkdir()
    (tmp_path / "metal" / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.metal\ndef test_a(): pytest.skip('no Apple GPU')\n"
        "def test_b(): pytest.skip('no clang')\n"
    )
    process = pytest_in(tmp_path, "--forbid-skips", "-n", "1")
    assert process.returncode == 1, process.stdout
    assert "test_it.py::test_b: Skipped: no clang" in process.stdout
    assert "test_a: Skipped" not in process.stdout


def test_a_tests_own_cache_is_no_directory_that_pytest_numbers(tmp_path):
    """To number one, pytest reads the names of all: a minute of ours for 10,000 tests."""
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = metal: x\n")
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\n"
        "seen, sizes = set(), set()\n"
        "@pytest.mark.parametrize('n', range(9))\n"
        "def test_it(n, tmp_path_factory):\n"
        "    seen.add(os.environ['XDG_CACHE_HOME'])\n"
        "    assert len(seen) == n + 1\n"
        "    sizes.add(len(os.listdir(tmp_path_factory.getbasetemp())))\n"
        "    assert len(sizes) == 1\n"
    )
    process = pytest_in(tmp_path)
    assert process.returncode == 0, process.stdout
