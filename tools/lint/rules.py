"""Rules about what neither the shim, which compiles as C++, nor `tools.address_spaces` rejects.

Source: Metal Shading Language Specification, "C++14 restrictions", "Scalar data types", "Math
functions" and "threadgroup address space"; Metal feature set tables (family Apple7, M1, is the
least): 31 buffers, 32 KiB of threadgroup memory. For accuracy Apple's
`MTLMathFloatingPointFunctions` (fast is the default from macOS 15 on, PyTorch sets it, MLX only
sets `mathMode`) and mlx issue 3592; mlx issue 3492 for the endless loop of a compare-and-swap on
floats that meets a NaN.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tools.lint.text import (
    Function,
    Problem,
    Rule,
    Source,
    Token,
    calls,
    calls_between,
    closing,
    tokens,
)

# -- the language ---------------------------------------------------------------------------------

_FLOATING = re.compile(r"(?!0[xX])(\d[\d']*\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?(\w*)")
_TWO_ACCURACIES = {
    *("acos", "asin", "atan", "atan2", "cos", "cosh", "exp", "exp2", "exp10", "log", "log2"),
    *("log10", "pow", "powr", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh"),
}


def _double(source: Source) -> Iterator[Problem]:
    for token in source.tokens:
        if re.fullmatch(r"double[2-4]?", token.text):
            yield Problem(token.line, f"type {token.text}")


def _literal(source: Source) -> Iterator[Problem]:
    for token in source.tokens:
        match = _FLOATING.fullmatch(token.text)
        if match and match[3] not in ("f", "F", "h", "H"):
            yield Problem(token.line, f"literal {token.text} is a double")


def _recursion(source: Source) -> Iterator[Problem]:
    edges = calls_between(source.visible)
    for function in source.functions:
        reached: set[str] = set()
        waiting = list(edges[function.qualified])
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += edges[name]
        if function.qualified in reached:
            yield Problem(function.line, f"{function.name} calls itself, perhaps through others")


def _lambda(source: Source) -> Iterator[Problem]:
    code = source.tokens
    for index, token in enumerate(code):
        before = code[index - 1].text if index else ""
        subscript = before.isidentifier() and before != "return" or before in ("]", ")")
        if token.text == "[" and not subscript:
            after = closing(code, index) + 1
            if after < len(code) and code[after].text in ("(", "{"):
                yield Problem(token.line, "lambda")


def _attribute(source: Source) -> Iterator[Problem]:
    for token in source.tokens if source.is_header else ():
        if token.text in ("[[", "kernel", "vertex", "fragment"):
            what = "attribute" if token.text == "[[" else f"{token.text} function"
            yield Problem(token.line, f"{what} in a header")


def _macro(source: Source) -> Iterator[Problem]:
    for line in source.directives:
        match = re.match(r"#\s*define\s+(\w+)(\(.*?\))?(.*)", line.text, re.DOTALL)
        if match and match[3].split("//")[0].strip():
            yield Problem(line.line, f"macro {match[1]} with a body")


def _ascii(source: Source) -> Iterator[Problem]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        strange = next((letter for letter in line if not letter.isascii()), None)
        if strange is not None:
            yield Problem(number, f"letter {strange!r}")


def _accuracy(source: Source) -> Iterator[Problem]:
    code = source.tokens
    for index, token in enumerate(code[:-1]):
        if token.text in _TWO_ACCURACIES and code[index + 1].text == "(":
            chosen = code[index - 2].text if index >= 2 and code[index - 1].text == "::" else ""
            if chosen not in ("precise", "fast"):
                yield Problem(token.line, f"{token.text} of an accuracy that is not said")


# -- atomics ------------------------------------------------------------------------------------

_TYPES = re.compile(r"atomic_(float|int|uint|bool|ulong|long)")
_EXCHANGE = re.compile(r"atomic_compare_exchange_\w+")


def _kinds(code: Sequence[Token]) -> Iterator[tuple[int, str]]:
    """Positions of atomic types, and the type of their values."""
    for index, token in enumerate(code):
        match = _TYPES.fullmatch(token.text)
        if match:
            yield index, match[1]
        elif token.text == "atomic" and index + 2 < len(code) and code[index + 1].text == "<":
            yield index, code[index + 2].text


def _elsewhere(source: Source) -> Iterator[Problem]:
    code = source.tokens
    for index, kind in _kinds(code):
        before = index
        if before >= 2 and code[before - 1].text == "::":
            before -= 2
        while before and code[before - 1].text in ("const", "volatile", "coherent"):
            before -= 1
        if not before or code[before - 1].text != "device":
            yield Problem(code[index].line, f"atomic {kind} without device")


def _wide(source: Source) -> Iterator[Problem]:
    for index, kind in _kinds(source.tokens):
        if kind in ("ulong", "long", "uint64_t", "int64_t"):
            yield Problem(source.tokens[index].line, f"atomic {kind}")


def _floats(function: Function) -> set[str]:
    """Names in a function that stand for atomic floats."""
    code = (*function.parameters, Token(";", 0), *function.body)
    names = set()
    for index, kind in _kinds(code):
        if kind != "float":
            continue
        after = index + (4 if code[index].text == "atomic" else 1)
        while after < len(code) and code[after].text in ("*", "&", "const", "thread", "device"):
            after += 1
        if after < len(code) and code[after].text.isidentifier():
            names.add(code[after].text)
        begin = index
        while begin and code[begin - 1].text not in (";", "{", "}"):
            begin -= 1
        statement = code[begin:index]
        if any(token.text == "auto" for token in statement):
            names |= {
                name.text
                for name, sign in zip(statement, statement[1:], strict=False)
                if sign.text == "="
            }
    return names


def _float_exchange(source: Source) -> Iterator[Problem]:
    for function in source.functions:
        floats = _floats(function)
        for index in calls(function.body):
            if not _EXCHANGE.fullmatch(function.body[index].text):
                continue
            arguments = function.body[index + 2 : closing(function.body, index + 1)]
            first = _until_comma(arguments)
            if any(kind == "float" for _, kind in _kinds(first)) or floats & {
                token.text for token in first
            }:
                yield Problem(function.body[index].line, "compare-and-swap on atomic_float")


def _until_comma(arguments: Sequence[Token]) -> Sequence[Token]:
    depth = 0
    for index, token in enumerate(arguments):
        depth += (token.text in "([{") - (token.text in ")]}")
        if token.text == "," and depth == 0:
            return arguments[:index]
    return arguments


def _unbounded(source: Source) -> Iterator[Problem]:
    exchanging = _exchanging(source.visible)
    for function in source.functions:
        for header, extent in _loops(function.body):
            tries = [
                function.body[index]
                for index in calls(function.body)
                if index in extent
                and (
                    function.body[index].text in exchanging
                    or _EXCHANGE.fullmatch(function.body[index].text)
                )
            ]
            if tries and not _counts(header):
                yield Problem(tries[0].line, f"loop around {tries[0].text} without a bound")


def _exchanging(visible: Sequence[Function]) -> set[str]:
    """Functions that compare and swap, themselves or through others."""
    names: set[str] = set()
    while True:
        more = {
            function.name
            for function in visible
            if function.called & names or any(map(_EXCHANGE.fullmatch, function.called))
        }
        if more <= names:
            return names
        names |= more


def _loops(body: Sequence[Token]) -> Iterator[tuple[Sequence[Token], range]]:
    """Each loop of a function: its condition in parentheses with the keyword, and its extent."""
    for index, token in enumerate(body):
        if token.text in ("for", "while") and body[index + 1].text == "(":
            end = closing(body, index + 1)
            yield body[index:end], range(index, _statement_end(body, end + 1))
        elif token.text == "do":
            yield body[index : index + 1], range(index, _statement_end(body, index + 1))


def _statement_end(body: Sequence[Token], start: int) -> int:
    if start < len(body) and body[start].text == "{":
        return closing(body, start)
    depth = 0
    for index in range(start, len(body)):
        depth += (body[index].text in ("(", "{")) - (body[index].text in (")", "}"))
        if body[index].text in (";", "}") and depth == 0:
            return index
    return len(body)


def _counts(header: Sequence[Token]) -> bool:
    """Whether it is `for (...; i < bound; ++i)`, whatever else the condition asks for."""
    words = [token.text for token in header]
    if words[0] != "for" or words.count(";") != 2:
        return False
    first = words.index(";")
    second = words.index(";", first + 1)
    condition, step = words[first + 1 : second], words[second + 1 :]
    counters = {word for word in step if word.isidentifier()}
    moves = any(sign in step for sign in ("++", "--", "+=", "-="))
    compares = any(
        name in counters and sign in ("<", "<=", "!=", ">", ">=")
        for name, sign in zip(condition, condition[1:], strict=False)
    )
    return moves and compares and "||" not in condition


# -- limits of a kernel --------------------------------------------------------------------------

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
    Rule("double", "Metal has no 64-bit floats", "use float", _double),
    Rule("literal", "Metal has no 64-bit floats", "write the suffix f", _literal),
    Rule("recursion", "a GPU thread has no call stack", "write a loop", _recursion),
    Rule("lambda", "Metal has lambdas only since 4.1", "write a function", _lambda),
    Rule(
        "attribute",
        "MLX puts headers before a kernel of its own, which already has the attributes",
        "take the value as an argument and read the attribute in the .metal file",
        _attribute,
    ),
    Rule(
        "accuracy",
        "MLX leaves it to Metal, which takes the fast variant",
        "write precise::, or fast:: where a few digits do",
        _accuracy,
    ),
    Rule(
        "ascii",
        "MLX and PyTorch hand the text to Metal as ASCII, and another letter leaves none of it",
        "spell it out, in comments too",
        _ascii,
    ),
    Rule(
        "macro",
        "these checks and the coverage count read the text before macros are expanded",
        "write a function or a constexpr constant",
        _macro,
    ),
    Rule(
        "atomic space",
        "atomic floats exist in device memory only, and ours are never anywhere else",
        "make it `device atomic_...*`, and reduce inside a group with simd_sum and barriers",
        _elsewhere,
    ),
    Rule("atomic width", "M1 has no 64-bit atomics", "use two 32-bit words", _wide),
    Rule(
        "float exchange",
        "floats are compared as floats, so a NaN never equals itself and the loop never ends",
        "use atomic_fetch_add_explicit, or compare the bits in an atomic_uint",
        _float_exchange,
    ),
    Rule(
        "unbounded exchange",
        "a loop that does not end hangs the whole GPU",
        "write for (uint i = 0; i < 64; ++i), and count a failure after it",
        _unbounded,
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
