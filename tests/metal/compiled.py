"""Compile all kernels with a compiler on every core: an engine compiles one when it is run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.registry import instances


def compile_all(engines: Mapping[str, HostEngine]) -> None:
    """Compile every instance of every kernel, for engines by their consumer."""
    engine = next(iter(engines.values()))  # the text is the same for all
    first, *others = ((engine, form) for form in instances())
    first[0].built(*first[1])  # with the headers and the runtime, which all share
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda one: one[0].built(*one[1]), others))
