"""Compile all kernels with a compiler on every core: an engine compiles one when it is run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.registry import instances


def compile_all(engines: Mapping[str, HostEngine]) -> None:
    """Compile every instance of every kernel, for engines by their consumer."""
    forms = {("mlx", kernel.name, instance): (kernel, instance) for kernel, instance in instances()}
    # PyTorch compiles a file of kernels at once.
    forms |= {("mps", kernel.header, ""): (kernel, instance) for kernel, instance in instances()}
    first, *others = ((engines[consumer], form) for (consumer, *_), form in forms.items())
    first[0].built(*first[1])  # with the headers and the runtime, which all share
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda one: one[0].built(*one[1]), others))
