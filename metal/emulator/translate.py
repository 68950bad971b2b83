"""Translate the text of a kernel to a C++ program with a C function `run_<name>`.

`cpp` rewrites the few places where Metal is not C++; the call of the kernel follows from its
declaration.
"""

import re

from mlxhog.errors import MetalError
from mlxhog.metal.kernel import TYPES, MetalKernel, amalgamated_source

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# `threadgroup float tile[64];` declares; `threadgroup float* tile` does not.
_VARIABLE = re.compile(
    r"(?:(?<=[{};])|^)(?P<space>\s*)threadgroup\s+(?P<type>[\w:<>]+(?:\s+[\w:<>]+)*)\s+"
    r"(?P<name>\w+)\s*(?P<sizes>(?:\[[^\]]*\]\s*)*);",
    re.MULTILINE,
)
_OTHER_VARIABLE = re.compile(r"\bthreadgroup\s[^;*&(){}]*;")


def cpp(metal: str) -> str:
    """Return a Metal text as C++ for the emulator.

    Threadgroup variables become thread_local: an OS thread runs one threadgroup at a time.

    Raises:
        MetalError: the translation does not support a construct.
    """

    def variable(match: re.Match[str]) -> str:
        name = match["name"]
        return (
            f"{match['space']}static thread_local {match['type']} {name}{match['sizes'].rstrip()}; "
            f"static thread_local ulong {name}_filled_for = 0; "
            f"metal_emulator::poison_once(&{name}, sizeof {name}, {name}_filled_for);"
        )

    # A comment leaves its line ends, so that later lines keep their numbers.
    text = _COMMENT.sub(lambda match: "\n" * match[0].count("\n"), metal)
    text = _VARIABLE.sub(variable, text)
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
    slots = [("*" * one.scalar, f"const {TYPES[one.dtype]}") for one in kernel.inputs]
    slots += [("", TYPES[one.dtype]) for one in kernel.outputs]
    values = [
        f"{value_of}static_cast<{kind}*>(buffers[{slot}])"
        for slot, (value_of, kind) in enumerate(slots)
    ]
    arguments = ",\n      ".join([*values, *(f"self.{each}" for each in kernel.attributes)])
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
