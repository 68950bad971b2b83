"""Looking at other processes from a test, on Linux and macOS alike: with `ps`."""

from __future__ import annotations

import os
import subprocess


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody reaped does not."""
    return _ps("-o", "stat=", "-p", str(pid)).strip()[:1] not in ("", "Z")


def workers_of(pid: int) -> list[int]:
    """Worker processes of a supervisor (its resource tracker is not one)."""
    found = []
    for line in _ps("-A", "-o", "pid=,ppid=,command=").splitlines():
        child, parent, command = line.split(None, 2) if line.count(" ") > 1 else ("0", "0", "")
        if int(parent) == pid and "spawn_main" in command:
            found.append(int(child))
    return found


def below(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    parents = [tuple(map(int, line.split())) for line in _ps("-A", "-o", "pid=,ppid=").splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, own in parents if own == parent]
    return found[1:]


def _ps(*arguments: str) -> str:
    """What `ps` prints, unshortened, from the real system even where a test simulates another."""
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        ["ps", "-ww", *arguments], env=clean, capture_output=True, text=True, check=False
    )
    return done.stdout
