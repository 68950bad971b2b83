"""What a launch touches: bytes of memory, loads and stores, cache lines of each access.

    python -m tests.metal.kernels.traffic

runs every kernel in the shim, counts, and writes the counts to `traffic.json`, which
`tools/counts.py` shows.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlxhog.metal.host import build, translate
from mlxhog.metal.host.engine import buffers, call
from mlxhog.metal.kernels import mlstm, slstm
from mlxhog.metal.registry import instances
from tests import kept

HERE = Path(__file__).parent
RECORD = HERE / "traffic.json"
THREADGROUP = "threadgroup"  # in place of an argument's name
LINE_BYTES = 128
POSITIONS, DK, DV = 128, 128, 256  # of a head of the mLSTM
STEPS, UNITS = 32, 192  # of a head of the sLSTM
ELEMENTS = 4096  # of a launch of the other kernels
_COUNTERS = ("read", "written", "loaded", "stored", "accesses", "lines")


@dataclass(frozen=True)
class Traffic:
    """What a launch does to one argument, or to threadgroup memory.

    Attributes:
        read, written: distinct bytes; for threadgroup memory `written` is all of it, `read` 0.
        loaded, stored: bytes of all loads and stores.
        accesses: one for all threads of a simdgroup that run one instruction together.
        lines: cache lines of 128 bytes that each access touches, summed over the accesses.
    """

    read: int
    written: int
    loaded: int = 0
    stored: int = 0
    accesses: int = 0
    lines: int = 0


def of(launch):
    """Run a launch and return the traffic of every array argument by name.

    Args:
        launch: as for an engine.
    """
    kernel = launch.kernel
    path = _library(*_program(kernel, launch.instance))
    outputs = launch.zero_outputs()
    arrays = buffers(launch, outputs, mlx=True)
    watched = [
        (argument.name, array)
        for argument, array in zip((*kernel.inputs, *kernel.outputs), arrays, strict=True)
        if not argument.scalar
    ]
    counts = ctypes.CDLL(str(path))
    counts.traffic_watch.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    for name in (f"traffic_{name}" for name in _COUNTERS):
        counts[name].argtypes, counts[name].restype = (ctypes.c_size_t,), ctypes.c_size_t
    counts.traffic_group_bytes.restype = ctypes.c_size_t
    counts.traffic_forget()
    for _, array in watched:
        counts.traffic_watch(array.ctypes.data, array.nbytes)
    x, y, z = (min(pair) for pair in zip(launch.group, launch.grid, strict=True))
    failure = call(
        path,
        kernel.entry(launch.instance),
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
        name: Traffic(*(counts[f"traffic_{each}"](k) for each in _COUNTERS))
        for k, (name, _) in enumerate(watched)
    }
    group = len(watched)
    accesses = counts.traffic_loaded(group), counts.traffic_stored(group)
    return result | {THREADGROUP: Traffic(0, counts.traffic_group_bytes(), *accesses)}


def cell_launches():
    """Yield a launch of every kernel of the cells, of one head."""
    rng = np.random.default_rng(0)
    x = mlstm.sample_cell(rng, B=1, S=POSITIONS, NH=1, DK=DK, DV=DV)
    mlstm.sample_gradients(rng, x)
    chunk = mlstm.SAMPLE_CHUNK
    yield from mlstm.run_reference(x, mlstm.forward_launches(x, chunk=chunk, eps=1e-6))
    yield from mlstm.run_reference(x, mlstm.backward_launches(x, chunk=chunk, eps=1e-6))
    x = slstm.sample_slstm(rng, B=1, S=STEPS, NH=1, DH=UNITS, fresh=True)
    yield from mlstm.run_reference(x, iter([slstm.slstm_forward(x)]))
    x["dh"] = np.ones((1, STEPS, 1, UNITS), np.float32)
    x |= {name: np.ones((1, 1, UNITS), np.float32) for name in ("dc_last", "dn_last", "dm_last")}
    yield slstm.slstm_backward(x)


def memory_bound():
    """Return a launch of every other kernel, in each instance, by its name."""
    return {
        f"{kernel.name}-{instance}".rstrip("-"): replace(
            dense(kernel.sample(np.random.default_rng(1), ELEMENTS)), instance=instance
        )
        for kernel, instance in instances()
        if kernel.bytes_per_element
    }


def dense(launch):
    """The launch without the zeros and repeated rows that samples have, which would move less."""
    inputs = dict(launch.inputs)
    if "rows" in inputs:
        inputs["rows"] = np.arange(inputs["rows"].size, dtype=np.int32)
    if "blocks" in inputs:
        inputs["blocks"] = np.arange(inputs["blocks"].size, dtype=np.int32)
    if "added" in inputs:
        inputs["g"] = np.ones_like(inputs["g"])
    return replace(launch, inputs=inputs)


def elements(launch):
    """What `bytes_per_element` counts: the floats or blocks that come in."""
    names = ("g", "x", "dpre", "part", "blocks")
    counted = next(name for name in names if name in launch.inputs)
    return int(launch.inputs[counted].size)


Counts = dict[str, float | dict[str, float]]
"""Of one kernel, in bytes per position and head, or per element of a memory-bound kernel: `memory`
is read or written once if caches are large enough, `loaded` and `stored` are all loads and stores
of device memory, `line_bytes` the cache lines that they touch, `group_loaded` and `group_stored`
are of threadgroup memory. `accesses` are a simdgroup's, not bytes; `lines` are those that one of
them touches on average, by argument. A threadgroup has `group_bytes`."""


def counts():
    """Count every kernel of the registry, by its name and instance."""
    launches = {one.kernel.name: (one, one.inputs["S"]) for one in cell_launches()}
    launches |= {name: (one, elements(one)) for name, one in memory_bound().items()}
    programs = [(one.kernel, one.instance) for one, _ in launches.values()]
    compile_all(programs)
    return {name: _counts(of(one), n) for name, (one, n) in launches.items()}


def _counts(counted, n):
    group = counted.pop(THREADGROUP)
    each = counted.values()
    sums = {
        "memory": sum(t.read + t.written for t in each),
        "loaded": sum(t.loaded for t in each),
        "stored": sum(t.stored for t in each),
        "accesses": sum(t.accesses for t in each),
        "line_bytes": LINE_BYTES * sum(t.lines for t in each),
        "group_loaded": group.loaded,
        "group_stored": group.stored,
    }
    lines = {name: round(t.lines / t.accesses, 3) for name, t in counted.items() if t.accesses}
    per_unit = {name: round(total / n, 3) for name, total in sums.items()}
    return per_unit | {"group_bytes": group.written, "lines": lines}


def compile_all(kernels):
    """Compile kernels in their instances, with a compiler on every core."""
    first, *others = (_program(kernel, instance) for kernel, instance in kernels)
    _library(*first)  # with the headers and the runtime, which all share
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda one: _library(*one), others))


def _program(kernel, instance):
    return translate.program(kernel, instance), kernel.entry(instance)


def _library(text, name):
    """A kernel with accesses that report themselves, and the rest without."""
    watched = ("poison_once", "run", "wait_for_group", "wait_for_simdgroup", "show")
    reports = ("-fsanitize=thread", "-O1", *(f"-D{name}=watched_{name}" for name in watched))
    usual = [build._version("g++"), *build._flags("g++"), build._shim_text()]
    runtime = sorted((build.HOST / "runtime").glob("*.cpp"))

    def kernel(result):
        parsed = build._prelude(kept.folder("shim"), "g++", (*build._flags("g++"), *reports))
        _compile(*reports, *parsed, "-c", "-x", "c++", "-", "-o", result, text=text)

    def rest(result):
        _compile(*runtime, HERE / "traffic.cpp", "-I", build.HOST / "runtime", "-o", result)

    parts = (
        kept.made(f"{name}.o", kernel, *usual, *reports, text),
        kept.made("traffic.so", rest, *usual, HERE / "traffic.cpp"),
    )
    return kept.made(f"{name}.so", lambda result: _compile(*parts, "-o", result), *map(str, parts))


def _compile(*arguments, text=""):
    command = ["g++", *build._flags("g++"), *map(str, arguments)]
    subprocess.run(command, input=text, text=True, check=True)


if __name__ == "__main__":
    record = counts()
    lines = (f"{json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in record.items())
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
