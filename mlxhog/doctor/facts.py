"""The machine and the versions in use, and what is known to be wrong with either.

Nothing here starts a framework. Rules: spec apple.md 12, numbers 1 and 2.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from mlxhog.doctor.checks import Check, Result, absent, check
from mlxhog.machine import darwin, verdicts
from mlxhog.machine.machine import Machine

OLDEST: Final = {"mlx": (0, 32, 4), "torch": (2, 12)}
OLDEST_MACOS: Final = 14
APPLE_PAGE: Final = 16_384
_INSTALL_S: Final = 60.0  # an installer may write the module before the sources
COMPILERS: Final = ("c++", "g++", "clang++")


def collect(machine: Machine) -> dict[str, Any]:
    """Describe the machine and the versions, as plain values."""
    identity = verdicts.identity()
    return {
        "system": identity.system,
        "architecture": machine.architecture,
        "chip": identity.chip,
        "cores": machine.cores,
        "efficiency_cores": _efficiency_cores(machine),
        "memory_bytes": machine.memory_bytes,
        "page_bytes": mmap.PAGESIZE,
        "apple_gpu": machine.apple_gpu,
        "python": platform.python_version(),
        "versions": {
            **{name: getattr(identity, name) for name in ("mlxhog", "mlx", "torch")},
            "numpy": metadata.version("numpy"),
        },
        "compiler": next((found for name in COMPILERS if (found := shutil.which(name))), None),
    }


def examine(
    machine: Machine, facts: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> Iterator[Check]:
    """Check what is known about systems and versions."""
    yield _translated(machine)
    yield _system(machine)
    yield _page(machine, facts["page_bytes"])
    for package in OLDEST:
        yield _version(package, facts["versions"][package])
    yield _donation()
    yield check(
        "MLX_METAL_FAST_SYNCH",
        not environ.get("MLX_METAL_FAST_SYNCH"),
        environ.get("MLX_METAL_FAST_SYNCH") or "unset",
        "unset",
        "its GPU spins can lock the machine until it is restarted (mlx issue 3830): unset it",
    )
    yield _native()


def _translated(machine: Machine) -> Check:
    name, expected = "Rosetta", "not translated"
    if machine.system != "macos":
        return absent(name, "not macOS", expected)
    return check(
        name,
        not machine.translated,
        "translated" if machine.translated else "native",
        expected,
        "this Python is for Intel: no GPU and no MLX; install one for Apple silicon",
    )


def _system(machine: Machine) -> Check:
    name, expected = "macOS", f"{OLDEST_MACOS} or newer"
    if machine.system != "macos":
        return absent(name, machine.name, expected)
    version = platform.mac_ver()[0]
    return check(
        name,
        _numbers(version) >= (OLDEST_MACOS,),
        version,
        expected,
        "MLX has no Metal kernels for it: update the system",
    )


def _page(machine: Machine, page_bytes: int) -> Check:
    name, expected = "page size", f"{APPLE_PAGE} bytes on Apple silicon, a divisor of it elsewhere"
    fits = page_bytes == APPLE_PAGE if machine.apple_gpu else APPLE_PAGE % page_bytes == 0
    return check(
        name,
        fits,
        f"{page_bytes} bytes",
        expected,
        "arena segments start on no page boundary here, so that nothing can import them",
    )


def _version(package: str, found: str) -> Check:
    oldest = OLDEST[package]
    expected = ".".join(map(str, oldest)) + " or newer"
    if found == verdicts.NONE:
        return absent(package, found, expected)
    return check(
        package,
        _numbers(found) >= oldest,
        found,
        expected,
        f"mlxhog relies on behaviour that is newer: python -m pip install -U {package}",
    )


def _donation() -> Check:
    """Whether MLX knows that imported memory is not its own, and so never writes results there."""
    name, expected = "MLX spares imported memory", "is_owned in mlx/array.h"
    spec = importlib.util.find_spec("mlx")
    if spec is None:
        return absent(name, verdicts.NONE, expected)
    headers = [
        folder / "include" / "mlx" / "array.h"
        for folder in map(Path, spec.submodule_search_locations or ())
    ]
    header = next((path for path in headers if path.exists()), None)
    if header is None:
        return Check(name, Result.WARN, "the package has no array.h", expected, "cannot be told")
    knows = "is_owned" in header.read_text(encoding="utf-8", errors="replace")
    return check(
        name,
        knows,
        "is_owned is there" if knows else f"no is_owned in {header}",
        expected,
        "operations may write results into the arena: use another version of MLX",
    )


def _native() -> Check:
    """Whether the native module is newer than the sources beside it, where there are any."""
    name, expected = "native module", "built after the last change of its sources"
    spec = importlib.util.find_spec("mlxhog._native")
    if spec is None or spec.origin is None:
        return Check(name, Result.FAIL, "not found", expected, "install mlxhog again")
    root = Path(str(files("mlxhog.metal")))
    sources = [
        path
        for folder in ("arena", "ops", "updates")
        for suffix in ("*.cpp", "*.h")
        for path in (root / "native" / folder).glob(suffix)
    ]
    newest = max((path.stat().st_mtime for path in sources), default=0.0)
    return check(
        name,
        Path(spec.origin).stat().st_mtime + _INSTALL_S >= newest,
        Path(spec.origin).name,
        expected,
        "this runs older C++ than you see: python -m pip install --no-build-isolation -e .",
        otherwise=Result.WARN,
    )


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.13.0+cpu" gives (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part)  # type: ignore[index]


def _efficiency_cores(machine: Machine) -> int | None:
    return darwin.sysctl_int("hw.perflevel1.physicalcpu") if machine.system == "macos" else None
