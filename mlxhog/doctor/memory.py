"""Shared memory as workers use it: without a name, private to the user, surviving any kill.

Source of the rules: spec apple.md 12, number 3.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from mlxhog.arena import segment
from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.arena.process import available_bytes
from mlxhog.doctor import bench
from mlxhog.doctor.checks import Check, Result, check
from mlxhog.errors import EnvironmentLacks

BYTES: Final = 1 << 30


def examine() -> list[Check]:
    """Create a large segment, then one that a child writes and is killed over."""
    return [_large(), _after_a_kill()]


def _large() -> Check:
    name, expected = "shared memory", "1 GiB without a name, mode 0600"
    had = available_bytes()
    nbytes = min(BYTES, had // 4) if had else BYTES
    try:
        backing = segment.create(nbytes)
    except (EnvironmentLacks, OSError) as error:
        consequence = "no run can start: give this machine or container more shared memory"
        return Check(name, Result.FAIL, str(error), expected, consequence)
    try:
        status = os.fstat(backing.fd)
    finally:
        backing.mapping.close()
        os.close(backing.fd)
        os.close(backing.readonly_fd)
    mode = status.st_mode & 0o777
    named = sys.platform == "linux" and status.st_nlink > 0  # macOS does not count links of these
    found = f"{nbytes / 2**30:.2f} GiB, mode {mode:04o}, {'named' if named else 'without a name'}"
    if mode != 0o600 or named:
        return Check(name, Result.FAIL, found, expected, "others may see or keep the parameters")
    return check(
        name, nbytes == BYTES, found, expected, "large models may not fit", otherwise=Result.WARN
    )


def _after_a_kill() -> Check:
    name, expected = "a killed worker", "its writes stay, its slot is free again"
    arena = bench.create(1)
    try:
        for value in (1.0, 2.0):  # the second child takes the slot of the first
            with Child(arena, (1,)) as child:
                child.call(START_S, write, value)
        found = float(bench.Bench(arena).values("dense").max())
    except Failed as failure:
        return Check(name, Result.FAIL, str(failure), expected, "workers cannot be replaced")
    finally:
        arena.close()
    return check(name, found == 2.0, f"the last value is {found:g} of 2", expected, "data is lost")


def write(lane: Lane, value: float) -> None:
    """In a child that is going to be killed: set the parameters."""
    bench.Bench(lane.arena).fill("dense", value)
