"""Rules about the limits of a kernel: buffers, threadgroup memory, names.

Source: Metal feature set tables: 31 buffers, 32 KiB of threadgroup memory; MSL specification,
"threadgroup address space": variables only in kernels.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tools.lint.text import Problem, Rule, Source, Token, tokens

BUFFERS = 31
THREADGROUP_BYTES = 32 * 1024
_BYTES = {
    **dict.fromkeys(("char", "uchar", "bool", "int8_t", "uint8_t"), 1),
    **dict.fromkeys(("half", "bfloat", "short", "ushort", "int16_t", "uint16_t"), 2),
    **dict.fromkeys(("float", "int", "uint", "half2", "bfloat2", "int32_t", "uint32_t"), 4),
    **dict.fromkeys(("float2", "int2", "uint2", "half4", "ulong", "long"), 8),
    **dict.fromkeys(("float4", "int4", "uint4"), 16),
}
_QUALIFIER = re.compile(r"\w+ :: ")
_SUFFIX = re.compile(r"\b(\d+)[uU]\b")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
}


@dataclass(frozen=True)
class _Shared:
    """A threadgroup variable: where, of which type, with how many elements in each dimension."""

    index: int
    line: int
    type: str
    name: str
    sizes: tuple[Sequence[Token], ...]


def _shared(code: Sequence[Token]) -> Iterator[_Shared]:
    """Find declarations such as `threadgroup float tile[4][8];`, not pointers to such memory."""
    for index, token in enumerate(code):
        if token.text != "threadgroup" or index + 2 >= len(code):
            continue
        kind, name = index + 1, index + 2
        if not (code[kind].text.isidentifier() and code[name].text.isidentifier()):
            continue
        after, sizes = name + 1, []
        while after < len(code) and code[after].text == "[":
            end = next(i for i in range(after, len(code)) if code[i].text == "]")
            sizes.append(code[after + 1 : end])
            after = end + 1
        if after < len(code) and code[after].text in (";", ",", "="):
            yield _Shared(index, token.line, code[kind].text, code[name].text, tuple(sizes))


def _scope(source: Source) -> Iterator[Problem]:
    in_kernels = {
        token
        for function in source.functions
        if function.is_kernel
        for token in function.body
        if token.text == "threadgroup"
    }
    for shared in _shared(source.tokens):
        if source.tokens[shared.index] not in in_kernels:
            yield Problem(shared.line, f"threadgroup variable {shared.name} outside a kernel")


def constants(text: str) -> dict[str, int]:
    """Values of the integers that a text defines, constexpr or in an enum."""
    values: dict[str, int] = {}
    code = tokens(text)
    for index, token in enumerate(code):
        if token.text != "=" or not index or not code[index - 1].text.isidentifier():
            continue
        begin = _back(code, index, (";", "{", "}"))
        opening = _back(code, begin - 1, (";", "{", "}")) if begin else 0
        of_enum = any(item.text == "enum" for item in code[opening:begin])
        if of_enum or any(item.text == "constexpr" for item in code[begin:index]):
            ends = (";", "}", ",") if of_enum else (";",)
            end = next((i for i in range(index, len(code)) if code[i].text in ends), len(code))
            value = _value(code[index + 1 : end], values)
            if value is not None:
                values[code[index - 1].text] = value
    return values


def _back(code: Sequence[Token], index: int, signs: Sequence[str]) -> int:
    """Position after the last of these signs before `index`."""
    while index > 0 and code[index - 1].text not in signs:
        index -= 1
    return index


def _value(expression: Sequence[Token], known: Mapping[str, int]) -> int | None:
    """An integer expression of numbers and constants; None where it cannot be read."""
    words = _QUALIFIER.sub("", " ".join(token.text for token in expression))
    try:
        return _evaluate(ast.parse(_SUFFIX.sub(r"\1", words), mode="eval").body, known)
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError):
        return None


def _evaluate(node: ast.expr, known: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.BinOp):
        return int(
            _OPERATORS[type(node.op)](_evaluate(node.left, known), _evaluate(node.right, known))
        )
    raise TypeError(node)


def _memory(source: Source) -> Iterator[Problem]:
    constant = constants(source.included + source.text)
    for function in source.functions:
        if not function.is_kernel:
            continue
        total = 0
        for shared in _shared(function.body):
            size: int | None = _BYTES.get(shared.type)
            for dimension in shared.sizes:
                count = _value(dimension, constant)
                size = None if count is None or size is None else size * count
            if size is None:
                yield Problem(shared.line, f"threadgroup variable {shared.name} of unknown size")
            total += size or 0
        if total > THREADGROUP_BYTES:
            yield Problem(function.line, f"{total} bytes of threadgroup memory in {function.name}")


def _buffers(source: Source) -> Iterator[Problem]:
    for function in source.functions:
        words = [token.text for token in function.parameters]
        slots = [int(words[i + 2]) for i, word in enumerate(words) if word == "buffer"]
        if any(slot >= BUFFERS for slot in slots):
            yield Problem(function.line, f"buffer {max(slots)} in {function.name}")
        if len(slots) != len(set(slots)):
            yield Problem(function.line, f"two arguments of one buffer in {function.name}")


def _name(source: Source) -> Iterator[Problem]:
    seen: set[str] = set()
    for function in source.functions:
        if function.is_kernel and function.name in seen:
            yield Problem(function.line, f"a second kernel {function.name}")
        seen |= {function.name} if function.is_kernel else set()


RULES = (
    Rule(
        "threadgroup scope",
        "Metal allows it in kernels only",
        "declare it in Kernel.source and in the .metal kernel, and pass a pointer",
        _scope,
    ),
    Rule(
        "threadgroup memory",
        f"an Apple GPU has {THREADGROUP_BYTES} bytes for a group",
        "use smaller tiles, of sizes that are numbers or constexpr integers",
        _memory,
    ),
    Rule("buffers", f"Metal has {BUFFERS} slots, each for one", "pack arguments", _buffers),
    Rule("kernel name", "PyTorch calls kernels by name", "rename one", _name),
)
