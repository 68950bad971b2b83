"""MLX's wrapper, stated by ourselves: for machines without MLX, and to notice when MLX changes it.

A test holds this equal to what MLX prints, white space aside.
Source: the text `mx.fast.metal_kernel` prints with `verbose`, MLX 0.32.
"""

from __future__ import annotations

import re

from mlxhog.metal.host.request import SMALL, Request

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


def text(request: Request) -> str:
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
    bound = [f"{parameter} [[buffer({slot})]]" for slot, parameter in enumerate(parameters)]
    bound += [
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
    listed = ",\n  ".join(bound)
    return (
        f"{request.header}{head}[[kernel]] void {function}(\n  {listed}) {{\n"
        f"{request.source}\n}}\n\n{tail}"
    )
