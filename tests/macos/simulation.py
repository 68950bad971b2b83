"""Linux made to behave like macOS, for child processes: `simulated` runs Python in it.

`libsystem.cpp` is preloaded and changes what the C library answers: shared memory with short names
and one size for ever, no /proc, Apple's system calls beside the others. `site/sitecustomize.py`
changes what Python says of itself and where MLX's arrays lie; FAKE_METAL=1 adds Apple silicon with
a GPU that the CPU stands in for, in MLX and in PyTorch. What it cannot show: real scheduling,
memory pressure, Metal.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from mlxhog.backends.gpu_share import WATCHDOG
from tests import kept

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

linux_only = pytest.mark.skipif(
    sys.platform != "linux" or kept.COMPILER is None,
    reason="a simulation of macOS on Linux, which needs a C++ compiler",
)


@cache
def build(name, *words, link=()):
    """Compile a shared library for these tests, of sources and with options."""
    sources = [word for word in words if isinstance(word, Path)]
    options = [word for word in words if isinstance(word, str)]
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-fPIC", "-pthread"]
    flags += [f"-I{HERE}", f"-I{ROOT / 'metal/native/updates'}", *options]
    headers = sorted((HERE / "include").rglob("*.h"))
    return kept.linked(
        f"{name}.so", sources, *flags, link=["-shared", *link, "-ldl"], headers=headers
    )


def libsystem():
    """The preloaded library."""
    return build("libsystem", HERE / "libsystem.cpp")


def environment(**facts):
    """The environment that puts a process and its children on "macOS".

    A test of this process that made a GPU backend may have set `WATCHDOG`, as a user's does not.

    Args:
        facts: FAKE_* settings of `libsystem.cpp`, and FAKE_METAL.
    """
    return {
        **{name: value for name, value in os.environ.items() if name != WATCHDOG},
        "LD_PRELOAD": str(libsystem()),
        "PYTHONPATH": os.pathsep.join([str(HERE / "site"), str(ROOT)]),
        "FAKE_CORES": "4",
        "FAKE_LEVELS": "Performance:2,Efficiency:2",
        **{name: str(value) for name, value in facts.items()},
    }


def with_caffeinate(folder):
    """Make a `caffeinate` that keeps nothing awake; returns the log of its words, and a PATH."""
    program, log = folder / "caffeinate", folder / "caffeinate.log"
    program.write_text(f'#!/bin/sh\necho "$@" > {log}.part\nmv {log}.part {log}\nexec sleep 600\n')
    program.chmod(0o755)
    return log, f"{folder}{os.pathsep}{os.environ['PATH']}"


def simulated(code, *arguments, timeout_s=240, **facts):
    """Run Python code in the simulation; returns what it prints, and fails with what it said."""
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(**facts),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert process.returncode == 0, (process.stdout + process.stderr)[-4000:]
    return process.stdout
