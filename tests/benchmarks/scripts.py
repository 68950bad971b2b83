"""Every script of benchmarks/ runs with `--tiny`: what no one runs breaks unnoticed.

The scripts of a group run one after the other in one process, so that they share imports, texts,
kernels and equal trainings. Each group has a file of tests of its own, since `.ci/run` keeps a file
in one of its processes: in one file they would take longer than all other tests.
"""

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

from tests.another_process import Program, Running
from tests.forked import CONTEXT
from tests.processes import alive, below, left_of

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
GROUPS = {
    "training": (
        "schemes scaling speedup peers mixed_backends defaults sparsified staleness "
        "late_gradients local_sgd backoff presets_by_text fine_tuning"
    ),
    "runs": "soak predicted_speed compare_power one_writer mixed_precision adapters",
    "serving": "live",
    "processes": "chaos across_machines",
    "gradients": (
        "memory moments conformance model_speed parity_false_failures state_tracking atomic_add"
    ),
    "searches": "paper_tables course_project advisor mad_search mad_record samplers",
}
LIMIT_S = 840.0  # of a group: three times what it takes where others keep the machine busy
LEAVE_S = 30.0
TIMEOUT_S = LIMIT_S + 2 * LEAVE_S  # of its test


def run(names, folder):
    """What `python SCRIPT --tiny` does for each, but processes and commands of ours are forked."""
    os.setsid()
    multiprocessing.get_context = lambda method=None: CONTEXT
    sys.path.insert(0, str(BENCHMARKS))
    os.chdir(ROOT)
    from harness import interleaved

    interleaved.mlxhog = lambda folder, *words: Program(*words, cwd=folder, before=quiet)
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
        code, began_s, began_cpu_s = 1, time.monotonic(), cpu_s()
        try:
            exec(compile(script.read_text(), str(script), "exec"), main.__dict__)
        except SystemExit as end:
            code = end.code
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
        took = {"seconds": time.monotonic() - began_s, "cpu_s": cpu_s() - began_cpu_s}
        (folder / f"{name}.json").write_text(json.dumps({"code": code, **took}))
    atexit._run_exitfuncs()  # which a process of `multiprocessing` leaves out


def quiet():
    """Drop what this process writes to stderr, which no script reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def cpu_s():
    """Seconds of this process and of programs that it ran, but for what the fork server forked."""
    return sum(os.times()[:4])


def check(names, folder, record_property):
    """Run scripts, in a process of their own that leaves no other and no file in the checkout."""
    Running(os.getpid).wait()  # the fork server runs before the first script, and is no orphan
    changes, before = changed(), set(started())
    process = Running(run, names, folder)
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
    wrong = [text for name in names if (text := fault(folder, name))]
    assert not wrong, "\n\n".join(wrong)
    for name in names:  # into pytest.xml, where `.ci/run` keeps the time of every test
        record_property(name, ending(folder, name))
    assert code == 0
    assert not orphans
    assert changed() == changes


def fault(folder, name):
    """How a script ended, if it ended otherwise than well."""
    ended = (folder / f"{name}.json").exists() and ending(folder, name)["code"] == 0
    if ended and json.loads(lines_of(folder, name)[-1])["verdict"] == "no_limit":
        return ""
    return "\n".join([f"{name}:", *lines_of(folder, name)[-30:]])


def ending(folder, name):
    """The exit code of a script, and what it took."""
    return json.loads((folder / f"{name}.json").read_text())


def lines_of(folder, name):
    """The output of a script."""
    return (folder / f"{name}.txt").read_text().splitlines()


def started():
    """Living processes below this one and below its fork server, which forks for the scripts."""
    return [pid for pid in below(os.getpid()) if alive(pid)]


def changed():
    """Files of the checkout that differ from its commit, or are new."""
    words = ["git", "-C", str(ROOT), "status", "--porcelain"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout
