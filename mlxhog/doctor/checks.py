"""Checks of the machine, the versions and shared memory; no framework is started."""

from __future__ import annotations

import mmap
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from typing import Any, Final

import numpy as np

from mlxhog.arena import segment
from mlxhog.arena.child import START_S, Child, Failed, Lane, Late
from mlxhog.arena.process import available_bytes
from mlxhog.base import darwin, float32, verdicts
from mlxhog.base.load import Load, LoadWatch
from mlxhog.base.machine import Machine
from mlxhog.doctor.litmus import PROMISED, create_arena, shared, values_of
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
    """One check.

    Attributes:
        name: the thing that is checked.
        result: of the check.
        found: the observation.
        expected: the expected observation.
        consequence: of a difference between the two; "" if there is none.
    """

    name: str
    result: CheckResult
    found: str
    expected: str
    consequence: str = ""


def check(
    name: str,
    ok: bool,
    observed: object,
    expected: str,
    consequence: str,
    *,
    otherwise: CheckResult = CheckResult.FAIL,
    load: Load | None = None,
) -> Check:
    """Return PASS, or `otherwise` with its consequence.

    Args:
        name: the thing that is checked.
        ok: whether it is as expected.
        observed: the observation, or the failure of the child that should have made it.
        expected: the expected observation.
        consequence: of a difference between the two.
        otherwise: result of a difference.
        load: of the machine; if it is busy, a child without time for the check proves nothing.
    """
    if isinstance(observed, Late) and load is not None and load.busy:
        return Check(name, CheckResult.UNCLEAR, f"{load}: {observed}", expected, AGAIN)
    if ok and not isinstance(observed, Failed):
        return Check(name, CheckResult.PASS, str(observed), expected)
    return Check(name, otherwise, str(observed), expected, consequence)


def absent(name: str, why: str, expected: str) -> Check:
    """Return the check of a thing that this machine does not have."""
    return Check(name, CheckResult.ABSENT, why, expected)


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
SUMS: Final = "torch's long sums"
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
    old_gpu = re.match(r"Apple M[12]\b", machine.chip) is not None
    spin, tf32 = os.environ.get("MLX_METAL_FAST_SYNCH"), float32.user_note()
    # (name, whether it applies, ok, observed, expected, consequence)
    rows: list[tuple[str, bool, bool, str, str, str]] = [
        ("Rosetta", machine.system == "macos", not machine.translated,
         "translated" if machine.translated else "native", "not translated",
         "this Python is for Intel: no GPU and no MLX; install one for Apple silicon"),
        ("macOS", machine.system == "macos", _numbers(macos) >= (OLDEST_MACOS,), macos,
         f"{OLDEST_MACOS} or newer", "MLX has no Metal kernels for it: update the system"),
        ("page size", True, page == APPLE_PAGE if machine.apple_gpu else APPLE_PAGE % page == 0,
         f"{page} bytes", f"{APPLE_PAGE} bytes on Apple silicon, a divisor of it elsewhere",
         "arena segments are not aligned to pages here, so that no framework can import them"),
        *(
            (package, True, _numbers(versions[package]) >= oldest, versions[package],
             ".".join(map(str, oldest)) + " or newer",
             f"mlxhog relies on newer behaviour: python -m pip install -U {package}")
            for package, oldest in OLDEST.items()
        ),
        (SUMS, machine.apple_gpu and versions["torch"] != verdicts.NONE,
         not old_gpu or _numbers(versions["torch"]) >= (2, 14),
         f"torch {versions['torch']} on an {machine.chip}",
         "torch 2.14 or newer on an M1 or M2",
         f"on this GPU it adds more than {LONGEST_SUM:,} terms wrong; mlxhog splits such sums, "
         "your own code may not: python -m pip install -U torch"),
        ("MLX_METAL_FAST_SYNCH", True, not spin, spin or "unset", "unset",
         "its GPU spins can lock the machine until it is restarted (mlx issue 3830): unset it"),
        (float32.VARIABLE, True, not tf32, os.environ.get(float32.VARIABLE, "unset"),
         "unset or 0", tf32),
    ]  # fmt: skip
    for name, applies, ok, observed, expected, consequence in rows:
        if observed == verdicts.NONE:
            yield absent(name, observed, expected)
        elif applies:
            mild = name in (SUMS, float32.VARIABLE)
            otherwise = CheckResult.WARN if mild else CheckResult.FAIL
            yield check(name, ok, observed, expected, consequence, otherwise=otherwise)


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
    private, large = mode == 0o600 and not named, nbytes == LARGE_BYTES
    return check(
        name,
        private and large,
        f"{nbytes / 2**30:.2f} GiB, mode {mode:04o}, {'named' if named else 'without a name'}",
        expected,
        "large models may not fit" if private else "others may see or keep the parameters",
        otherwise=CheckResult.WARN if private else CheckResult.FAIL,
    )


def _after_a_kill() -> Check:
    name, expected = "a killed worker", "its writes stay, its slot is free again"
    arena, watch, last = create_arena(1), LoadWatch(), 0.0
    observed: object
    try:
        for value in (1.0, 2.0):  # the second child gets the slot of the first
            with Child(arena, 1) as child:
                child.call(START_S, write, value)
        last = float(values_of(arena, "dense").max())
        observed = f"the last value is {last:g} of 2"
    except Failed as failure:
        observed = failure
    finally:
        arena.close()
    lost = "workers cannot be replaced"
    return check(name, last == 2.0, observed, expected, lost, load=watch.look())


def write(lane: Lane, value: float) -> None:
    """In a child that will be killed: set the parameters."""
    shared(lane.arena, "dense")[:] = np.float32(value)
