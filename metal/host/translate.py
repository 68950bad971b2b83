"""Translate Metal text to C++ programs, for both consumers: MLX and PyTorch.

`kernels` finds the kernels of a text with their parameters; `library` rewrites the few places where
Metal is not C++. `CONSUMERS` has the text that each framework would compile.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlxhog.errors import MetalError
from mlxhog.metal.host import mlx_text
from mlxhog.metal.kernel import Kernel, read_source

_KERNEL = re.compile(r"(template\s*<[^>]*>\s*)?(?:\[\[kernel\]\]|\bkernel)\s+void\s+(\w+)\s*\(")
_PARAMETER = re.compile(r"(?P<type>.+?)\s*(?P<name>\w+)\s*\[\[(?P<attribute>[^\]]+)\]\]", re.DOTALL)
_BUFFER = re.compile(r"buffer\((\d+)\)")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# template [[host_name("f_half")]] [[kernel]] decltype(f<half>) f<half>;
INSTANTIATION = re.compile(
    r'template\s*\[\[host_name\("(?P<name>\w+)"\)\]\]\s*\[\[kernel\]\]\s*'
    r"decltype\((?P<function>(?P<template>\w+)[^;]*)\)\s*(?P=function)\s*;"
)


@dataclass(frozen=True)
class KernelParameter:
    """One parameter of a kernel.

    Attributes:
        type: its type in the text, without `*` or `&`: "const device float".
        name: its name in the text.
        form: "*" (array), "&" (one value) or "" (a value that Metal sets for each thread).
        attribute: "buffer", or an attribute such as "thread_position_in_grid".
        slot: index of the buffer, -1 for an attribute.
    """

    type: str
    name: str
    form: str
    attribute: str
    slot: int = -1


@dataclass(frozen=True)
class Signature:
    """A kernel that can be launched.

    Attributes:
        name: the name by which a framework finds it.
        function: its C++ name: the name, or a template with its arguments.
        parameters: its parameters, in order.
    """

    name: str
    function: str
    parameters: tuple[KernelParameter, ...]

    @property
    def buffers(self) -> tuple[KernelParameter, ...]:
        """Parameters that the host passes, by slot."""
        return tuple(
            sorted(
                (p for p in self.parameters if p.slot >= 0), key=lambda parameter: parameter.slot
            )
        )


def empty_lines(match: re.Match[str]) -> str:
    """Return the line ends of a match, so that later lines keep their numbers."""
    return "\n" * match[0].count("\n")


def kernels(text: str) -> dict[str, Signature]:
    """Find the kernels of a Metal text by name: functions, and instances of function templates.

    Raises:
        MetalError: a parameter has no attribute.
    """
    text = COMMENT.sub("", text)
    signatures, templates = {}, {}
    for match in _KERNEL.finditer(text):
        name = match[2]
        parameters = tuple(_parsed(part, name) for part in _parts(text, match.end()))
        if match[1]:
            templates[name] = parameters
        else:
            signatures[name] = Signature(name, name, parameters)
    for match in INSTANTIATION.finditer(text):
        name = match["name"]
        signatures[name] = Signature(name, match["function"], templates[match["template"]])
    return signatures


def _parts(text: str, start: int) -> list[str]:
    """Split the parameter list that begins at `start`, just after its parenthesis."""
    parts, depth, begin = [], 0, start
    for at in range(start, len(text)):
        character = text[at]
        if character == ")" and depth == 0:
            parts.append(text[begin:at])
            break
        depth += (character in "(<[") - (character in ")>]")
        if character == "," and depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
    return [part for part in parts if part.strip()]


def _parsed(part: str, kernel: str) -> KernelParameter:
    match = _PARAMETER.fullmatch(part.strip())
    if match is None:
        raise MetalError(
            f"parameter `{part.strip()}` of kernel {kernel} has no attribute; "
            "write [[buffer(0)]], or an attribute such as [[thread_position_in_grid]]"
        )
    kind = match["type"].strip()
    form = kind[-1] if kind[-1] in "*&" else ""
    buffer = _BUFFER.fullmatch(match["attribute"])
    return KernelParameter(
        type=kind.removesuffix(form).strip() if form else kind,
        name=match["name"],
        form=form,
        attribute="buffer" if buffer else match["attribute"],
        slot=int(buffer[1]) if buffer else -1,
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
        metal: the whole text, including our own headers.
        mlx: whether to begin with MLX's own header.

    Raises:
        MetalError: the translation does not support a construct.
    """
    signatures = kernels(metal)
    text = INSTANTIATION.sub(empty_lines, _threadgroup(COMMENT.sub(empty_lines, metal)))
    exports = "\n".join(_export(signature) for signature in signatures.values())
    prelude = _PRELUDE + (_MLX_PRELUDE if mlx else "")
    return f'{prelude}{text}\n#line 1 "calls of the kernels"\n{exports}'


def _threadgroup(metal: str) -> str:
    """Make threadgroup variables thread_local: an OS thread runs one threadgroup at a time."""

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
    if (other := _OTHER_VARIABLE.search(text)) is not None:
        raise MetalError(
            f"`{other[0]}` is not understood by the host shim; declare one threadgroup variable "
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


def _argument(parameter: KernelParameter) -> str:
    if parameter.slot < 0:
        return f"self.{parameter.attribute}"
    pointer = f"static_cast<{parameter.type}*>(buffers[{parameter.slot}])"
    return pointer if parameter.form == "*" else f"*{pointer}"


@dataclass(frozen=True)
class Program:
    """The program that a framework compiles.

    Attributes:
        name: name of its file.
        text: the program as C++.
        signature: signature of the requested kernel.
    """

    name: str
    text: str
    signature: Signature


def mlx(kernel: Kernel, instance: str, cache: Path) -> Program:
    """The program of MLX, which wraps one call into a kernel; without MLX from `stated`.

    Raises:
        MetalError: MLX refuses the kernel.
    """
    request = mlx_text.request_of(kernel, instance)
    if mlx_text.mlx_version():
        text = mlx_text.captured([request], cache)[0]
    else:
        text = mlx_text.stated(request)
    (signature,) = kernels(text).values()
    header = read_source(kernel.header, lines=True)  # with the origin of each line
    wrapper = f'#line 1 "MLX kernel {kernel.name}"\n{text.removeprefix(request.header)}'
    return Program(
        name=f"{kernel.name}-{instance}".rstrip("-"),
        text=library(header + wrapper, mlx=True),
        signature=signature,
    )


def mps(kernel: Kernel, instance: str, _cache: Path) -> Program:
    """The program of PyTorch, which compiles a file of whole kernels and finds them by name.

    Raises:
        MetalError: the file has no such kernel.
    """
    file = str(Path(kernel.header).with_suffix(".metal"))
    text = read_source(file, lines=True)
    name, signatures = f"{kernel.name}_{instance}".rstrip("_"), kernels(text)
    if name not in signatures:
        raise MetalError(f"{file} has no kernel {name}; it has {', '.join(signatures)}")
    return Program(Path(file).stem, library(text), signatures[name])


CONSUMERS: dict[str, Callable[[Kernel, str, Path], Program]] = {"mlx": mlx, "mps": mps}
