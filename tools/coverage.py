"""Coverage of the Metal source: which kernels and instances ran, and which functions they call.

As a command it runs each kernel's sample, and exits with 1 where something did not run:

    python -m tools.coverage
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernel import whole_text
from mlxhog.metal.registry import instances
from tools.lint import KERNELS as SOURCES
from tools.lint import calls_between
from tools.lint import functions as functions_of

SAMPLE = 1000
"""Elements of the samples, about."""


@dataclass(frozen=True)
class Coverage:
    """What ran of what there is.

    Attributes:
        ran: kernels, each in its instances.
        all: the same of the whole registry.
        called: qualified names of the functions that kernels call.
        functions: all that the project's headers define.
    """

    ran: frozenset[str]
    all: frozenset[str]
    called: frozenset[str]
    functions: frozenset[str]

    @property
    def missing(self) -> list[str]:
        """Everything that did not run, in words."""
        return sorted([*(self.all - self.ran), *(self.functions - self.called)])

    def __str__(self) -> str:
        """Say how many of how many, and what is missing."""
        kernels = len(self.all & self.ran), len(self.all)
        functions = len(self.functions & self.called), len(self.functions)
        lines = [
            f"{kernels[0]} of {kernels[1]} kernels ran, in all their instances",
            f"{functions[0]} of {functions[1]} functions are called",
        ]
        return "\n".join([*lines, *(f"missing: {name}" for name in self.missing)])


def measured(cache: Path | None = None) -> Coverage:
    """Run every kernel's sample under the shim, in all instances.

    Raises:
        MetalError: a kernel does not compile or fails.
        EnvironmentLacks: there is no g++.
    """
    rng = np.random.default_rng(0)
    engine = HostEngine(cache=cache)
    for kernel, instance in instances():
        engine.run(replace(kernel.sample(rng, SAMPLE), instance=instance))
    texts = [whole_text(kernel, instance) for kernel, instance in instances()]
    return Coverage(
        ran=frozenset(engine.ran),
        all=frozenset(kernel.entry(instance) for kernel, instance in instances()),
        called=frozenset().union(*map(called, texts)),
        functions=defined(SOURCES.glob("*.h")),
    )


def defined(headers: Iterable[Path]) -> frozenset[str]:
    """Return the qualified names of the functions that headers define."""
    return frozenset(
        function.qualified
        for header in headers
        for function in functions_of(header.read_text(encoding="utf-8"))
    )


def called(text: str) -> frozenset[str]:
    """Return the qualified names of the functions that the kernels of a text call, at any depth."""
    functions = functions_of(text)
    edges, reached = calls_between(functions), set[str]()
    waiting = [function.qualified for function in functions if function.is_kernel]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += edges[name]
    return frozenset(reached)


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m tools.coverage",
        description="Run every Metal kernel on the CPU, and count what did not run.",
    ).parse_args()
    result = measured()
    print(result)
    sys.exit(1 if result.missing else 0)
