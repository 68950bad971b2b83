"""Stand-ins for the Metal parts of MLX and torch, so that the engines' own code runs anywhere.

They take what the frameworks take, by the frameworks' rules, and compute with another engine, in
the memory of the arrays they are given. What a real GPU does is up to tests marked `metal`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import torch

from mlxhog.base.mapped import BFLOAT16
from mlxhog.errors import MetalError
from mlxhog.metal.emulator.engine import EmulatorEngine, buffers
from mlxhog.metal.engine import MetalEngine
from mlxhog.metal.kernel import Launch, MetalKernel, read_source
from mlxhog.metal.registry import KERNELS


def _run(engine, kernel, inputs, outputs, **how):
    """Compute a launch; returns the outputs in order."""
    named = dict(zip([argument.name for argument in kernel.inputs], inputs, strict=True))
    shapes = dict(zip([argument.name for argument in kernel.outputs], outputs, strict=True))
    result = engine.run(Launch(kernel=kernel, inputs=named, outputs=shapes, **how))
    return [result[argument.name] for argument in kernel.outputs]


def entry(name):
    """The kernel and the instance of a whole kernel."""
    base, _, instance = name.rpartition("_")
    return (KERNELS[name], "") if name in KERNELS else (KERNELS[base], instance)


@dataclass
class _Fake:
    """What both stand-ins have; `calls` keeps what each launch was given."""

    engine: MetalEngine = field(default_factory=EmulatorEngine)
    calls: list[Any] = field(default_factory=list)
    breaks: str = ""  # what the Metal compiler says instead
    max_threads: int = 1024  # in a threadgroup, of every compiled kernel


@dataclass
class FakeMLX(_Fake):
    """`mx.fast.metal_kernel` and zero-copy wraps."""

    launched: list[MetalKernel] = field(default_factory=list)  # of `calls`
    wrapped: dict[int, mx.array] = field(default_factory=dict)
    late: str = ""  # what MLX says when it evaluates a launch

    def install(self, monkeypatch):
        evaluate = mx.eval

        def evaluated(*arrays):
            if self.late and self.calls:
                raise RuntimeError(self.late)
            evaluate(*arrays)

        monkeypatch.setattr(mx, "eval", evaluated)
        monkeypatch.setattr(mx.metal, "is_available", lambda: True)
        monkeypatch.setattr(mx.fast, "metal_kernel", self.metal_kernel)
        monkeypatch.setattr(mx, "asarray", self.asarray)
        return self

    def memory(self, n):
        """Host memory that this MLX can wrap: it is in fact that of an array of its own."""
        array = mx.zeros(n)
        mx.eval(array)
        host = np.array(array, copy=False)
        self.wrapped[host.ctypes.data] = array
        return host

    def asarray(self, host, *, copy=None):
        assert copy is False
        if host.ctypes.data not in self.wrapped:
            raise ValueError("[convert] Cannot import a CPU array without a copy.")
        return self.wrapped[host.ctypes.data]

    def metal_kernel(self, **built):
        kernel, instance = entry(built["name"].removeprefix("mlxhog_"))
        assert built["header"] == read_source(kernel.header)
        assert built["source"] == kernel.body(instance)

        def call(**given):
            self.calls.append(given)
            self.launched.append(kernel)
            if self.breaks:
                raise RuntimeError(self.breaks)
            if (threads := math.prod(given["threadgroup"])) > self.max_threads:
                raise ValueError(
                    f"Thread group size ({threads}) is greater than  the maximum allowed threads "
                    f"per threadgroup ({self.max_threads})."
                )
            arrays = []
            for argument, value in zip(kernel.inputs, given["inputs"], strict=True):
                assert isinstance(value, mx.array)
                assert value.shape == () if argument.scalar else value.size >= 8
                host = np.array(value, copy=False)  # ensure_row_contiguous copies what is not
                arrays.append(value.item() if argument.scalar else np.ascontiguousarray(host))
            how = {"grid": given["grid"], "threadgroup": given["threadgroup"], "instance": instance}
            outputs = _run(self.engine, kernel, arrays, given["output_shapes"], **how)
            return list(map(mx.array, outputs, given["output_dtypes"]))

        return call


class FakeMPS(_Fake):
    """`torch.mps.compile_shader` and `synchronize`, on tensors of the CPU."""

    def install(self, monkeypatch):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(torch.mps, "compile_shader", self.compile_shader)
        monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
        return self

    def compile_shader(self, text):
        """Raise what torch raises: c10::SyntaxError, in Python SyntaxError."""
        if self.breaks:
            raise SyntaxError(self.breaks)
        return _Library(self.call)

    def call(self, name, arguments, how):
        self.calls.append((name, arguments, how))
        if math.prod(how["group_size"]) > self.max_threads:
            raise ValueError(f"Threadgroup size exceeds {self.max_threads} limit")
        kernel, instance = entry(name)
        if len(arguments) != len(kernel.inputs) + len(kernel.outputs):
            raise MetalError(f"{name} takes other arguments")
        for argument, value in zip((*kernel.inputs, *kernel.outputs), arguments, strict=True):
            if isinstance(value, torch.Tensor):
                assert str(value.dtype) == f"torch.{argument.dtype}"
            else:  # a float is passed as 32 bits, a whole number as 64 of which the kernel reads 32
                assert argument.scalar
                assert isinstance(value, float if argument.dtype == "float32" else int)
        arrays = [x.numpy() if isinstance(x, torch.Tensor) else x for x in arguments]
        inputs, outputs = arrays[: len(kernel.inputs)], arrays[len(kernel.inputs) :]
        sizes = {"grid": tuple(how["threads"]), "threadgroup": tuple(how["group_size"])}
        shapes = [output.shape for output in outputs]
        result = _run(self.engine, kernel, inputs, shapes, **sizes, instance=instance)
        for output, value in zip(outputs, result, strict=True):
            output[...] = value


class _Library:
    def __init__(self, call):
        self._call = call

    def __getattr__(self, name):
        return lambda *arguments, **how: self._call(name, arguments, how)


class FaultyEngine(EmulatorEngine):
    """Right results, but those of one kernel are off by a share, or it does not run at all.

    Only launches with the numbers `only` have the fault. Right results are kept for all engines:
    before a fault many compute the same ones.
    """

    right: ClassVar[dict[Any, Any]] = {}

    def __init__(self, kernel, by=1e-2, only=None):
        super().__init__()
        self.kernel, self.by, self.only = kernel, by, only or {}

    def start(self, launch, threadgroup):
        kernel = launch.kernel
        if any(argument.writes for argument in kernel.inputs):
            return super().start(launch, threadgroup)
        digest = hashlib.sha256()
        for array in buffers(launch)[: len(kernel.inputs)]:
            digest.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
        sizes = launch.grid, threadgroup, tuple(launch.outputs.items())
        key = kernel, launch.instance, sizes, digest.digest()
        if key not in self.right:
            self.right[key] = super().start(launch, threadgroup)
        return [array.copy() for array in self.right[key]]

    def run(self, launch):
        results = super().run(launch)
        if launch.kernel.name != self.kernel or not self.only.items() <= launch.inputs.items():
            return results
        if self.by is None:
            raise MetalError(f"kernel {self.kernel} does not compile: error: unknown type 'flaot'")
        off = np.float32(1.0 + self.by)
        floats = (off.dtype, BFLOAT16)
        return {
            name: (x * off).astype(x.dtype) if x.dtype in floats else x
            for name, x in results.items()
        }
