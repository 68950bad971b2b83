"""Bytes of device memory that a launch reads and writes, counted as its kernel runs in the shim."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mlxhog.metal.host import build, translate
from mlxhog.metal.host.engine import buffers, call
from mlxhog.metal.kernel import Kernel, Launch

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Traffic:
    """Distinct bytes of one argument that were read, and that were written."""

    read: int
    written: int


def of(launch: Launch, folder: Path, cache: Path) -> dict[str, Traffic]:
    """Run a launch and return the traffic of every array argument by name.

    Args:
        launch: as for an engine.
        folder: for libraries.
        cache: of the texts that MLX compiles.
    """
    kernel = launch.kernel
    program = translate.mlx(kernel, launch.instance, cache)
    path = _library(program.text, folder, program.name)
    outputs = launch.zero_outputs()
    arrays = buffers(launch, program.signature, outputs, mlx=True)
    watched = [
        (argument.name, array)
        for argument, array in zip((*kernel.inputs, *kernel.outputs), arrays, strict=True)
        if not argument.scalar
    ]
    counts = ctypes.CDLL(str(path))
    counts.traffic_watch.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    for name in ("traffic_read", "traffic_written"):
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
    return {
        name: Traffic(counts.traffic_read(k), counts.traffic_written(k))
        for k, (name, _) in enumerate(watched)
    }


def compile_all(kernels: Iterable[tuple[Kernel, str]], folder: Path, cache: Path) -> None:
    """Compile kernels in their instances, with a compiler on every core."""
    programs = [translate.mlx(kernel, instance, cache) for kernel, instance in kernels]
    first, *others = ((program.text, folder, program.name) for program in programs)
    _library(*first)  # with the headers and the runtime, which all share
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda one: _library(*one), others))


def _library(text: str, folder: Path, name: str) -> Path:
    """Compile a kernel with accesses that report themselves, and the rest without."""
    kernel, path = folder / f"{name}.o", folder / f"{name}.so"
    if path.exists():
        return path
    reports = ("-fsanitize=thread", "-O1")
    parsed = build._prelude(folder, "g++", (*build._flags("g++"), *reports))
    _compile(*reports, *parsed, "-c", "-x", "c++", "-", "-o", kernel, text=text)
    rest = folder / "rest.so"
    if not rest.exists():
        runtime = sorted((build.HOST / "runtime").glob("*.cpp"))
        _compile(*runtime, HERE / "traffic.cpp", "-I", build.HOST / "runtime", "-o", rest)
    _compile(kernel, rest, f"-Wl,-rpath,{folder}", "-o", path)
    return path


def _compile(*arguments: str | Path, text: str = "") -> None:
    command = ["g++", *build._flags("g++"), *map(str, arguments)]
    subprocess.run(command, input=text, text=True, check=True)
