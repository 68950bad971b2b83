"""Bytes that a launch reads, writes, loads and stores, counted as its kernel runs in the shim.

    python -m tests.metal.kernels.traffic

writes those of the models' kernels to `traffic.json`, which `tools/roofline.py` shows.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxhog.metal.host import build, translate
from mlxhog.metal.host.engine import buffers, call
from mlxhog.metal.kernel import Kernel, Launch
from mlxhog.metal.kernels import mlstm, slstm
from tests import kept

HERE = Path(__file__).parent
RECORD = HERE / "traffic.json"
THREADGROUP = "threadgroup"  # in place of an argument's name
POSITIONS, DK, DV = 256, 96, 192  # of a head of xLSTM Large with 160m parameters
STEPS, UNITS = 32, 192  # of a head of the original xLSTM of that width


@dataclass(frozen=True)
class Traffic:
    """Distinct bytes of one argument that were read and written; bytes of all loads and stores.

    Of threadgroup memory only loads and stores are counted.
    """

    read: int
    written: int
    loaded: int = 0
    stored: int = 0


def of(launch: Launch, cache: Path) -> dict[str, Traffic]:
    """Run a launch and return the traffic of every array argument by name.

    Args:
        launch: as for an engine.
        cache: of the texts that MLX compiles.
    """
    kernel = launch.kernel
    program = translate.mlx(kernel, launch.instance, cache)
    path = _library(program.text, program.name)
    outputs = launch.zero_outputs()
    arrays = buffers(launch, program.signature, outputs, mlx=True)
    watched = [
        (argument.name, array)
        for argument, array in zip((*kernel.inputs, *kernel.outputs), arrays, strict=True)
        if not argument.scalar
    ]
    counts = ctypes.CDLL(str(path))
    counts.traffic_watch.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    names = ("read", "written", "loaded", "stored")
    for name in (f"traffic_{name}" for name in names):
        counts[name].argtypes, counts[name].restype = (ctypes.c_size_t,), ctypes.c_size_t
    counts.traffic_forget()
    for _, array in watched:
        counts.traffic_watch(array.ctypes.data, array.nbytes)
    x, y, z = (min(pair) for pair in zip(launch.group, launch.grid, strict=True))
    failure = call(
        path,
        program.signature.name,
        arrays,
        grid=launch.grid,
        group=(x, y, z),
        threads=1,
        lockstep=kernel.lockstep,
        chaos_period=0,
        seed=0,
    )
    assert not failure, failure
    result = {
        name: Traffic(*(counts[f"traffic_{each}"](k) for each in names))
        for k, (name, _) in enumerate(watched)
    }
    of_group = (counts.traffic_loaded(len(watched)), counts.traffic_stored(len(watched)))
    return result | {THREADGROUP: Traffic(0, 0, *of_group)}


def model_launches() -> Iterator[Launch]:
    """Yield a launch of every kernel of the cells, of one head."""
    rng = np.random.default_rng(0)
    x = mlstm.sample_cell(rng, B=1, S=POSITIONS, NH=1, DK=DK, DV=DV)
    mlstm.sample_gradients(rng, x)
    chunk = mlstm.SAMPLE_CHUNK
    yield from mlstm.run_reference(x, mlstm.forward_launches(x, chunk=chunk, eps=1e-6))
    yield from mlstm.run_reference(x, mlstm.backward_launches(x, chunk=chunk, eps=1e-6))
    x = slstm.sample_slstm(rng, B=1, S=STEPS, NH=1, DH=UNITS, fresh=True)
    yield slstm.slstm_forward(x)
    for name in ("h", "c", "n", "m", "dh"):
        x[name] = np.ones((1, STEPS, 1, UNITS), np.float32)
    x |= {name: np.ones((1, 1, UNITS), np.float32) for name in ("dc_last", "dn_last", "dm_last")}
    yield slstm.slstm_backward(x)


def model_counts(cache: Path) -> dict[str, dict[str, float]]:
    """Return bytes per position and head of the models' kernels, by kernel.

    `memory` is read or written once if caches are large enough, `loaded` and `stored` are all
    accesses to device memory, `group_loaded` and `group_stored` those to threadgroup memory.
    """
    launches = list(model_launches())
    compile_all([(launch.kernel, launch.instance) for launch in launches], cache)
    result = {}
    for launch in launches:
        counted = of(launch, cache)
        group = counted.pop(THREADGROUP)
        numbers: dict[str, Any] = {
            "memory": sum(t.read + t.written for t in counted.values()),
            "loaded": sum(t.loaded for t in counted.values()),
            "stored": sum(t.stored for t in counted.values()),
            "group_loaded": group.loaded,
            "group_stored": group.stored,
        }
        positions = launch.inputs["S"]
        result[launch.kernel.name] = {name: n / positions for name, n in numbers.items()}
    return result


def compile_all(kernels: Iterable[tuple[Kernel, str]], cache: Path) -> None:
    """Compile kernels in their instances, with a compiler on every core."""
    programs = [translate.mlx(kernel, instance, cache) for kernel, instance in kernels]
    first, *others = ((program.text, program.name) for program in programs)
    _library(*first)  # with the headers and the runtime, which all share
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda one: _library(*one), others))


def _library(text: str, name: str) -> Path:
    """A kernel with accesses that report themselves, and the rest without."""
    reports = ("-fsanitize=thread", "-O1", "-Dpoison_once=watched_poison_once")
    usual = [build._version("g++"), *build._flags("g++"), build._shim_text()]
    runtime = sorted((build.HOST / "runtime").glob("*.cpp"))

    def kernel(result: Path) -> None:
        parsed = build._prelude(kept.folder("shim"), "g++", (*build._flags("g++"), *reports))
        _compile(*reports, *parsed, "-c", "-x", "c++", "-", "-o", result, text=text)

    def rest(result: Path) -> None:
        _compile(*runtime, HERE / "traffic.cpp", "-I", build.HOST / "runtime", "-o", result)

    parts = (
        kept.made(f"{name}.o", kernel, *usual, *reports, text),
        kept.made("traffic.so", rest, *usual, HERE / "traffic.cpp"),
    )
    return kept.made(f"{name}.so", lambda result: _compile(*parts, "-o", result), *map(str, parts))


def _compile(*arguments: str | Path, text: str = "") -> None:
    command = ["g++", *build._flags("g++"), *map(str, arguments)]
    subprocess.run(command, input=text, text=True, check=True)


if __name__ == "__main__":
    RECORD.write_text(json.dumps(model_counts(build.kernel_cache()), indent=2) + "\n")
