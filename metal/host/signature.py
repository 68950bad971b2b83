"""The kernels in a Metal text: their names, and their parameters with what each is bound to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlxhog.errors import MetalError

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
class Parameter:
    """One parameter of a kernel.

    Attributes:
        type: as written, without `*` or `&`: "const device float".
        name: as written.
        form: "*" (array), "&" (one value) or "" (what Metal tells the thread).
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
        name: by which a framework finds it.
        function: how C++ calls it: the name, or a template with its arguments.
        parameters: in order.
    """

    name: str
    function: str
    parameters: tuple[Parameter, ...]

    @property
    def buffers(self) -> tuple[Parameter, ...]:
        """Parameters that the host passes, by slot."""
        return tuple(
            sorted(
                (p for p in self.parameters if p.slot >= 0), key=lambda parameter: parameter.slot
            )
        )


def empty_lines(match: re.Match[str]) -> str:
    """Return as many line ends as were matched, so that later lines keep their numbers."""
    return "\n" * match[0].count("\n")


def kernels(text: str) -> dict[str, Signature]:
    """Find the kernels of a Metal text by name: functions, and instances of function templates.

    Raises:
        MetalError: a parameter has no attribute.
    """
    text = COMMENT.sub("", text)
    found, templates = {}, {}
    for match in _KERNEL.finditer(text):
        name = match[2]
        parameters = tuple(_parsed(part, name) for part in _parts(text, match.end()))
        if match[1]:
            templates[name] = parameters
        else:
            found[name] = Signature(name, name, parameters)
    for match in INSTANTIATION.finditer(text):
        name = match["name"]
        found[name] = Signature(name, match["function"], templates[match["template"]])
    return found


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


def _parsed(part: str, kernel: str) -> Parameter:
    match = _PARAMETER.fullmatch(part.strip())
    if match is None:
        raise MetalError(
            f"parameter `{part.strip()}` of kernel {kernel} has no attribute; "
            "write [[buffer(0)]], or what Metal shall tell the thread"
        )
    kind = match["type"].strip()
    form = kind[-1] if kind[-1] in "*&" else ""
    buffer = _BUFFER.fullmatch(match["attribute"])
    return Parameter(
        type=kind.removesuffix(form).strip() if form else kind,
        name=match["name"],
        form=form,
        attribute="buffer" if buffer else match["attribute"],
        slot=int(buffer[1]) if buffer else -1,
    )
