"""From Metal text to the C++ text of a library: the few places where Metal is not C++."""

from __future__ import annotations

import re

from mlxhog.errors import MetalError
from mlxhog.metal.host.signature import (
    COMMENT,
    INSTANTIATION,
    Parameter,
    Signature,
    empty_lines,
    kernels,
)

# `threadgroup float tile[64];` declares; `threadgroup float* tile` does not.
_VARIABLE = re.compile(
    r"(?P<before>[{};]|^)(?P<space>\s*)threadgroup\s+(?P<type>[\w:<>]+(?:\s+[\w:<>]+)*)\s+"
    r"(?P<name>\w+)\s*(?P<sizes>(?:\[[^\]]*\]\s*)*);",
    re.MULTILINE,
)
_OTHER_VARIABLE = re.compile(r"\bthreadgroup\s[^;*&(){}]*;")
_MLX_PRELUDE = '#include "shim/mlx_prelude.h"\n'
_PRELUDE = '#include "shim/launch.h"\n'


def library(metal: str, *, mlx: bool = False) -> str:
    """Translate a Metal text, and export a C function `run_<name>` for each of its kernels.

    Args:
        metal: whole text, own headers included.
        mlx: begin with what MLX puts before every text.

    Raises:
        MetalError: a construct that this translation does not know.
    """
    found = kernels(metal)
    text = INSTANTIATION.sub(empty_lines, _threadgroup(COMMENT.sub(empty_lines, metal)))
    exports = "\n".join(_export(signature) for signature in found.values())
    prelude = _PRELUDE + (_MLX_PRELUDE if mlx else "")
    return f'{prelude}{text}\n#line 1 "calls of the kernels"\n{exports}'


def _threadgroup(metal: str) -> str:
    """Give every OS thread its own threadgroup variables: it runs one threadgroup at a time."""

    def variable(match: re.Match[str]) -> str:
        name = match["name"]
        return (
            f"{match['before']}{match['space']}"
            f"static thread_local {match['type']} {name}{match['sizes'].rstrip()}; "
            f"static thread_local ulong {name}_filled_for = 0; "
            f"metal_host::poison_once(&{name}, sizeof {name}, {name}_filled_for);"
        )

    text = metal
    while (rewritten := _VARIABLE.sub(variable, text)) != text:  # neighbours share a semicolon
        text = rewritten
    if (left := _OTHER_VARIABLE.search(text)) is not None:
        raise MetalError(
            f"`{left[0]}` is not understood by the host shim; declare one threadgroup variable "
            "in a statement, with its type, its name and its sizes"
        )
    return text


def _export(signature: Signature) -> str:
    arguments = ",\n      ".join(_argument(parameter) for parameter in signature.parameters)
    return f"""\
static void body_{signature.name}(void* const* buffers, const metal_host::Thread& self) {{
  {signature.function}(
      {arguments});
}}
extern "C" int run_{signature.name}(void* const* buffers, const metal_host::Launch* launch) {{
  return metal_host::run(body_{signature.name}, buffers, *launch);
}}
"""


def _argument(parameter: Parameter) -> str:
    if parameter.slot < 0:
        return f"self.{parameter.attribute}"
    pointer = f"static_cast<{parameter.type}*>(buffers[{parameter.slot}])"
    return pointer if parameter.form == "*" else f"*{pointer}"
