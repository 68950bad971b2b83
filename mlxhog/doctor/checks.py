"""Checks of the machine, the versions and shared memory; no framework is started."""

import mmap
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from typing import Any, Final

from mlxhog.arena import segment
from mlxhog.arena.child import Failed
from mlxhog.base import capabilities, darwin, float32
from mlxhog.base.load import LoadWatch
from mlxhog.base.machine import Machine
from mlxhog.base.resources import available_shared_memory
from mlxhog.doctor.litmus import LOSSLESS, inconclusive
from mlxhog.doctor.system import output_of
from mlxhog.errors import EnvironmentLacks
from mlxhog.metal.emulator import build
from mlxhog.models.ops.operators import MAX_SUM_TERMS


class CheckResult(StrEnum):
    """Outcome of a check."""

    PASS = "PASS"
    WARN = "WARN"  # something works less well than expected, or mlxhog avoids it
    FAIL = "FAIL"  # a guarantee of mlxhog is violated; `mlxhog doctor` ends with exit code 1
    INCONCLUSIVE = "inconclusive"  # no result, because other programs keep this machine busy
    ABSENT = "absent"  # this machine does not have the thing to check


AGAIN: Final = "run mlxhog doctor again when other programs are quiet"


@dataclass(frozen=True)
class Check:
    """A check: what was found, what was expected, and the consequence of a difference."""

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
    """Return a check that passes if `ok`, else `otherwise` with its consequence."""
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
    """Check what `measure` returns from child processes: whether it is as expected, and a text.

    A child that times out on a busy machine is inconclusive.
    """
    watch = LoadWatch()
    try:
        return check(name, *measure(), expected, consequence, otherwise)
    except Failed as failure:
        if reason := inconclusive(failure, watch):
            return Check(name, CheckResult.INCONCLUSIVE, f"{reason}: {failure}", expected, AGAIN)
        return Check(name, otherwise, str(failure), expected, consequence)


def broken(row: Mapping[str, Any]) -> bool:
    """Whether a row of the litmus tests violates a guarantee of mlxhog.

    Writers on a CPU must not fail, lose or tear; racy ones may lose. Live reads of a CPU must be
    whole and in order. A GPU has no guarantee: the record says what it may do.
    """
    failed = "error" in row and "inconclusive" not in row
    if "reader" in row:
        is_wrong = bool(row["torn"] or row["backwards"] or failed)
        return is_wrong and row["reader"].endswith(":cpu")
    if any(name.startswith("metal:") for name in row["writers"]):
        return False
    return bool(row["torn"] or failed or (row["lost"] and row["mode"] in LOSSLESS))


WHEELS: Final = ("mlx", "mlx-metal", "mlx-cpu", "torch", "mlxhog")
SPIN: Final = "MLX_METAL_FAST_SYNCH"
APPLE_PAGE: Final = 16_384
TESTED: Final = {"mlx": {"": "0.32.4"}, "torch": {"": "2.13.0", "macos": "2.14.1"}}
"""Package -> system -> version that everything was tested with, as in constraints.txt."""
COMPILERS: Final = ("c++", "g++", "clang++")


def collect_facts(machine: Machine) -> dict[str, Any]:
    """Describe the machine and the versions as JSON values."""
    identity = capabilities.identity()
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
        "wheels": {name: tags for name in WHEELS if (tags := wheel_tags(name))},
        "compiler": compiler(),
    }


def wheel_tags(package: str) -> list[str]:
    """Return the tags of the installed wheel: the system and Python that it is made for."""
    try:
        text = metadata.distribution(package).read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        return []
    return re.findall(r"^Tag: *(\S+)", text, re.MULTILINE)


def compiler() -> str | None:
    """Return the path and version line of a C++ compiler; None if none runs.

    A Mac without developer tools has programs of these names, which open a window to install them.
    """
    try:
        if sys.platform == "darwin":
            output_of("xcode-select", "-p")  # which only says that there are none
    except EnvironmentLacks:
        return None
    for name in COMPILERS:
        with suppress(EnvironmentLacks):
            first, _, _ = build.version(name).partition("\n")
            return f"{shutil.which(name)}: {first}"
    return None


def check_facts(machine: Machine, facts: Mapping[str, Any]) -> Iterator[Check]:
    """Check the machine, its environment and its versions for known problems."""
    page, torch, spin = facts["page_bytes"], facts["versions"]["torch"], os.environ.get(SPIN)
    yield check(
        "page size",
        page == APPLE_PAGE if machine.apple_gpu else APPLE_PAGE % page == 0,
        f"{page} bytes",
        f"{APPLE_PAGE} bytes on Apple silicon, a divisor of it elsewhere",
        "arena segments are not aligned to pages here, so that no framework can import them",
    )
    if machine.system == "macos":
        yield check(
            "Rosetta",
            not machine.translated,
            "translated" if machine.translated else "native",
            "not translated",
            "this Python is for Intel: no GPU and no MLX; install one for Apple silicon",
        )
    yield check(
        SPIN,
        not spin,
        spin or "unset",
        "unset",
        "its GPU spins can lock the machine until it is restarted (mlx issue 3830): unset it",
    )
    for name, versions in TESTED.items():
        tested, here = versions.get(machine.system, versions[""]), facts["versions"][name]
        if here != capabilities.NONE:
            yield check(
                f"version of {name}",
                here.partition("+")[0] == tested,
                here,
                f"{tested}, which mlxhog was tested with",
                "it may work as well; the tested one: python -m pip install -c constraints.txt .",
                CheckResult.WARN,
            )
    if machine.apple_gpu and torch != capabilities.NONE:
        version = tuple(map(int, re.findall(r"\d+", torch)[:2]))
        yield check(
            "torch's long sums",
            re.match(r"Apple M[12]\b", machine.chip) is None or version >= (2, 14),
            f"torch {torch} on an {machine.chip}",
            "torch 2.14 or newer on an M1 or M2",
            f"on this GPU sums of more than {MAX_SUM_TERMS:,} terms are wrong; mlxhog splits such "
            "sums, your own code may not: python -m pip install -U torch",
            CheckResult.WARN,
        )
    tf32, observed = float32.user_note(), os.environ.get(float32.VARIABLE, "unset")
    yield check(float32.VARIABLE, not tf32, observed, "unset or 0", tf32, CheckResult.WARN)


LARGE_BYTES: Final = 1 << 30


def check_shared_memory() -> Check:
    """Check that a large segment of shared memory can be created."""
    name, expected, available = "shared memory", "1 GiB", available_shared_memory()
    nbytes = min(LARGE_BYTES, available.n_bytes // 4) or LARGE_BYTES
    try:
        backing = segment.create(nbytes)
    except (EnvironmentLacks, OSError) as error:
        consequence = f"no run can start: {available.way_out}"
        return Check(name, CheckResult.FAIL, str(error), expected, consequence)
    backing.mapping.close()
    os.close(backing.fd)
    os.close(backing.readonly_fd)
    observed = f"{nbytes / 2**30:.2f} GiB"
    small = f"large models may not fit, since {available.cause}; {available.way_out}"
    return check(name, nbytes == LARGE_BYTES, observed, expected, small, CheckResult.WARN)
