"""Kernels with a fault planted, to see that the tests find it."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernel import Kernel, Launch
from mlxhog.metal.source import KERNELS


def without_barrier(kernel: Kernel, number: int, folder: Path) -> Kernel:
    """Return a kernel of a copy whose header lacks one threadgroup barrier; numbers from 0."""
    copy = folder / "kernels"
    shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    header = copy / kernel.header
    text = header.read_text()
    barriers = list(re.finditer(r"threadgroup_barrier\(.*?\);", text))
    header.write_text(text[: barriers[number].start()] + text[barriers[number].end() :])
    return replace(kernel, header=str(header))


def goes_wrong(launch: Launch, wanted: Mapping[str, NDArray[Any]], cache: Path) -> bool:
    """Whether one of eight fixed orders of threads gives a value that is not the wanted one."""
    for seed in range(8):
        found = HostEngine("mps", chaos=seed, threads=1, cache=cache).run(launch)
        if not all(np.allclose(found[name], wanted[name], rtol=1e-2) for name in found):
            return True
    return False
