"""Coverage of the Metal source: which kernels and instances ran, and which functions they call.

As a command it runs each kernel's sample, and exits with 1 where something did not run:

    python -m tools.coverage
"""

import sys
from pathlib import Path

import numpy as np

from mlxhog.metal.emulator.engine import EmulatorEngine
from mlxhog.metal.kernel import amalgamated_source
from mlxhog.metal.registry import instances
from tools.lint import KERNELS, calls_between, functions
from tools.samples import sample

SAMPLE = 1000
"""Elements of the samples, about."""


def missing(cache: Path | None = None) -> tuple[list[str], str]:
    """Run every kernel's sample under the emulator, in all instances.

    Returns:
        The kernels that did not run, and the functions that none calls; and a summary.

    Raises:
        MetalError: a kernel does not compile or fails.
        EnvironmentLacks: there is no g++.
    """
    rng, engine = np.random.default_rng(0), EmulatorEngine(cache=cache)
    kernels, called = set[str](), set[str]()
    for kernel, instance in instances():
        engine.run(sample(kernel, rng, SAMPLE, instance))
        kernels.add(kernel.entry(instance))
        called |= _called(amalgamated_source(kernel, instance))
    defined = {
        function.qualified
        for header in KERNELS.glob("*.h")
        for function in functions(header.read_text(encoding="utf-8"))
    }
    ran = len(kernels & set(engine.ran)), len(defined & called)
    summary = f"{ran[0]} of {len(kernels)} kernels ran, in all their instances; "
    summary += f"{ran[1]} of {len(defined)} functions are called"
    return sorted([*(kernels - set(engine.ran)), *(defined - called)]), summary


def _called(text: str) -> set[str]:
    """The qualified names of the functions that the kernels of a text call, at any depth."""
    own = functions(text)
    edges, reached = calls_between(own), set[str]()
    waiting = [function.qualified for function in own if function.is_kernel]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += edges[name]
    return reached


if __name__ == "__main__":
    names, summary = missing()
    print(summary, *(f"missing: {name}" for name in names), sep="\n")
    sys.exit(bool(names))
