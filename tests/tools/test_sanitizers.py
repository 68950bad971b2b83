"""Sanitizers find planted faults and none in the kernels; every barrier of them is needed."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mlxhog.errors import MetalError
from mlxhog.metal.kernel import KERNEL_FOLDER
from mlxhog.metal.registry import KERNELS
from tests.metal.emulator.probes import AT, on, probe
from tools import sanitize

HERE = Path(__file__).parent
IN_GROUP = f"tile, {AT}, thread_index_in_threadgroup"
ARGUMENTS = {"past_the_tile": IN_GROUP, "no_barrier": IN_GROUP}


def launch(name, values=1.0, *, uses_barriers=False):
    """256 threads of one kernel of planted.h, in one group."""
    kernel = probe(
        HERE / "kernels" / "planted.h",
        f"{name}(x, y, {ARGUMENTS.get(name, AT)})",
        memory="threadgroup float tile[256];",
        uses_barriers=uses_barriers,
    )
    return on(kernel, np.broadcast_to(np.float32(values), 256).copy())


@pytest.mark.slow
def test_a_planted_fault_is_found_at_its_line_and_a_kernel_that_fails_by_itself_is_none(
    emulator_cache, compiler
):
    for name, value, uses_barriers, message in (
        ("past_the_end", 1.0, False, "heap-buffer-overflow"),
        ("past_the_tile", 1.0, True, "heap-buffer-overflow"),
        ("signed_overflow", 40000.0, False, "signed integer overflow"),
        ("long_shift", 32.0, False, "shift exponent 32 is too large"),
    ):
        planted = launch(name, value, uses_barriers=uses_barriers)
        report = sanitize.report(planted, "address", directory=emulator_cache)
        assert message in report
        assert "planted.h:" in report
    race = {"compiler": compiler, "launches": 2}  # between launches
    report = sanitize.report(launch("one_word"), "thread", directory=emulator_cache, **race)
    assert "data race" in report
    assert "planted.h:" in report
    with pytest.raises(MetalError, match="uses_barriers=True"):
        sanitize.report(launch("past_the_tile"), "address", directory=emulator_cache)


def test_a_planted_missing_barrier_gives_wrong_values_under_schedule_fuzzing(new_emulator):
    x = np.arange(256, dtype=np.float32)
    expected = np.maximum(np.arange(256) - 1, 0).astype(np.float32)
    launched = launch("no_barrier", x)
    # In the order of lanes nobody notices: this is why schedule fuzzing exists.
    assert (new_emulator(threads=1).run(launched)["y"] == expected).all()
    wrong = new_emulator(threads=1, fuzz=1).run(launched)["y"]
    again = new_emulator(threads=1, fuzz=1).run(launched)["y"]
    assert (wrong != expected).sum() > 64
    np.testing.assert_array_equal(wrong, again)


SAMPLES = {
    f"{sample.kernel.name}_{sample.instance}".rstrip("_"): sample for sample in sanitize.samples()
}


RUNS = {"address": {"fuzz": 5}, "thread": {"launches": 2}}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_kernels_stay_inside_their_buffers_and_launches_at_once_do_not_race(name, emulator_cache):
    """Also with fibers that switch at random, and two launches with four threads in all."""

    def report(kind):
        return sanitize.report(SAMPLES[name], kind, directory=emulator_cache, **RUNS[kind])

    with ThreadPoolExecutor() as pool:  # most of the time is the compilers'
        assert list(pool.map(report, RUNS)) == ["", ""]


@pytest.mark.slow
def test_every_kernel_compiles_with_gcc_and_with_clang(new_emulator, compiler):
    engine = new_emulator(compiler=compiler)
    for kernel in KERNELS.values():
        for instance in kernel.instances or ("",):
            path = engine.built(kernel, instance)
            assert path.exists()


BARRIER = re.compile(r"\bthreadgroup_barrier\([^;]*\);")
SEEDS = range(3)


BARRIERS = {
    f"{header.name}:{text[: match.start()].count(chr(10)) + 1}": (header.name, match.span())
    for header in sorted(KERNEL_FOLDER.glob("*.h"))
    for text in [header.read_text()]
    for match in BARRIER.finditer(text)
}
"""Header and place of every barrier, by its line."""


@cache
def barrier_users():
    """Launches of kernels with barriers, by kernel and instance."""
    return {
        (launch.kernel.name, launch.instance): launch
        for launch in sanitize.samples(n=2000)
        if launch.kernel.uses_barriers
    }


def users(header):
    """Those that may pass the barriers of a header."""
    return {
        name: launch
        for name, launch in barrier_users().items()
        if header in included(launch.kernel.header)
    }


def included(name):
    names = set(re.findall(r'#include "(.*)"', (KERNEL_FOLDER / name).read_text()))
    return {name}.union(*map(included, names))


def result(launch, engine):
    """What a launch computes, of inputs of its own."""
    inputs = {name: np.copy(value)[()] for name, value in launch.inputs.items()}
    return engine.run(replace(launch, inputs=inputs))


def differs(actual, expected):
    """Whether two results disagree by more than rounding."""
    return any(
        not np.allclose(actual[name], expected[name], rtol=1e-2, atol=1e-2) for name in expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("barrier", BARRIERS)
def test_without_this_barrier_some_result_is_wrong(barrier, tmp_path, new_emulator):
    (header, (start, end)), folder = BARRIERS[barrier], tmp_path / "kernels"
    shutil.copytree(KERNEL_FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    text = (folder / header).read_text()
    (folder / header).write_text(text[:start] + text[end:])

    def is_wrong(sample, expected, seed):
        launch = replace(
            sample, kernel=replace(sample.kernel, header=str(folder / sample.kernel.header))
        )
        try:
            return differs(result(launch, new_emulator(fuzz=seed, threads=1)), expected)
        except MetalError as error:
            if not any(what in str(error) for what in ("divergent barrier", "unordered access")):
                raise
            return True

    noticed = any(
        is_wrong(sample, expected, seed)
        for sample in users(header).values()
        for expected in [result(sample, new_emulator())]
        for seed in SEEDS
    )
    assert noticed, f"{barrier} can be left out, and nothing changes"


@pytest.mark.slow
def test_with_all_barriers_every_result_is_right_under_the_same_seeds(new_emulator):
    headers = {header for header, _ in BARRIERS.values()}
    launches = {name: launch for header in headers for name, launch in users(header).items()}
    assert launches
    for name, launch in launches.items():
        expected = result(launch, new_emulator())
        for seed in SEEDS:
            actual = result(launch, new_emulator(fuzz=seed, threads=1))
            assert not differs(actual, expected), name
