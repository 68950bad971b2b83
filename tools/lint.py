"""Rejects what Metal forbids, and what our kernels must not do, before any compiler sees it.

    python -m tools.lint [FILE...]        all kernels by default

The rules are about what neither the emulator, which compiles as C++, nor `tools.address_spaces`
rejects. A rule is a name, a reason, a way out and a function that yields the offences of a text.
They search a text without comments, strings and preprocessor lines (the rule `macro` sees to it
that these hide no code), and as much of the language is read as they need: a function is found
where a `{` at namespace or struct scope follows `name(...)`.

Source: Metal Shading Language Specification, "C++14 restrictions", "Scalar data types", "Math
functions" and "threadgroup address space"; Metal feature set tables (family Apple7, M1, is the
least): 32 KiB of threadgroup memory. For accuracy Apple's
`MTLMathFloatingPointFunctions` (fast is the default from macOS 15 on, PyTorch sets it, MLX only
sets `mathMode`) and mlx issue 3592; for the endless loop of a compare-and-swap mlx issue 3492.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from mlxhog.metal.kernel import amalgamated_source, read_source
from mlxhog.metal.registry import instances
from tools import dump

KERNELS = Path(__file__).parents[1] / "metal" / "kernels"

Problem = tuple[int, str]
"""A line, and the fault in it."""

# -- what the rules see of a text ------------------------------------------------------------------

_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\\\n]|\\\n|\\.)*", re.MULTILINE)
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_BRACKET = re.compile(r"[()\[\]{}]")
_ASIDE = re.compile(r"\[\[.*?\]\]|<(?:[^<>;{}]|<[^<>;{}]*>)*>", re.DOTALL)  # attributes, templates
_NAMED = re.compile(r"(operator\s*[^\s\w(]+|(?!decltype\b|alignas\b)\b[A-Za-z_]\w*)\s*\(")
_SCOPE = re.compile(r"\b(?:namespace|struct|class|union|extern)\b\s*(\w*)")
_CALL = re.compile(
    r"\b(?!(?:if|for|while|switch|return|sizeof|decltype|static_assert)\b)([A-Za-z_]\w*)\s*"
    r"(?:<(?:[^<>;{}&|]|<[^<>;{}&|]*>)*>\s*)?\("
)


def _blank(pattern: re.Pattern[str], text: str) -> str:
    """Replace what a pattern finds by spaces; line ends stay."""
    return pattern.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def _pairs(code: str) -> dict[int, int]:
    """Return the place of each opening bracket, and that of the bracket that closes it."""
    pairs, opened = dict[int, int](), list[int]()
    for bracket in _BRACKET.finditer(code):
        if bracket[0] in "([{":
            opened.append(bracket.start())
        elif opened:
            pairs[opened.pop()] = bracket.start()
    return pairs | dict.fromkeys(opened, len(code))


@dataclass(frozen=True)
class Function:
    """A function's definition."""

    name: str  # without its namespace or struct
    scope: str  # the namespaces and structs around it, "a::b"
    line: int  # of the name
    is_kernel: bool  # a GPU runs it, in place of another function
    parameters: str  # text between the parentheses
    body: str  # text between the braces
    first_line: int  # of the body

    @property
    def qualified(self) -> str:
        """The name with its scope."""
        return f"{self.scope}::{self.name}" if self.scope else self.name

    @cached_property
    def called(self) -> frozenset[str]:
        """Names in the body before `(` or `<...>(`: functions, casts and constructors."""
        return frozenset(call[1] for call in _CALL.finditer(self.body))

    def problem(self, at: int, what: str) -> Problem:
        """Return a problem at a place of the body."""
        return self.first_line + self.body.count("\n", 0, at), what


@cache
def functions(text: str) -> tuple[Function, ...]:
    """Return the functions that a text defines, in its order, kernels among them."""
    return tuple(_functions(_blank(_DIRECTIVE, _blank(_COMMENT, text))))


def _functions(code: str) -> Iterator[Function]:
    pairs, scopes, start, at = _pairs(code), list[str](), 0, 0
    while mark := re.compile(r"[(\[{};]").search(code, at):
        at = mark.start()
        if mark[0] in "([":
            at = pairs[at]
        elif mark[0] == "}":
            del scopes[-1:]
        elif mark[0] == "{":
            head, end = _blank(_ASIDE, code[start:at]), pairs[at]
            named, scope = _NAMED.search(head), _SCOPE.search(head)
            if named and "=" not in head[: named.start()]:
                opened = start + named.end() - 1
                yield Function(
                    re.sub(r"\s", "", named[1]),
                    "::".join(filter(None, scopes)),
                    code.count("\n", 0, start + named.start()) + 1,
                    re.search(r"\bkernel\b", code[start:at]) is not None,
                    code[opened + 1 : pairs[opened]],
                    code[at + 1 : end],
                    code.count("\n", 0, at) + 1,
                )
                at = end
            elif scope:
                scopes.append(scope[1])
            else:
                at = end  # of an initializer
        at += 1
        if mark[0] not in "([":
            start = at


def calls_between(defined: Sequence[Function]) -> dict[str, frozenset[str]]:
    """Return who calls whom among these functions, by qualified names; overloads are one.

    No function calls a kernel, so the function that it shares its name with is meant. Scopes are
    not resolved: a call of `f` counts for the `f` of every scope.
    """
    named: dict[str, set[str]] = {}
    for function in defined:
        if not function.is_kernel:
            named.setdefault(function.name, set()).add(function.qualified)
    edges: dict[str, frozenset[str]] = {function.qualified: frozenset() for function in defined}
    for function in defined:
        for name in function.called & named.keys():
            edges[function.qualified] |= named[name]
    return edges


class Source:
    """A file, and the text of the project headers that it includes."""

    def __init__(self, name: str, text: str, included: str = "") -> None:
        self.is_header, self.text = name.endswith(".h"), text
        without = _blank(_COMMENT, text)
        self.directives = [(found.start(), found[0]) for found in _DIRECTIVE.finditer(without)]
        self.code = _blank(_DIRECTIVE, without)
        self.functions = functions(text)
        self.visible = (*functions(included), *self.functions)
        self.constants = constants(included + text)

    def problem(self, at: int, what: str) -> Problem:
        """Return a problem at a place of the text."""
        return self.text.count("\n", 0, at) + 1, what


Check = Callable[[Source], Iterator[Problem]]

# -- the language ----------------------------------------------------------------------------------

_TWO_ACCURACIES = (
    "acos|asin|atan|atan2|cos|cosh|exp|exp2|exp10|log|log2|log10|pow|powr|rsqrt|sin|sinh|sqrt|tan|"
    "tanh"
)
_LITERAL = (
    r"(?<![\w.])(?:\d[\d']*+\.\d*+|\.\d++|\d++(?=[eE][+-]?\d))(?:[eE][+-]?\d++)?+"
    r"(?![fFhH]\b)\w*"
)
_LAMBDA = r"(?:[^\w\s\])\[]|\breturn\b)\s*\[(?!\[)[^\]]*\]\s*[({]"
_TYPE = re.compile(r"\b(?:struct|class|using|typedef\b[^;{}]*?)\s+(\w+)\s*[{:=;]")
_ACCURACY = rf"(?<!\w)(?<!precise::)(?<!fast::)({_TWO_ACCURACIES})\s*\("


def _recursion(source: Source) -> Iterator[Problem]:
    edges = calls_between(source.visible)
    for function in source.functions:
        reached, waiting = set[str](), list(edges[function.qualified])
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += edges[name]
        if function.qualified in reached:
            yield function.line, f"{function.name} calls itself, perhaps through others"


def _attribute(source: Source) -> Iterator[Problem]:
    if source.is_header:
        yield from _matches(r"\[\[", "attribute in a header")(source)
        yield from _matches(r"\b(kernel|vertex|fragment)\b", "{0} function in a header")(source)


def _macro(source: Source) -> Iterator[Problem]:
    for at, line in source.directives:
        match = re.match(r"\s*#\s*define\s+(\w+)(\(.*?\))?(.*)", line, re.DOTALL)
        if match and match[3].strip():
            yield source.problem(at, f"macro {match[1]} with a body")


def _ascii(source: Source) -> Iterator[Problem]:
    for match in re.finditer(r"[^\x00-\x7f][^\n]*", source.text):
        yield source.problem(match.start(), f"letter {match[0][0]!r}")


@cache
def _names_of_mlx() -> tuple[frozenset[str], frozenset[str]]:
    """Names of the macros of MLX's prelude, and of its functions and types."""
    text = _blank(_COMMENT, dump.mlx_prelude())
    types = (one[1] for one in _TYPE.finditer(text))
    own = {function.name for function in functions(text)} | set(types)
    return frozenset(dump.mlx_macros()), frozenset(own)


def _name_of_mlx(source: Source) -> Iterator[Problem]:
    macros, names = _names_of_mlx()
    for word in re.finditer(r"\b[A-Za-z_]\w*", source.code):
        if word[0] in macros:
            yield source.problem(word.start(), f"name of MLX's macro {word[0]}")
    for function in source.functions:
        if function.name in names and not function.is_kernel:
            yield function.line, f"function {function.name}, which MLX has, too"
    for one in _TYPE.finditer(source.code):
        if one[1] in names:
            yield source.problem(one.start(), f"type {one[1]}, which MLX has, too")


# -- atomics ---------------------------------------------------------------------------------------

_KIND = re.compile(r"\batomic(?:_(?:float|u?int|bool|u?long)\b|\s*<\s*\w+\s*>)")
_IN_DEVICE = re.compile(r"\bdevice\s+(?:(?:const|volatile|coherent)\s+)*(?:\w+\s*::\s*)?\Z")


def _elsewhere(source: Source) -> Iterator[Problem]:
    for kind in _KIND.finditer(source.code):
        if not _IN_DEVICE.search(source.code, max(0, kind.start() - 80), kind.start()):
            yield source.problem(kind.start(), f"{kind[0]} without device")


# -- limits of a kernel ----------------------------------------------------------------------------

THREADGROUP_BYTES = 32 * 1024
_BYTES = {
    **dict.fromkeys(("char", "uchar", "bool", "int8_t", "uint8_t"), 1),
    **dict.fromkeys(("half", "bfloat", "short", "ushort", "int16_t", "uint16_t"), 2),
    **dict.fromkeys(("float", "int", "uint", "half2", "bfloat2", "int32_t", "uint32_t"), 4),
    **dict.fromkeys(("float2", "int2", "uint2", "half4", "ulong", "long"), 8),
    **dict.fromkeys(("float4", "int4", "uint4"), 16),
}
_SHARED = re.compile(r"\bthreadgroup\s+(\w+)\s+(\w+)((?:\s*\[[^\]]*\])*)\s*[;,=]")
_CONSTANT = re.compile(r"\bconstexpr\b[^;{}=]*?\b(\w+)\s*=([^;]*);|\benum\b[^;{}]*\{([^}]*)\}")


@cache
def constants(text: str) -> dict[str, int]:
    """Values of the integers that a text defines, constexpr or in an enum."""
    values: dict[str, int] = {}
    for found in _CONSTANT.finditer(_blank(_COMMENT, text)):
        for part in found[3].split(",") if found[3] else [f"{found[1]}={found[2]}"]:
            name, _, expression = part.partition("=")
            if (value := _value(expression, values)) is not None:
                values[name.strip()] = value
    return values


def _value(expression: str, known: Mapping[str, int]) -> int | None:
    """An integer expression of numbers and constants; None where it cannot be read."""
    words = re.sub(r"\w+\s*::\s*", "", re.sub(r"\b(\d+)[uU]\b", r"\1", expression))
    try:
        value = eval(words.strip().replace("/", "//"), {"__builtins__": {}}, dict(known))
    except (SyntaxError, NameError, TypeError, ZeroDivisionError):
        return None
    return value if type(value) is int else None


def _memory(source: Source) -> Iterator[Problem]:
    for function in source.functions:
        total = 0
        for shared in _SHARED.finditer(function.body) if function.is_kernel else ():
            size: int | None = _BYTES.get(shared[1])
            for dimension in re.findall(r"\[([^\]]*)\]", shared[3]):
                count = _value(dimension, source.constants)
                size = None if count is None or size is None else size * count
            if size is None:
                what = f"threadgroup variable {shared[2]} of unknown size"
                yield function.problem(shared.start(), what)
            total += size or 0
        if total > THREADGROUP_BYTES:
            yield function.line, f"{total} bytes of threadgroup memory in {function.name}"


# -- the rules -------------------------------------------------------------------------------------


def _matches(pattern: str, what: str) -> Check:
    """Return a check that finds a pattern; {} in `what` are its groups."""

    def check(source: Source) -> Iterator[Problem]:
        for match in re.finditer(pattern, source.code):
            yield source.problem(match.start(), what.format(match[0], *match.groups()))

    return check


class Rule(NamedTuple):
    """A check of one file: the fault on a GPU, the text to write, and the offending lines."""

    name: str
    why: str
    instead: str
    check: Check


RULES = (
    Rule("double", "Metal has no 64-bit floats", "use float",
         _matches(r"\bdouble[2-4]?\b", "type {0}")),
    Rule("literal", "Metal has no 64-bit floats", "write the suffix f",
         _matches(_LITERAL, "literal {0} is a double")),
    Rule("recursion", "a GPU thread has no call stack", "write a loop", _recursion),
    Rule("lambda", "Metal has lambdas only since 4.1", "write a function",
         _matches(_LAMBDA, "lambda")),
    Rule("attribute",
         "MLX puts headers before a kernel of its own, which already has the attributes",
         "take the value as an argument and read the attribute in the .metal file", _attribute),
    Rule("accuracy", "MLX leaves it to Metal, which takes the fast variant",
         "write precise::, or fast:: where a few digits do",
         _matches(_ACCURACY, "{1} of an accuracy that is not said")),
    Rule("ascii",
         "MLX and PyTorch hand the text to Metal as ASCII, and another letter leaves none of it",
         "spell it out, in comments too", _ascii),
    Rule("macro", "these checks and the coverage count read the text before macros are expanded",
         "write a function or a constexpr constant", _macro),
    Rule("MLX's names", "MLX puts its own headers before our text, with their macros",
         "take another name", _name_of_mlx),
    Rule("atomic space",
         "atomic floats exist in device memory only, and ours are never anywhere else",
         "make it `device atomic_...*`, and reduce inside a group with simd_sum and barriers",
         _elsewhere),
    Rule("atomic width", "M1 has no 64-bit atomics", "use two 32-bit words",
         _matches(r"\batomic(?:_|\s*<\s*)(?:u?long|u?int64_t)\b", "{0}")),
    Rule("exchange",
         "a NaN never equals itself, so a loop around it may not end and hang the GPU",
         "use atomic_fetch_add_explicit", _matches(r"\batomic_compare_exchange_\w+", "{0}")),
    Rule("threadgroup memory", f"an Apple GPU has {THREADGROUP_BYTES} bytes for a group",
         "use smaller tiles, of sizes that are numbers or constexpr integers", _memory),
)  # fmt: skip


class Finding(NamedTuple):
    """A problem with its rule, printed as compilers do."""

    file: str
    line: int
    what: str
    rule: Rule

    def __str__(self) -> str:
        """Return the line of a compiler's message."""
        return f"{self.file}:{self.line}: {self.what}: {self.rule.why}; {self.rule.instead}"


def check_text(name: str, text: str, included: str = "") -> list[Finding]:
    """Check one text; a name that ends in `.h` makes it a header."""
    source = Source(name, text, included)
    findings = (
        Finding(name, line, what, rule) for rule in RULES for line, what in rule.check(source)
    )
    return sorted(findings, key=lambda finding: finding.line)


def check_files(files: Iterable[Path]) -> list[Finding]:
    """Check files with the headers that they include."""
    findings: list[Finding] = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        findings += check_text(str(file), text, _included(file, set()))
    return findings


def check_kernels() -> list[Finding]:
    """Check all headers and whole kernels of the project."""
    findings = check_files(sorted(KERNELS.glob("*.h")))
    for kernel, instance in instances():
        header = read_source(kernel.header)
        text = amalgamated_source(kernel, instance).removeprefix(header)
        findings += check_text(f"{kernel.entry(instance)}.metal", text, header)
    return findings


def _included(file: Path, seen: set[Path]) -> str:
    """Return the text of all project headers below a file, each once."""
    texts = []
    for name in _INCLUDE.findall(file.read_text(encoding="utf-8")):
        header = file.parent / name
        if header not in seen:
            seen.add(header)
            texts += [_included(header, seen), header.read_text(encoding="utf-8")]
    return "\n".join(texts)


def main(names: list[str]) -> int:
    """Check the named files, by default all kernels, and print the findings."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.lint", description="Find what Metal forbids in sources."
    )
    parser.add_argument("files", nargs="*", type=Path, help="all kernels by default")
    files = parser.parse_args(names).files
    for file in files:
        if not file.is_file():
            parser.error(f"there is no file {file}")
    findings = check_files(files) if files else check_kernels()
    print("\n".join(map(str, findings)) or f"no offence against {len(RULES)} rules")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
