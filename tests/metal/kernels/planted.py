"""Kernels with a fault planted, to see that the tests find it."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

from mlxhog.metal.kernel import Kernel
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
