"""The text that MLX generates for a kernel: as MLX itself says, and as we state it.

`captured` asks MLX in a child process, once. `stated` serves machines without MLX, and notices when
MLX changes its text: a test holds the two equal, white space aside.
Source: the text `mx.fast.metal_kernel` prints with `verbose`, MLX 0.32.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any

from mlxhog.errors import MetalError
from mlxhog.files.cache import is_kept
from mlxhog.files.durable import replace_file
from mlxhog.metal.host import build
from mlxhog.metal.kernel import Kernel, read_source

_TIMEOUT_S = 120.0
_ONE_AT_A_TIME = Lock()  # threads of one process; processes may write a text twice

SMALL = 8
"""MLX passes arrays of fewer elements in `constant` space; engines pad inputs to this size."""

DTYPES = {"half": "float16", "bfloat": "bfloat16"}
"""MLX's names of the types that are template arguments."""


@dataclass(frozen=True)
class Request:
    """The arguments of `mx.fast.metal_kernel` and of its call, as far as they show in the text.

    Attributes:
        name: of the kernel.
        inputs: name, dtype and shape; the shape counts only by its size and number of dimensions.
        outputs: name and dtype.
        source: the body.
        header: text before the kernel.
        template: template arguments with MLX's names of types.
        atomic_outputs: outputs are declared atomic.
    """

    name: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str], ...]
    source: str
    header: str
    template: tuple[tuple[str, str], ...] = ()
    atomic_outputs: bool = False

    def plain(self) -> dict[str, Any]:
        """The same as JSON would hold it."""
        return asdict(self)


def request_of(kernel: Kernel, instance: str = "") -> Request:
    """Return the one request of a kernel's instance: scalars 0-d, arrays flat and not small."""
    return Request(
        name=kernel.name,
        inputs=tuple(
            (argument.name, argument.dtype, () if argument.scalar else (SMALL,))
            for argument in kernel.inputs
        ),
        outputs=tuple((argument.name, argument.dtype) for argument in kernel.outputs),
        source=kernel.source,
        header=read_source(kernel.header),
        template=(("T", DTYPES[instance]),) if instance else (),
    )


def mlx_version() -> str:
    """Return the installed version of MLX, "" where it is missing; imports nothing."""
    try:
        return version("mlx")
    except PackageNotFoundError:
        return ""


def captured(requests: Sequence[Request], directory: Path) -> list[str]:
    """Return MLX's text of each request; one child asks for all that are not in `directory`.

    Raises:
        MetalError: MLX refuses a kernel.
        EnvironmentLacks: the directory cannot be made, or what is there is not to be trusted.
    """
    with _ONE_AT_A_TIME:
        return _captured(requests, directory)


def _captured(requests: Sequence[Request], directory: Path) -> list[str]:
    directory = build.make_cache(directory)
    paths = [directory / f"{request.name}-{_digest(request)}.metal" for request in requests]
    missing = {
        path: request for path, request in zip(paths, requests, strict=True) if not is_kept(path)
    }
    if missing:
        for path, text in zip(missing, _ask(list(missing.values())), strict=True):
            replace_file(path, text.encode())
            path.chmod(0o600)  # whatever the umask, which may let others write
    return [path.read_text(encoding="utf-8") for path in paths]


def _digest(request: Request) -> str:
    content = json.dumps([mlx_version(), request.plain()])
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def _ask(requests: list[Request]) -> list[str]:
    process = subprocess.run(
        # -P: a folder named mlxhog where the user stands is not this package
        [sys.executable, "-P", "-m", "mlxhog.metal.host.capture_mlx"],
        input=json.dumps([request.plain() for request in requests]),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if process.returncode != 0:
        names = ", ".join(request.name for request in requests)
        raise MetalError(f"MLX gave no text for {names}:\n{process.stderr.strip()[-2000:]}")
    answer: list[str] = json.loads(process.stdout)
    return answer


_TYPES = {
    "float32": "float",
    "float16": "float16_t",
    "bfloat16": "bfloat16_t",
    "bool": "bool",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}


def stated(request: Request) -> str:
    """Return what MLX compiles for a request, after its own header."""
    parameters, suffix = [], ""
    for name, dtype, shape in request.inputs:
        size = 1
        for length in shape:
            size *= length
        space, form = "constant" if size < SMALL else "device", "*" if shape else "&"
        parameters.append(f"const {space} {_TYPES[dtype]}{form} {name}")
        suffix += f"_{_TYPES[dtype]}" + ("s" if not shape else "c" if size < SMALL else "")
        if shape:
            parameters += [
                f"const constant {kind} {name}_{word}"
                for word, kind in (("shape", "int*"), ("strides", "int64_t*"), ("ndim", "int&"))
                if f"{name}_{word}" in request.source
            ]
    for name, dtype in request.outputs:
        kind = f"atomic<{_TYPES[dtype]}>" if request.atomic_outputs else _TYPES[dtype]
        parameters.append(f"device {kind}* {name}")
        suffix += f"_{_TYPES[dtype]}"
    bindings = [f"{parameter} [[buffer({slot})]]" for slot, parameter in enumerate(parameters)]
    bindings += [
        f"{kind} {name} [[{name}]]" for name, kind in _ATTRIBUTES.items() if name in request.source
    ]
    types = ", ".join(_TYPES[dtype] for _, dtype in request.template)
    function = f"custom_kernel_{request.name}" + re.sub(r"\W+", "_", f"_<{types}" if types else "")
    function += suffix
    template = ", ".join(f"typename {name}" for name, _ in request.template)
    head = f"template <{template}>\n" if template else ""
    tail = (
        f'template [[host_name("{function}")]] [[kernel]] '
        f"decltype({function}<{types}>) {function}<{types}>;\n"
        if template
        else ""
    )
    lines = ",\n  ".join(bindings)
    return (
        f"{request.header}{head}[[kernel]] void {function}(\n  {lines}) {{\n"
        f"{request.source}\n}}\n\n{tail}"
    )
