"""Every script of benchmarks/ runs with `--tiny`: what no one runs breaks unnoticed.

The scripts of a group run one after the other in one process, so that they share imports, texts,
kernels and equal trainings.
"""

import atexit
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import types
from contextlib import suppress
from pathlib import Path

import pytest

from tests.another_process import Running
from tests.forked import CONTEXT
from tests.processes import alive, below, left_of

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
GROUPS = {
    "training": (
        "schemes scaling speedup peers mixed_backends defaults sparsified staleness "
        "late_gradients local_sgd backoff presets_by_text fine_tuning"
    ),
    "runs": "soak predicted_speed compare_power one_writer live adapters mixed_precision",
    "processes": "chaos across_machines",
    "numbers": (
        "paper_tables course_project atomic_add advisor model_speed parity_false_failures "
        "mad_search mad_record samplers state_tracking memory moments conformance"
    ),
}
LIMIT_S = 840.0  # of a group, on a machine that others keep busy
LEAVE_S = 30.0


def run(names, folder):
    """What `python SCRIPT --tiny` does for each, but for processes, which are forked."""
    os.setsid()
    multiprocessing.get_context = lambda method=None: CONTEXT
    sys.path.insert(0, str(BENCHMARKS))
    os.chdir(ROOT)
    for name in names:
        script = BENCHMARKS / f"{name}.py"
        with (folder / f"{name}.txt").open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
        sys.argv = [str(script), "--tiny"]
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = sys.modules["__mp_main__"] = main
        main.__file__ = str(script)
        code = 1
        try:
            exec(compile(script.read_text(), str(script), "exec"), main.__dict__)
        except SystemExit as end:
            code = end.code
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
        (folder / f"{name}.code").write_text(str(code))
    atexit._run_exitfuncs()  # which a process of `multiprocessing` leaves out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", GROUPS)
def test_scripts_run_at_their_smallest(group, tmp_path, cache, record_property):
    changes, before, names = changed(), set(started()), GROUPS[group].split()
    process = Running(run, names, tmp_path)
    try:
        with suppress(subprocess.TimeoutExpired):  # the script that hangs is named below
            process.wait(LIMIT_S)
        code = process.returncode
        orphans = left_of(set(started()) - before, LEAVE_S)
    finally:
        process.kill()
        for pid in set(started()) - before:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wrong = [text for name in names if (text := fault(tmp_path, name))]
    assert not wrong, "\n\n".join(wrong)
    for name in names:  # into pytest.xml, where `.ci/run` keeps the time of every test
        record_property(name, last_line(tmp_path, name)["seconds"])
    assert code == 0
    assert not orphans
    assert changed() == changes


def fault(folder, name):
    """How a script ended, if it ended otherwise than well."""
    code = folder / f"{name}.code"
    ended = code.exists() and code.read_text() == "0"
    if ended and last_line(folder, name)["verdict"] == "no_limit":
        return ""
    return "\n".join([f"{name}:", *lines_of(folder, name)[-30:]])


def last_line(folder, name):
    """What a script measured, as it prints it at its end."""
    return json.loads(lines_of(folder, name)[-1])


def lines_of(folder, name):
    """The output of a script."""
    return (folder / f"{name}.txt").read_text().splitlines()


def test_every_script_is_in_a_group():
    every = [name for names in GROUPS.values() for name in names.split()]
    assert sorted(every) == sorted(
        path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "all"
    )


@pytest.fixture(scope="module", autouse=True)
def _server():
    """The fork server runs before the first script, and so is no orphan of it."""
    Running(os.getpid).wait()


@pytest.fixture
def cache(tmp_path_factory, emulator_cache, monkeypatch):
    """A cache of corpora that the scripts share."""
    folder = tmp_path_factory.getbasetemp() / "benchmarks-cache"
    (folder / "mlxhog").mkdir(exist_ok=True, parents=True)
    with suppress(FileExistsError):
        (folder / "mlxhog" / "metal").symlink_to(emulator_cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def started():
    """Living processes below this one and below its fork server, which forks for the scripts."""
    return [pid for pid in below(os.getpid()) if alive(pid)]


def changed():
    """Files of the checkout that differ from its commit, or are new."""
    words = ["git", "-C", str(ROOT), "status", "--porcelain"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout
