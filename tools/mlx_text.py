"""The text that MLX itself generates for a kernel, on a machine with or without Metal.

MLX shows a kernel's whole text (`verbose`) also while a graph is only exported. A child process
asks it, since what MLX prints goes to the standard output of the C library:

    python -m tools.mlx_text NAME...     prints a JSON list of texts
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from mlxhog.errors import MetalError
from mlxhog.metal.kernel import Kernel, read_source
from mlxhog.metal.registry import instances

_TIMEOUT_S = 120.0


def entries() -> dict[str, tuple[Kernel, str]]:
    """Every kernel and instance, by the name of the whole kernel."""
    return {kernel.entry(instance): (kernel, instance) for kernel, instance in instances()}


def texts(names: Sequence[str]) -> list[str]:
    """Return MLX's text of each whole kernel.

    Raises:
        MetalError: MLX refuses a kernel.
    """
    process = subprocess.run(
        [sys.executable, "-m", "tools.mlx_text", *names],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if process.returncode != 0:
        raise MetalError(f"MLX gave no text for {names}:\n{process.stderr.strip()[-2000:]}")
    answer: list[str] = json.loads(process.stdout)
    return answer


def _text(kernel: Kernel, instance: str) -> str:
    import mlx.core as mx

    function = mx.fast.metal_kernel(
        name=kernel.entry(instance),
        input_names=[one.name for one in kernel.inputs],
        output_names=[one.name for one in kernel.outputs],
        source=kernel.body(instance),
        header=read_source(kernel.header),
    )

    def launch(*inputs: mx.array) -> Any:
        return function(  # type: ignore[operator]
            inputs=list(inputs),
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(1,) for _ in kernel.outputs],
            output_dtypes=[getattr(mx, one.dtype) for one in kernel.outputs],
            verbose=True,
        )

    arrays = [mx.zeros(() if one.scalar else (8,), getattr(mx, one.dtype)) for one in kernel.inputs]
    with tempfile.TemporaryDirectory() as folder:
        printed = _printed(lambda: mx.export_function(f"{folder}/kernel.mlxfn", launch, *arrays))
    return printed.split("```\n", 1)[1].rsplit("```", 1)[0]


def _printed(action: Any) -> str:
    """The text that an action writes to the C library's standard output."""
    libc = ctypes.CDLL(None)
    saved = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            action()
            libc.fflush(None)
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        file.seek(0)
        return file.read().decode()


if __name__ == "__main__":
    every = entries()
    json.dump([_text(*every[name]) for name in sys.argv[1:]], sys.stdout)
