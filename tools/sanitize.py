"""Runs kernels under a compiler's sanitizers, in a program of its own without Python.

    python -m tools.sanitize [KERNEL...]      every kernel's sample launch by default

`thread` finds data races between threadgroups and between launches that run at once. `address`
finds reads and writes outside a buffer or a threadgroup variable, and arithmetic that C++ and
Metal leave undefined.

A launch travels in a file, little-endian:

    grid, threadgroup               3 x uint32 each
    os_threads                uint32
    uses_barriers                  uint32
    fuzz_period              uint32
    launches                  uint32   that run at once, on the same inputs
    seed                      uint64
    buffers                   uint64
    then for each buffer      uint64 bytes, uint64 1 if each launch has its own, and the bytes
"""

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlxhog.errors import EnvironmentLacks, MetalError
from mlxhog.metal.emulator import build, translate
from mlxhog.metal.emulator.engine import FUZZ_PERIOD, buffers
from mlxhog.metal.kernel import Launch
from mlxhog.metal.registry import KERNELS, instances
from tools.samples import sample

_MAIN = Path(__file__).parent / "sanitizer" / "main.cpp"
_FOUND = 66
_TIMEOUT_S = 300.0
_MEMORY_LAYOUT = "unexpected memory mapping"
"""What a thread sanitizer says on systems with more address randomization than it knows of."""


@dataclass(frozen=True)
class Sanitizer:
    """How to build and to run with a sanitizer."""

    flags: tuple[str, ...]
    environment: dict[str, str]
    gcc_flags: tuple[str, ...] = ()
    clang_flags: tuple[str, ...] = ()

    def flags_of(self, compiler: str) -> tuple[str, ...]:
        """Return the flags as this compiler spells them."""
        own = self.clang_flags if "clang" in compiler else self.gcc_flags
        return ("-g1", "-O1", *self.flags, *own, "-Wno-error=frame-larger-than=")


SANITIZERS = {
    # Functions are not followed into and out of: fibers would leave them in another order. To this
    # sanitizer all threads of a threadgroup are one; schedule fuzzing finds what they do to each
    # other.
    "thread": Sanitizer(
        ("-fsanitize=thread",),
        {"TSAN_OPTIONS": f"exitcode={_FOUND}:halt_on_error=1"},
        gcc_flags=("--param", "tsan-instrument-func-entry-exit=0"),
        clang_flags=("-mllvm", "-tsan-instrument-func-entry-exit=0"),
    ),
    # It follows fibers that switch by swapcontext. A fiber's stack is not the thread's, hence no
    # search for uses after a return and none for leaks.
    "address": Sanitizer(
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DMLXHOG_UCONTEXT"),
        {
            "ASAN_OPTIONS": f"exitcode={_FOUND}:detect_stack_use_after_return=0:detect_leaks=0",
            "UBSAN_OPTIONS": f"exitcode={_FOUND}:print_stacktrace=1",
        },
    ),
}


def report(
    launch: Launch,
    sanitizer: str,
    *,
    directory: Path,
    compiler: str = "g++",
    threads: int = 2,
    launches: int = 1,
    fuzz: int | None = None,
) -> str:
    """Run a launch under a sanitizer, and return what it found, "" for nothing.

    Programs are kept in `directory`. Some launches run at the same time, on the same inputs, each
    with its own outputs and OS threads; `fuzz` is a seed, as for `EmulatorEngine`.

    Raises:
        MetalError: the kernel does not compile, or fails by itself.
        EnvironmentLacks: the compiler or its sanitizer is missing.
    """
    kernel, checks = launch.kernel, SANITIZERS[sanitizer]
    flags, name = checks.flags_of(compiler), kernel.entry(launch.instance)
    program = _on_the_heap(translate.program(kernel, launch.instance))
    library = build.library(
        name, program, directory=directory, compiler=compiler, extra_flags=flags
    )
    flags = (*flags, "-x", "c++", "-", "-x", "none", "-ldl")
    main = build.compiled("main", _MAIN.read_text(), flags, build.make_cache(directory), compiler)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "launch"
        file.write_bytes(_packed(launch, threads, launches, fuzz))
        done = _finished([str(main), str(library), name, str(file)], checks)
    if done.returncode not in (0, _FOUND):
        raise MetalError(f"{kernel.name} failed (exit {done.returncode}): {done.stderr.strip()}")
    return done.stderr if done.returncode == _FOUND else ""


_VARIABLE = re.compile(
    r"static thread_local (?P<type>[^;]+?) (?P<name>\w+)(?P<sizes>(?:\s*\[[^\]]*\])*);"
    r"(?= static thread_local ulong (?P=name)_filled_for)"
)


def _on_the_heap(text: str) -> str:
    """Move threadgroup variables to the heap: sanitizers do not watch a thread's own variables."""

    def variable(match: re.Match[str]) -> str:
        kind = f"std::type_identity_t<{match['type']}{match['sizes']}>"
        return (
            f"static thread_local {kind}& {match['name']} = "
            f"*static_cast<{kind}*>(__builtin_malloc(sizeof({kind})));"
        )

    moved, n = _VARIABLE.subn(variable, text)
    assert n == text.count("_filled_for = 0;"), "translate.py declares threadgroup variables anew"
    return moved


def _packed(launch: Launch, threads: int, launches: int, fuzz: int | None) -> bytes:
    arrays = buffers(launch)
    head = struct.pack(
        "<10I2Q",
        *launch.grid,
        *launch.threadgroup,
        threads,
        launch.kernel.uses_barriers,
        0 if fuzz is None else FUZZ_PERIOD,
        launches,
        fuzz or 0,
        len(arrays),
    )
    parts = [head]
    for slot, array in enumerate(arrays):
        own = slot >= len(launch.kernel.inputs)
        parts += [struct.pack("<2Q", array.nbytes, own), array.tobytes()]
    return b"".join(parts)


def _finished(command: list[str], checks: Sanitizer) -> subprocess.CompletedProcess[str]:
    def run(*prefix: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, *command],
            env={**os.environ, **checks.environment},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )

    done = run()
    if _MEMORY_LAYOUT in done.stderr and shutil.which("setarch"):
        done = run("setarch", "-R")
    if _MEMORY_LAYOUT in done.stderr:
        raise EnvironmentLacks(
            "the thread sanitizer does not know this system's memory layout; "
            "sysctl vm.mmap_rnd_bits=28, or a newer compiler"
        )
    return done


def samples(names: Container[str] = KERNELS, n: int = 1000) -> list[Launch]:
    """Return the sample launch of each kernel named, in each of its instances."""
    return [
        sample(kernel, np.random.default_rng(0), n, instance)
        for kernel, instance in instances()
        if kernel.name in names
    ]


def main(names: list[str]) -> int:
    """Run sample launches under each sanitizer; 1 if one finds something."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.sanitize",
        description="Run sample launches under thread, address and undefined-behaviour sanitizers.",
    )
    help = f"all by default: {', '.join(KERNELS)}"
    parser.add_argument("kernels", nargs="*", metavar="kernel", help=help)
    directory, wrong = build.kernel_cache(), 0
    for launch in samples(parser.parse_args(names).kernels or KERNELS):
        for sanitizer in SANITIZERS:
            said = report(launch, sanitizer, directory=directory, launches=2)
            wrong += bool(said)
            name = f"{launch.kernel.name}_{launch.instance}".rstrip("_")
            print(f"{name:30} {sanitizer:8} {said or 'clean'}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
