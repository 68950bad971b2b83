"""Which tests `python -m pytest` runs, in how many processes: in a project with our settings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

from tests.pairs import max_examples

def test_quick():
    pass

@pytest.mark.slow
def test_slow():
    pass

def test_examples():
    print("examples", max_examples(300).max_examples)
"""
QUICK = {"test_quick", "test_examples"}
WHOLE = {*QUICK, "test_slow"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "tests", "in_two", "n_examples"),
    [
        ("", QUICK, True, 10),
        ("--pdb", QUICK, False, 10),
        ("checks/test_it.py", WHOLE, False, 10),
        ("--whole -n 2", WHOLE, True, 300),
    ],
)
def test_a_choice_of_tests_and_of_processes_counts(tmp_path, words, tests, in_two, n_examples):
    (tmp_path / "checks").mkdir()  # `tests` is where our helpers are
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "checks")
    (tmp_path / "checks" / "test_it.py").write_text(TESTS)
    inherited = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_ADDOPTS")}
    output = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-o", "testpaths=checks", *words.split()],
        cwd=tmp_path, env={**inherited, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    assert "failed" not in output, output
    passed = {line.split("::")[1] for line in output.splitlines() if line.startswith("PASSED")}
    assert (passed, "2 workers" in output) == (tests, in_two)
    assert f"examples {n_examples}" in output
