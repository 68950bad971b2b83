"""Prints the Metal text that MLX compiles for kernels, on a machine with or without Metal.

`python -m mlxhog.metal.host.capture_mlx` reads a JSON list of requests from standard input and
writes a JSON list of texts. MLX shows a kernel's whole text (`verbose`) also while a graph is only
exported.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from typing import Any

import mlx.core as mx


def main() -> None:
    """Answer the requests."""
    requests = json.load(sys.stdin)
    json.dump([_text(request) for request in requests], sys.stdout)


def _text(request: dict[str, Any]) -> str:
    kernel = mx.fast.metal_kernel(
        name=request["name"],
        input_names=[name for name, _, _ in request["inputs"]],
        output_names=[name for name, _ in request["outputs"]],
        source=request["source"],
        header=request["header"],
        atomic_outputs=request["atomic_outputs"],
    )

    def launch(*inputs: mx.array) -> Any:
        return kernel(  # type: ignore[operator]
            inputs=list(inputs),
            template=[
                (name, value if isinstance(value, int) else getattr(mx, value))
                for name, value in request["template"]
            ],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(1,) for _ in request["outputs"]],
            output_dtypes=[getattr(mx, dtype) for _, dtype in request["outputs"]],
            verbose=True,
        )

    arrays = [mx.zeros(tuple(shape), getattr(mx, dtype)) for _, dtype, shape in request["inputs"]]
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
    main()
