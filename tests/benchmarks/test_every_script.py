"""Every script of benchmarks/ runs with `--tiny`: what nobody runs breaks unnoticed."""

import atexit
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

import pytest

from tests.another_process import Running
from tests.forked import CONTEXT
from tests.processes import alive, below

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(
    path.relative_to(BENCHMARKS)
    for folder in (BENCHMARKS, BENCHMARKS / "experiments")
    for path in folder.glob("*.py")
    if path.stem != "all"
)
LIMIT_S = 540.0  # the longest takes half a minute on two idle cores
LEAVE_S = 30.0


def run(script, words, output):
    """What `python SCRIPT WORDS` does, but for processes, which are forked."""
    os.setsid()
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
    multiprocessing.get_context = lambda method=None: CONTEXT
    sys.argv = [str(script), *words]
    sys.path.insert(0, str(script.parent))
    if script.parent != BENCHMARKS:
        sys.path.insert(1, str(BENCHMARKS))
    os.chdir(ROOT)
    try:
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = sys.modules["__mp_main__"] = main
        main.__file__ = str(script)
        exec(compile(script.read_text(), str(script), "exec"), main.__dict__)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # which a process of `multiprocessing` leaves out


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_at_its_smallest(script, tmp_path, cache):
    out = ["--out", str(tmp_path / "out")] if script.parent.name == "experiments" else []
    changes, before = changed(), set(started())
    process = Running(run, BENCHMARKS / script, ["--tiny", *out], tmp_path / "output")
    try:
        code = process.wait(LIMIT_S)
        orphans = left_after(LEAVE_S, before)
    finally:
        process.kill()
        for pid in set(started()) - before:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    lines = (tmp_path / "output").read_text().splitlines()
    if code == 3 and lines[-1].startswith("not installed: "):
        pytest.skip(lines[-1])
    assert code == 0, "\n".join(lines[-40:])
    assert json.loads(lines[-1])["verdict"] == "no_limit"
    assert not orphans
    assert changed() == changes


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A cache of corpora that all scripts share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def _server():
    """The fork server runs before the first script, and so is no orphan of it."""
    Running(os.getpid).wait()


@pytest.fixture
def cache(prepared, shim_cache, monkeypatch):
    (prepared / "mlxhog").mkdir(exist_ok=True)
    with suppress(FileExistsError):
        (prepared / "mlxhog" / "metal").symlink_to(shim_cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(prepared))


def started():
    """Living processes below this one and below its fork server, which forks for the scripts."""
    return [pid for pid in below(os.getpid()) if alive(pid)]


def left_after(limit_s, before):
    """Processes that are there after a time; those that leave in time go."""
    end = time.monotonic() + limit_s
    while (pids := set(started()) - before) and time.monotonic() < end:
        time.sleep(0.05)
    return pids


def changed():
    """Files of the checkout that differ from its commit, or are new."""
    words = ["git", "-C", str(ROOT), "status", "--porcelain"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout
