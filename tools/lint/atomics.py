"""Rules about atomics: what every Apple GPU has, and what cannot hang one.

Source: Metal feature set tables (family Apple7, M1, is the least); mlx issue 3492 for the endless
loop of a compare-and-swap on floats that meets a NaN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tools.lint.text import Function, Problem, Rule, Source, Token, calls, closing

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
            space = code[before - 1].text if before else ""
            where = f"in {space} memory" if space in ("threadgroup", "thread") else "without device"
            yield Problem(code[index].line, f"atomic {kind} {where}")


def _wide(source: Source) -> Iterator[Problem]:
    for index, kind in _kinds(source.tokens):
        if kind in ("ulong", "long", "uint64_t", "int64_t"):
            yield Problem(source.tokens[index].line, f"atomic {kind}")


def _order(source: Source) -> Iterator[Problem]:
    for token in source.tokens:
        if token.text.startswith("memory_order") and token.text != "memory_order_relaxed":
            yield Problem(token.line, token.text)
        elif token.text == "atomic_thread_fence":
            yield Problem(token.line, "atomic_thread_fence")


def _strong(source: Source) -> Iterator[Problem]:
    for token in source.tokens:
        if token.text.startswith("atomic_compare_exchange_strong"):
            yield Problem(token.line, "strong compare-and-swap")


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


RULES = (
    Rule(
        "atomic space",
        "atomic floats exist in device memory only, and ours are never anywhere else",
        "make it `device atomic_...*`, and reduce inside a group with simd_sum and barriers",
        _elsewhere,
    ),
    Rule("atomic width", "M1 has no 64-bit atomics", "use two 32-bit words", _wide),
    Rule(
        "memory order",
        "Metal orders nothing before 3.2 but by barriers and the end of a kernel",
        "use memory_order_relaxed and a launch of its own for what must come later",
        _order,
    ),
    Rule(
        "strong exchange",
        "Metal has the weak form only",
        "use atomic_compare_exchange_weak_explicit in a loop with a bound",
        _strong,
    ),
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
)
