"""Other processes, on Linux and macOS alike: Python, looks with `ps`, limits of memory."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

HAS_PROC = Path("/proc/self/stat").exists()  # not on macOS, nor where a test simulates it


def alive(pid):
    """Whether a process runs; a zombie that nobody reaped does not."""
    if not HAS_PROC:
        return _ps("-o", "stat=", "-p", str(pid)).strip()[:1] not in ("", "Z")
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def workers_of(pid):
    """Worker processes of a supervisor, or of its fork server (its resource tracker is none)."""
    lines = [line.split(None, 2) for line in _ps("-A", "-o", "pid=,ppid=,command=").splitlines()]
    known = [(int(line[0]), int(line[1]), line[2]) for line in lines if len(line) == 3]
    servers = [own for own, parent, command in known if parent == pid and "forkserver" in command]
    return [
        own
        for own, parent, command in known
        if parent in servers or parent == pid and "spawn_main" in command
    ]


def below(pid):
    """Children of a process, and theirs."""
    parents = [tuple(map(int, line.split())) for line in _ps("-A", "-o", "pid=,ppid=").splitlines()]
    results = [pid]
    for parent in results:
        results += [child for child, own in parents if own == parent]
    return results[1:]


def left_of(pids, limit_s):
    """Which of some processes still run after a time; it ends early if all have ended."""
    pids, end_s = list(pids), time.monotonic() + limit_s
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < end_s:
        time.sleep(0.05)
    return left


def limit_memory(n_bytes, *, more=False):
    """Limit the memory of this process to n bytes, or to n more than it has now.

    macOS refuses such a limit, so this does nothing there.
    """
    if sys.platform == "darwin":
        return
    if more:
        n_bytes += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def python(*words, cwd=None, limit_s=600.0, **environment):
    """Run Python until it ends, with more variables of the environment; its output is text."""
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**os.environ, **environment}, timeout=limit_s,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def _ps(*arguments):
    """What `ps` prints, unshortened, from the real system even where a test simulates another."""
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    process = subprocess.run(
        ["ps", "-ww", *arguments], env=clean, capture_output=True, text=True, check=False
    )
    return process.stdout
