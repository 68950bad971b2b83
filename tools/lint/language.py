"""Rules about what the Metal Shading Language lacks, or what a check of ours could not see.

Source: Metal Shading Language Specification, "C++14 restrictions", "Scalar data types" and "Math
functions"; for accuracy Apple's `MTLMathFloatingPointFunctions` (fast is the default from macOS 15
on, PyTorch sets it, MLX only sets `mathMode`) and mlx issue 3592.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.lint.text import Problem, Rule, Source, calls_between, closing

_FLOATING = re.compile(r"(?!0[xX])(\d[\d']*\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?(\w*)")
_LACKING = {
    "virtual": "virtual function",
    "new": "operator new",
    "delete": "operator delete",
    "try": "exception",
    "catch": "exception",
    "throw": "exception",
    "dynamic_cast": "run-time type",
    "typeid": "run-time type",
    "thread_local": "thread_local variable",
    "goto": "goto",
    "asm": "inline assembly",
}
_VALUES = {
    *("bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "size_t"),
    *("half", "bfloat", "float", "half2", "bfloat2", "T"),
    *(f"{kind}{n}" for kind in ("float", "uint", "int") for n in (2, 3, 4)),
}
_TWO_ACCURACIES = {
    *("acos", "asin", "atan", "atan2", "cos", "cosh", "exp", "exp2", "exp10", "log", "log2"),
    *("log10", "pow", "powr", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh"),
}
_COMPONENTS = re.compile(r"[xyzw]{2,4}|[rgba]{2,4}")


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


def _function_pointer(source: Source) -> Iterator[Problem]:
    names = {function.name for function in source.visible}
    code = source.tokens
    for index, token in enumerate(code):
        ahead = [item.text for item in code[index : index + 5]] + [""] * 4
        if ahead[:2] == ["(", "*"] and ahead[3:5] == [")", "("] and ahead[2].isidentifier():
            yield Problem(token.line, f"function pointer {ahead[2]}")
        address = token.text == "&" and code[index - 1].text in ("(", ",", "=", "return")
        if address and ahead[1] in names:
            yield Problem(token.line, f"address of function {ahead[1]}")


def _lambda(source: Source) -> Iterator[Problem]:
    code = source.tokens
    for index, token in enumerate(code):
        before = code[index - 1].text if index else ""
        subscript = before.isidentifier() and before != "return" or before in ("]", ")")
        if token.text == "[" and not subscript:
            after = closing(code, index) + 1
            if after < len(code) and code[after].text in ("(", "{"):
                yield Problem(token.line, "lambda")


def _feature(source: Source) -> Iterator[Problem]:
    for index, token in enumerate(source.tokens[:-1]):
        if token.text in _LACKING:
            yield Problem(token.line, _LACKING[token.text])
        if token.text == "std" and source.tokens[index + 1].text == "::":
            yield Problem(token.line, "the C++ standard library")


def _swizzle(source: Source) -> Iterator[Problem]:
    for before, token in zip(source.tokens, source.tokens[1:], strict=False):
        if before.text == "." and _COMPONENTS.fullmatch(token.text):
            yield Problem(token.line, f"swizzle .{token.text}")


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


def _address_space(source: Source) -> Iterator[Problem]:
    code = source.tokens
    for index, token in enumerate(code[:-1]):
        if token.text not in _VALUES or code[index + 1].text not in ("*", "&"):
            continue
        before = index
        if code[before - 1].text == "::":
            before -= 2
        while before and code[before - 1].text in ("const", "volatile"):
            before -= 1
        spaces = {code[before - 1].text if before else "", code[index + 2].text}
        if not spaces & {"device", "constant", "threadgroup", "thread"}:
            what = "pointer" if code[index + 1].text == "*" else "reference"
            yield Problem(token.line, f"{what} to {token.text} without address space")


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


RULES = (
    Rule("double", "Metal has no 64-bit floats", "use float", _double),
    Rule("literal", "Metal has no 64-bit floats", "write the suffix f", _literal),
    Rule("recursion", "a GPU thread has no call stack", "write a loop", _recursion),
    Rule(
        "function pointer",
        "Metal calls only what it can inline",
        "call the function, or make it a template argument",
        _function_pointer,
    ),
    Rule("lambda", "Metal has lambdas only since 4.1", "write a function", _lambda),
    Rule(
        "address space",
        "Metal has no generic pointers",
        "say device, constant, threadgroup or thread",
        _address_space,
    ),
    Rule("feature", "Metal leaves it out of C++", "use plain functions and structs", _feature),
    Rule(
        "swizzle",
        "the stand-in headers have plain structs",
        "name the components one by one",
        _swizzle,
    ),
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
)
