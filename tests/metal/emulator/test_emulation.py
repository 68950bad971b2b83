"""What the emulation refuses, and its races; that it computes as Metal does, kernels' tests show.

Schedule fuzzing makes races happen: plain adds lose, atomic adds do not; a seed repeats all.
"""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlxhog.errors import MetalError, ShapeError
from mlxhog.metal import kernels
from mlxhog.metal.registry import KERNELS, instances
from tests.metal.emulator import probes
from tests.metal.emulator.probes import count, on
from tests.pairs import each_of
from tools import coverage
from tools.samples import sample

ONES, READ_ONLY = np.ones(64, np.float32), np.zeros(16, np.float32)
READ_ONLY.flags.writeable = False
UNDECLARED = [
    replace(kernel, uses_barriers=False) for kernel in (probes.GROUP_SUM, probes.DIVERGENT)
]
REFUSED = {
    r"\(2048, 1, 1\) is 2048 threads; a GPU runs 1 to 1024": on(
        probes.GROUP_SUM, np.zeros(4096, np.float32), threadgroup=(2048, 1, 1)
    ),
    "shared is read-only; the kernel writes it in place": count(probes.ATOMIC_COUNT, READ_ONLY, 16),
    # threads at two barriers, and at one that others never reach
    r"divergent barrier: thread 32 .*meeting\.h:25.*h:23": on(probes.DIVERGENT, ONES, returns=0),
    r"divergent barrier: .*meeting\.h:23, 32 of the threadgroup's 64 threads have": on(
        probes.DIVERGENT, ONES, returns=1
    ),
    r"simd_sum at .*meeting\.h:\d+ in a kernel .*uses_barriers=True": on(UNDECLARED[0], ONES),
    r"threadgroup_barrier at .*meeting\.h:\d+ in a kernel .*uses_barriers=True": on(
        UNDECLARED[1], ONES, returns=1
    ),
}


@each_of("message", REFUSED)
def test_what_metal_forbids_is_refused_with_the_place_and_the_process_goes_on(emulator, message):
    with pytest.raises(ShapeError if "read-only" in message else MetalError, match=message):
        emulator.run(REFUSED[message])
    assert emulator.run(on(probes.GROUP_SUM, ONES))["y"][0] == 64


def test_threadgroup_memory_is_poisoned_for_every_group(emulator):
    x = np.ones(256, np.float32)
    y = emulator.run(on(probes.UNWRITTEN, x, threadgroup=(64, 1, 1)))["y"].reshape(4, 64)
    assert (y[:, 0] == 1).all()
    assert np.isnan(y[:, 1:]).all()


gcc_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has no watched accesses")
NONE, DEVICE, THREADGROUP, BOTH = range(4)
RIGHT = {probes.BY_THREADGROUP: THREADGROUP, probes.BY_TURNS: THREADGROUP, probes.BY_DEVICE: DEVICE}


@gcc_on_linux
@each_of("of_simdgroup", [0, 1])
@each_of("kernel", RIGHT, ids=lambda kernel: kernel.name)
def test_a_barrier_orders_accesses_to_the_memory_of_its_flags_and_to_no_other(
    emulator, kernel, of_simdgroup
):
    right, x = RIGHT[kernel], np.arange(128, dtype=np.float32)
    is_group_only = kernel is probes.BY_TURNS  # its threads read beyond their simd-group
    for flags in (NONE, DEVICE, THREADGROUP, *([] if of_simdgroup else [BOTH])):
        launch = on(kernel, x, threadgroup=(64, 1, 1), flags=flags, of_simdgroup=of_simdgroup)
        if flags in (right, BOTH) and not (of_simdgroup and is_group_only):
            assert emulator.run(launch)["y"][0] == 1
        else:
            with pytest.raises(MetalError, match="unordered access: thread .* no barrier of both"):
                emulator.run(launch)


RIGHT_FLAG, TEXTS = "mem_flags::mem_threadgroup", Path(kernels.__file__).parent
OF_TEXT = {
    "mlstm.h": ("mlstm_gates", "mlstm_out"),
    "mlstm_backward.h": ("mlstm_bwd_scores",),
    "slstm.h": ("slstm_forward", "slstm_backward"),
    "tiles.h": ("mlstm_out",),
}
"""Kernels that wait at all barriers of a text, which another text may include."""


def run_all(engine, names, folder):
    """Run kernels whose texts are in a folder."""
    for kernel in map(KERNELS.get, names):
        changed = replace(kernel, header=str(folder / Path(kernel.header).name))
        engine.run(replace(sample(kernel, np.random.default_rng(0), 1500), kernel=changed))


@pytest.mark.slow
@gcc_on_linux
@pytest.mark.parametrize("name", OF_TEXT)
def test_no_barrier_of_a_kernel_may_have_another_flag(emulator, tmp_path, name):
    parts = (TEXTS / name).read_text().split(RIGHT_FLAG)
    for number in range(1, len(parts)):
        folder = shutil.copytree(TEXTS, tmp_path / f"{number}")
        wrong = "mem_flags::mem_none" if number % 2 else "mem_flags::mem_device"
        ends = RIGHT_FLAG.join(parts[:number]), RIGHT_FLAG.join(parts[number:])
        (folder / name).write_text(wrong.join(ends))
        with pytest.raises(MetalError, match="unordered access"):
            run_all(emulator, OF_TEXT[name], folder)


def test_every_text_with_barriers_is_tried():
    assert {path.name for path in TEXTS.glob("*.h") if RIGHT_FLAG in path.read_text()} == {*OF_TEXT}


N = 65_536


def lost(engine, kernel=probes.PLAIN_COUNT):
    shared = np.zeros(8, np.float32)
    engine.run(count(kernel, shared, N))
    return N - int(shared.sum())


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 3, 2**31])
def test_atomic_adds_lose_nothing_under_schedule_fuzzing(new_emulator, seed, threads):
    assert lost(new_emulator(fuzz=seed, threads=threads), probes.ATOMIC_COUNT) == 0


def test_plain_adds_lose_and_a_seed_repeats_a_run_of_launches_on_one_os_thread(new_emulator):
    first, second, other = (new_emulator(fuzz=seed, threads=1) for seed in (3, 3, 4))
    runs = [[lost(engine) for _ in range(3)] for engine in (first, second, other)]
    assert min(runs[0]) > N // 10
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert len(set(runs[0])) == 3  # launches of one engine differ from each other


@pytest.mark.slow
def test_both_ways_to_switch_fibers_agree(new_emulator):
    portable = new_emulator(fuzz=3, threads=1, flags=("-DMLXHOG_UCONTEXT",))
    assert lost(new_emulator(fuzz=3, threads=1)) == lost(portable)


@pytest.mark.slow
def test_an_instance_whose_sample_runs_another_and_a_function_that_none_calls_are_missing(
    monkeypatch, tmp_path, emulator_cache
):
    first, second = [one for one in instances() if one[0].name.startswith("conv_forward")]
    (tmp_path / "own.h").write_text("inline float nobody_calls(float x) {\n  return x;\n}\n")
    monkeypatch.setattr(coverage, "instances", lambda: [first, second])
    monkeypatch.setattr(coverage, "sample", lambda _, rng, *size: sample(first[0], rng, *size))
    monkeypatch.setattr(coverage, "KERNELS", tmp_path)
    missing, summary = coverage.missing(emulator_cache)
    assert missing == [second[0].name, "nobody_calls"]
    assert summary == ("1 of 2 kernels ran, in all their instances; 0 of 1 functions are called")


@pytest.mark.slow
def test_every_kernel_instance_runs_and_calls_every_function(emulator, emulator_cache, capsys):
    first, *others = instances()
    emulator.built(*first)  # with the runtime, which all share
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda one: emulator.built(*one), others))
    missing, summary = coverage.missing(emulator_cache)
    with capsys.disabled():
        print(f"\nMetal source under the emulator: {summary}")
    assert not missing
