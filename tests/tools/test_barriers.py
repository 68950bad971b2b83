"""Every barrier in the kernels is needed: without it, chaos with a fixed seed gives wrong values.

A barrier whose absence nobody notices would be waste, or the emulation too tame to tell.
"""

import re
import shutil
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from mlxhog.errors import MetalError
from mlxhog.metal.kernel import KERNEL_FOLDER
from tools import sanitize

BARRIER = re.compile(r"\bthreadgroup_barrier\([^;]*\);")
SEEDS = range(3)


class Barrier(NamedTuple):
    """The n-th barrier of a header."""

    header: str
    n: int
    line: int

    def __str__(self):
        return f"{self.header}:{self.line}"


def barriers():
    return [
        Barrier(header.name, n, text[: match.start()].count("\n") + 1)
        for header in sorted(KERNEL_FOLDER.glob("*.h"))
        for text in [header.read_text()]
        for n, match in enumerate(BARRIER.finditer(text))
    ]


def users(header):
    """Launches of kernels that may pass the barriers of a header."""
    return [
        launch
        for launch in sanitize.samples(n=2000)
        if launch.kernel.lockstep and header in included(launch.kernel.header)
    ]


def included(name):
    names = set(re.findall(r'#include "(.*)"', (KERNEL_FOLDER / name).read_text()))
    return {name}.union(*map(included, names))


def without(barrier, folder):
    """A copy of all kernels that lacks one barrier."""
    shutil.copytree(KERNEL_FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    file = folder / barrier.header
    text = file.read_text()
    start, end = list(BARRIER.finditer(text))[barrier.n].span()
    file.write_text(text[:start] + text[end:])
    return folder


def differs(launch, engine, right, calm, rtol):
    """Whether a launch under chaos and the right one without disagree by more than rounding."""
    expected, actual = (
        one.run(replace(each, inputs={k: np.copy(v)[()] for k, v in each.inputs.items()}))
        for each, one in ((right, calm), (launch, engine))
    )
    return any(
        not np.allclose(actual[name], expected[name], rtol=100 * rtol, atol=100 * rtol)
        for name in expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("barrier", barriers(), ids=str)
def test_without_this_barrier_some_result_is_wrong(barrier, tmp_path, host_engine):
    folder = without(barrier, tmp_path / "kernels")

    def is_wrong(sample, seed):
        launch = replace(
            sample, kernel=replace(sample.kernel, header=str(folder / sample.kernel.header))
        )
        engine = host_engine(chaos=seed, threads=1)
        try:
            return differs(launch, engine, sample, host_engine(), 1e-4)
        except MetalError as error:
            if "divergent barrier" not in str(error):
                raise
            return True

    noticed = any(is_wrong(one, seed) for one in users(barrier.header) for seed in SEEDS)
    assert noticed, f"{barrier} can be left out, and nothing changes"


@pytest.mark.slow
def test_with_all_barriers_every_result_is_right_under_the_same_seeds(host_engine):
    assert barriers()
    for launch in {id(user): user for b in barriers() for user in users(b.header)}.values():
        for seed in SEEDS:
            engine = host_engine(chaos=seed, threads=1)
            assert not differs(launch, engine, launch, host_engine(), 1e-4)
