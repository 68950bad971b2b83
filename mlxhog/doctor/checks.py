"""Checks of the machine, the versions and shared memory; no framework is started."""

from __future__ import annotations

import mmap
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from typing import Any, Final

import numpy as np

from mlxhog.arena import segment
from mlxhog.arena.child import START_S, Child, Lane
from mlxhog.arena.process import available_bytes
from mlxhog.base import darwin, float32, verdicts
from mlxhog.base.machine import Machine
from mlxhog.doctor.litmus import PROMISED, Failure, create_arena, shared, tried, values_of
from mlxhog.errors import EnvironmentLacks
from mlxhog.models.ops.operators import LONGEST_SUM


class CheckResult(StrEnum):
    """Result of a check."""

    PASS = "PASS"
    WARN = "WARN"
    """Something works less well than expected, or mlxhog avoids it."""
    FAIL = "FAIL"
    """A promise does not hold here; `mlxhog doctor` ends with exit code 1."""
    UNCLEAR = "unclear"
    """No result, because other programs keep this machine busy."""
    ABSENT = "absent"
    """This machine does not have the thing to check."""


AGAIN: Final = "run mlxhog doctor again when other programs are quiet"


@dataclass(frozen=True)
class Check:
    """One check: the thing that is checked, the observation, and what follows from a difference."""

    name: str
    result: CheckResult
    found: str
    expected: str
    consequence: str = ""


def check(
    name: str,
    ok: bool,
    observed: str,
    expected: str,
    consequence: str,
    otherwise: CheckResult = CheckResult.FAIL,
) -> Check:
    """Return PASS, or `otherwise` with its consequence."""
    if ok:
        return Check(name, CheckResult.PASS, observed, expected)
    return Check(name, otherwise, observed, expected, consequence)


def check_child(
    name: str,
    measure: Callable[[], tuple[bool, str]],
    expected: str,
    consequence: str,
    otherwise: CheckResult = CheckResult.FAIL,
) -> Check:
    """Check what `measure` observes by child processes: whether it is as expected, and the words.

    A child without time on a busy machine proves nothing.
    """
    outcome = tried(measure)
    if not isinstance(outcome, Failure):
        return check(name, *outcome, expected, consequence, otherwise)
    if outcome.untold:
        text = f"{outcome.untold}: {outcome.error}"
        return Check(name, CheckResult.UNCLEAR, text, expected, AGAIN)
    return Check(name, otherwise, outcome.error, expected, consequence)


def broken(row: Mapping[str, Any]) -> bool:
    """Whether a row of the litmus tests breaks a promise of mlxhog.

    Writers on a CPU must not fail, lose or tear; racy ones may lose. Live reads of a CPU must be
    whole and in order. What a GPU does is a fact, not an error.
    """
    failed = "error" in row and "untold" not in row
    if "reader" in row:
        is_wrong = bool(row["torn"] or row["backwards"] or failed)
        return is_wrong and row["reader"].endswith(":cpu")
    if any(name.startswith("metal:") for name in row["writers"]):
        return False
    return bool(row["torn"] or failed or (row["lost"] and row["mode"] in PROMISED))


# -- the machine and the versions ------------------------------------------------------------------

OLDEST: Final = {"mlx": (0, 32, 4), "torch": (2, 12)}
OLDEST_MACOS: Final = 14
APPLE_PAGE: Final = 16_384
COMPILERS: Final = ("c++", "g++", "clang++")


def collect_facts(machine: Machine) -> dict[str, Any]:
    """Describe the machine and the versions, as plain values."""
    identity = verdicts.identity()
    return {
        "system": identity.system,
        "architecture": machine.architecture,
        "chip": identity.chip,
        "cores": machine.cores,
        "efficiency_cores": darwin.cores(efficiency=True) if machine.system == "macos" else None,
        "memory_bytes": machine.memory_bytes,
        "page_bytes": mmap.PAGESIZE,
        "apple_gpu": machine.apple_gpu,
        "python": platform.python_version(),
        "versions": {
            **{name: getattr(identity, name) for name in ("mlxhog", "mlx", "torch")},
            "numpy": metadata.version("numpy"),
        },
        "compiler": next((path for name in COMPILERS if (path := shutil.which(name))), None),
    }


def check_facts(machine: Machine, facts: Mapping[str, Any]) -> Iterator[Check]:
    """Check the system and the versions."""
    page, versions, macos = facts["page_bytes"], facts["versions"], platform.mac_ver()[0]
    is_mac, torch = machine.system == "macos", versions["torch"]
    old_gpu = re.match(r"Apple M[12]\b", machine.chip) is not None
    spin, tf32 = os.environ.get("MLX_METAL_FAST_SYNCH"), float32.user_note()
    # (name, ok, observed, expected, consequence)
    rows: list[tuple[str, bool, str, str, str]] = [
        ("page size", page == APPLE_PAGE if machine.apple_gpu else APPLE_PAGE % page == 0,
         f"{page} bytes", f"{APPLE_PAGE} bytes on Apple silicon, a divisor of it elsewhere",
         "arena segments are not aligned to pages here, so that no framework can import them"),
        ("MLX_METAL_FAST_SYNCH", not spin, spin or "unset", "unset",
         "its GPU spins can lock the machine until it is restarted (mlx issue 3830): unset it"),
    ]  # fmt: skip
    if is_mac:
        rows += [
            ("Rosetta", not machine.translated, "translated" if machine.translated else "native",
             "not translated",
             "this Python is for Intel: no GPU and no MLX; install one for Apple silicon"),
            ("macOS", _numbers(macos) >= (OLDEST_MACOS,), macos, f"{OLDEST_MACOS} or newer",
             "MLX has no Metal kernels for it: update the system"),
        ]  # fmt: skip
    for package, oldest in OLDEST.items():
        version, expected = versions[package], ".".join(map(str, oldest)) + " or newer"
        if version == verdicts.NONE:
            yield Check(package, CheckResult.ABSENT, version, expected)
        else:
            old = f"mlxhog relies on newer behaviour: python -m pip install -U {package}"
            rows.append((package, _numbers(version) >= oldest, version, expected, old))
    yield from (check(*row) for row in rows)
    if machine.apple_gpu and torch != verdicts.NONE:
        yield check(
            "torch's long sums",
            not old_gpu or _numbers(torch) >= (2, 14),
            f"torch {torch} on an {machine.chip}",
            "torch 2.14 or newer on an M1 or M2",
            f"on this GPU it adds more than {LONGEST_SUM:,} terms wrong; mlxhog splits such sums, "
            "your own code may not: python -m pip install -U torch",
            CheckResult.WARN,
        )
    observed = os.environ.get(float32.VARIABLE, "unset")
    yield check(float32.VARIABLE, not tf32, observed, "unset or 0", tf32, CheckResult.WARN)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "2.13.0+cpu" gives (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part)  # type: ignore[index]


# -- shared memory ---------------------------------------------------------------------------------

LARGE_BYTES: Final = 1 << 30


def check_shared_memory() -> list[Check]:
    """Create a large segment, then one whose writing child is killed."""
    return [_large(), _after_a_kill()]


def _large() -> Check:
    name, expected = "shared memory", "1 GiB without a name, mode 0600"
    had = available_bytes()
    nbytes = min(LARGE_BYTES, had // 4) if had else LARGE_BYTES
    try:
        backing = segment.create(nbytes)
    except (EnvironmentLacks, OSError) as error:
        consequence = "no run can start: give this machine or container more shared memory"
        return Check(name, CheckResult.FAIL, str(error), expected, consequence)
    try:
        status = os.fstat(backing.fd)
    finally:
        backing.mapping.close()
        os.close(backing.fd)
        os.close(backing.readonly_fd)
    mode = status.st_mode & 0o777
    named = sys.platform == "linux" and status.st_nlink > 0  # macOS does not count links of these
    how = "named" if named else "without a name"
    observed = f"{nbytes / 2**30:.2f} GiB, mode {mode:04o}, {how}"
    if mode != 0o600 or named:
        return check(name, False, observed, expected, "others may see or keep the parameters")
    small = "large models may not fit"
    return check(name, nbytes == LARGE_BYTES, observed, expected, small, CheckResult.WARN)


def _after_a_kill() -> Check:
    def measure() -> tuple[bool, str]:
        with create_arena(1) as arena:
            for value in (1.0, 2.0):  # the second child gets the slot of the first
                with Child(arena, 1) as child:
                    child.call(START_S, write, value)
            last = float(values_of(arena, "dense").max())
        return last == 2.0, f"the last value is {last:g} of 2"

    expected = "its writes stay, its slot is free again"
    return check_child("a killed worker", measure, expected, "workers cannot be replaced")


def write(lane: Lane, value: float) -> None:
    """In a child that will be killed: set the parameters."""
    shared(lane.arena, "dense")[:] = np.float32(value)
