"""Compile all kernels with a compiler on every core: an engine compiles one when it is run."""

import os
from concurrent.futures import ThreadPoolExecutor

from mlxhog.metal.registry import instances


def compile_all(engines):
    """Compile every instance of every kernel, for engines by their consumer."""
    engine = next(iter(engines.values()))  # the text is the same for all
    first, *others = ((engine, form) for form in instances())
    first[0].built(*first[1])  # with the headers and the runtime, which all share
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda one: one[0].built(*one[1]), others))
