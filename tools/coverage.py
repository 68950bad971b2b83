"""Coverage of the Metal source: which kernels, instances and functions have run.

As a command it runs each kernel's sample as MLX and as PyTorch would, and exits with 1 where
something did not run:

    python -m tools.coverage
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlxhog.metal.host import build
from mlxhog.metal.host.engine import CONSUMERS, HostEngine, Ran
from mlxhog.metal.kernel import Launch
from mlxhog.metal.kernels import steps
from mlxhog.metal.registry import instances
from tools.lint import KERNELS as SOURCES
from tools.lint.text import functions as functions_of

FLAGS = (
    "-O0",  # each is run once, on a sample
    "-DMLXHOG_FUNCTIONS_RAN",
    "-finstrument-functions",
    "-Wl,-Bsymbolic-functions",
    f"-finstrument-functions-exclude-file-list={build.HOST},/usr/",
)
"""For engines whose functions shall be counted; g++ only."""
SAMPLE = 1000
"""Elements of the samples, about."""


@dataclass(frozen=True)
class Coverage:
    """What ran of what there is.

    Attributes:
        ran: consumer, kernel and instance.
        all: the same of the whole registry.
        functions_ran: qualified names, of functions defined in the project's headers.
        functions: all of them.
    """

    ran: frozenset[Ran]
    all: frozenset[Ran]
    functions_ran: frozenset[str]
    functions: frozenset[str]

    @property
    def missing(self) -> list[str]:
        """Everything that did not run, in words."""
        kernels = (" ".join(filter(None, launch)) for launch in self.all - self.ran)
        return sorted([*kernels, *(self.functions - self.functions_ran)])

    def __str__(self) -> str:
        """Say how many of how many, and what is missing."""
        kernels = len(self.all & self.ran), len(self.all)
        functions = len(self.functions & self.functions_ran), len(self.functions)
        lines = [
            f"{kernels[0]} of {kernels[1]} kernels ran (consumer x kernel x instance)",
            f"{functions[0]} of {functions[1]} functions ran",
        ]
        return "\n".join([*lines, *(f"did not run: {name}" for name in self.missing)])


def measured(cache: Path | None = None) -> Coverage:
    """Run every kernel's sample under the shim, in all instances, as both consumers would.

    Raises:
        MetalError: a kernel does not compile or fails.
        EnvironmentLacks: there is no g++.
    """
    rng = np.random.default_rng(0)
    ran: set[Ran] = set()
    functions: set[str] = set()
    for consumer in CONSUMERS:
        engine = HostEngine(consumer, cache=cache, flags=FLAGS)
        for kernel, instance in instances():
            engine.run(replace(kernel.sample(rng, SAMPLE), instance=instance))
            library = engine.built(kernel, instance)
        losers = HostEngine(consumer, cache=cache, flags=FLAGS, chaos=1, threads=1)
        losers.run(losing_races())
        ran |= engine.ran
        functions |= functions_ran(library)
    return Coverage(
        ran=frozenset(ran),
        all=frozenset(
            (consumer, kernel.name, instance)
            for consumer in CONSUMERS
            for kernel, instance in instances()
        ),
        functions_ran=frozenset(functions),
        functions=defined(SOURCES.glob("*.h")),
    )


def losing_races() -> Launch:
    """Moves of shared moments that give up after one try; under chaos some do, and are counted."""
    name = "muon_direction_shared"
    m, failures = np.zeros(8, np.float32), np.zeros(8, np.uint32)
    x = {"m": m, "failures": failures, "g": np.ones(8, np.float32)}
    launch = steps.muon_direction(x, hp=np.array([1, 1, 0, 1, 0, 0, 0, 0], np.float32), offset=0)
    source = launch.kernel.source.replace(name, f"{name}<1>")
    impatient = replace(launch.kernel, source=source)
    return replace(launch, kernel=impatient, grid=(8, 200, 1), group=(8, 32, 1))


def defined(headers: Iterable[Path]) -> frozenset[str]:
    """Return the qualified names of the functions that headers define."""
    return frozenset(
        function.qualified
        for header in headers
        for function in functions_of(header.read_text(encoding="utf-8"))
    )


def functions_ran(library: Path) -> frozenset[str]:
    """Return the qualified names of what has run in this process so far.

    Args:
        library: one of those built with `FLAGS`; they all share one runtime, which knows.
    """
    ask = ctypes.CDLL(str(library)).metal_host_functions_ran
    ask.restype = ctypes.c_size_t
    size = ask(None, ctypes.c_size_t(0))
    names = ctypes.create_string_buffer(size)
    ask(names, ctypes.c_size_t(size))
    return frozenset(_qualified(line) for line in names.raw.decode().splitlines())


def _qualified(demangled: str) -> str:
    """`float mlxhog::tile<half>(float*)` without return type, template and parameters."""
    name, depth = "", 0
    for character in demangled:
        if character == "(" and depth == 0:
            break
        depth += (character == "<") - (character == ">")
        if depth == 0 and character != ">":
            name += character
    return name.rpartition(" ")[2]


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m tools.coverage",
        description="Run every Metal kernel on the CPU, and count what did not run.",
    ).parse_args()
    result = measured()
    print(result)
    sys.exit(1 if result.missing else 0)
