"""Every script of benchmarks/ runs with `--tiny`: what nobody runs breaks unnoticed.

25 minutes, and so not part of the suite: `python -m pytest tests/benchmarks/every_script.py`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ROOT / "benchmarks", ROOT / "benchmarks" / "experiments"
SCRIPTS = [path for folder in FOLDERS for path in sorted(folder.glob("*.py"))]
LIMIT_S = 540.0  # most take seconds on two idle cores
LEAVE_S = 30.0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "script", [one for one in SCRIPTS if one.stem != "all"], ids=lambda one: one.stem
)
def test_a_script_runs_at_its_smallest(script, tmp_path):
    changes = changed()
    out = ["--out", str(tmp_path / "out")] if script.parent.name == "experiments" else []
    mark = f"OF_BENCHMARK_TEST={tmp_path}"
    with (tmp_path / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), "--tiny", *out],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **dict([mark.split("=", 1)])},
        )
        try:
            code = process.wait(LIMIT_S)
            orphans = left_after(LEAVE_S, mark)
        finally:
            process.kill()
            for pid in started_with(mark):
                os.kill(pid, signal.SIGKILL)
        lines = (tmp_path / "output").read_text().splitlines()
    if code == 3 and lines[-1].startswith("not installed: "):
        pytest.skip(lines[-1])
    assert code == 0, "\n".join(lines[-40:])
    assert json.loads(lines[-1])["verdict"] == "no_limit"
    assert not orphans
    assert changed() == changes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "package"),
    [("samplers", "optuna"), ("chaos", "scipy"), ("cluster_chaos", "pytest"),
     ("metal_shim", "pytest"), ("parity_false_failures", "pytest")],
)  # fmt: skip
def test_a_missing_package_is_one_sentence(script, package, tmp_path):
    missing = f"raise ModuleNotFoundError('No module named {package}', name={package!r})"
    (tmp_path / f"{package}.py").write_text(missing)
    ended = subprocess.run(
        [sys.executable, str(FOLDERS[0] / f"{script}.py"), "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert ended.returncode == 1
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith(f"{package} is not installed, and {script}.py needs it: python -m ")


def left_after(limit_s, mark):
    """Processes with an environment that are there after a time; those that leave in time go."""
    end = time.monotonic() + limit_s
    while (pids := started_with(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return pids


def started_with(mark):
    """Processes with this in their environment; without /proc (macOS) none is seen."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                pids.append(int(path.parent.name))
        except OSError:
            continue  # it has ended, or is another user's
    return pids


def changed():
    """Files of the checkout that differ from its commit, or are new."""
    words = ["git", "-C", str(ROOT), "status", "--porcelain"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout
