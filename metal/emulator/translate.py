"""Translate the text of a kernel to a C++ program with a C function `run_<name>`.

`cpp` rewrites the few places where Metal is not C++; the call of the kernel follows from its
declaration.
"""

import re

from mlxhog.errors import MetalError
from mlxhog.metal.kernel import TYPES, MetalKernel, amalgamated_source

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# `threadgroup float tile[64];` declares; `threadgroup float* tile` does not.
_VARIABLE = re.compile(
    r"(?P<before>[{};]|^)(?P<space>\s*)threadgroup\s+(?P<type>[\w:<>]+(?:\s+[\w:<>]+)*)\s+"
    r"(?P<name>\w+)\s*(?P<sizes>(?:\[[^\]]*\]\s*)*);",
    re.MULTILINE,
)
_OTHER_VARIABLE = re.compile(r"\bthreadgroup\s[^;*&(){}]*;")


def empty_lines(match: re.Match[str]) -> str:
    """Return the line ends of a match, so that later lines keep their numbers."""
    return "\n" * match[0].count("\n")


def cpp(metal: str) -> str:
    """Return a Metal text as C++ for the emulator.

    Threadgroup variables become thread_local: an OS thread runs one threadgroup at a time.

    Raises:
        MetalError: the translation does not support a construct.
    """

    def variable(match: re.Match[str]) -> str:
        name = match["name"]
        return (
            f"{match['before']}{match['space']}"
            f"static thread_local {match['type']} {name}{match['sizes'].rstrip()}; "
            f"static thread_local ulong {name}_filled_for = 0; "
            f"metal_emulator::poison_once(&{name}, sizeof {name}, {name}_filled_for);"
        )

    text = COMMENT.sub(empty_lines, metal)
    while (rewritten := _VARIABLE.sub(variable, text)) != text:  # neighbors share a semicolon
        text = rewritten
    if (other := _OTHER_VARIABLE.search(text)) is not None:
        raise MetalError(
            f"`{other[0]}` is not understood by the emulator; declare one threadgroup variable "
            "in a statement, with its type, its name and its sizes"
        )
    return f'#include "shim/launch.h"\n{text}'


def program(kernel: MetalKernel, instance: str = "") -> str:
    """Return the C++ program of a kernel, which exports `run_<entry>`.

    Raises:
        MetalError: the translation does not support a construct.
    """
    name = kernel.entry(instance)
    buffers = [
        *(("&" if one.scalar else "*", f"const {TYPES[one.dtype]}") for one in kernel.inputs),
        *(("*", TYPES[one.dtype]) for one in kernel.outputs),
    ]
    arguments = ",\n      ".join(
        [
            f"{'*' if form == '&' else ''}static_cast<{kind}*>(buffers[{slot}])"
            for slot, (form, kind) in enumerate(buffers)
        ]
        + [f"self.{attribute}" for attribute in kernel.attributes]
    )
    return f"""\
{cpp(amalgamated_source(kernel, instance, lines=True))}
#line 1 "call of the kernel"
static void body_{name}(void* const* buffers, const metal_emulator::Thread& self) {{
  {name}(
      {arguments});
}}
extern "C" int run_{name}(void* const* buffers, const metal_emulator::Launch* launch) {{
  return metal_emulator::run(body_{name}, buffers, *launch);
}}
"""
