"""Rules, and what they see of Metal text: its tokens and functions.

As much of the language is read as the rules need, no more.
Preprocessor lines are left out (the rule `macro` sees to it that they hide no code), and so are
comments. A function is found where a `{` at namespace or struct scope follows `name(...)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

_TOKEN = re.compile(
    r"""(?P<skip>//[^\n]*|/\*.*?\*/|\s+|\\\n)
      | (?P<directive>^[ \t]*\#(?:[^\\\n]|\\\n|\\.)*)
      | "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)+'
      | (?:0[xX][0-9a-fA-F']+|(?:\d[\d']*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\w*
      | \w+
      | \[\[ | :: | -> | \+\+ | -- | \|\| | && | [<>=!+\-*/%&|^]=
      | .""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_OPEN = {"(": ")", "{": "}", "[": "]", "[[": "]]"}
_STATEMENTS = {"if", "for", "while", "switch", "return", "sizeof", "decltype", "static_assert"}


@dataclass(frozen=True)
class Token:
    """A word, number, string or operator, and its line (from 1)."""

    text: str
    line: int


def tokens(text: str) -> tuple[Token, ...]:
    """Split Metal text; no comments, no preprocessor lines."""
    return tuple(token for kind, token in _split(text) if kind == "code")


def directives(text: str) -> tuple[Token, ...]:
    """Return the preprocessor lines, each as one token."""
    return tuple(token for kind, token in _split(text) if kind == "directive")


def _split(text: str) -> Iterator[tuple[str, Token]]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "code"
        if kind == "directive":  # lines from 1, leading blanks do not matter
            yield kind, Token(match[0].strip(), line)
        elif kind == "code":
            yield kind, Token(match[0], line)
        line += match[0].count("\n")


@dataclass(frozen=True)
class Function:
    """A function's definition.

    Attributes:
        name: without its namespace or struct.
        scope: the namespaces and structs around it, "a::b".
        line: of the name.
        head: everything before the parameters: template, attributes, return type, name.
        parameters: between the parentheses.
        body: between the braces.
    """

    name: str
    scope: str
    line: int
    head: tuple[Token, ...]
    parameters: tuple[Token, ...]
    body: tuple[Token, ...]

    @cached_property
    def qualified(self) -> str:
        """The name with its scope."""
        return f"{self.scope}::{self.name}" if self.scope else self.name

    @cached_property
    def is_kernel(self) -> bool:
        """Whether a GPU is asked to run it, instead of another function."""
        return any(token.text == "kernel" for token in self.head)

    @cached_property
    def called(self) -> frozenset[str]:
        """Names in the body before `(` or `<...>(`: functions, casts and constructors."""
        return frozenset(self.body[index].text for index in calls(self.body))


def calls(body: Sequence[Token]) -> Iterator[int]:
    """Positions of the names that are called."""
    for index, token in enumerate(body[:-1]):
        if not (token.text[0].isalpha() or token.text[0] == "_") or token.text in _STATEMENTS:
            continue
        after = index + 1
        if body[after].text == "<":
            after = _after_template(body, after)
        if after < len(body) and body[after].text == "(":
            yield index


def _after_template(body: Sequence[Token], start: int) -> int:
    """Position after `<...>`; `start` itself where that is a comparison."""
    depth = 0
    for index in range(start, len(body)):
        text = body[index].text
        depth += {"<": 1, ">": -1}.get(text, 0)
        if text in (";", "{", "}", "&&", "||"):
            return start
        if depth == 0:
            return index + 1
    return start


def closing(body: Sequence[Token], start: int) -> int:
    """Position of the bracket that closes the one at `start`; the end where there is none."""
    opened, closed = body[start].text, _OPEN[body[start].text]
    if opened == "[[":  # `]]` is two tokens, since `a[b[0]]` ends in them as well
        depth = 0
        for index in range(start, len(body)):
            depth += {"[[": 2, "[": 1, "]": -1}.get(body[index].text, 0)
            if depth == 0:
                return index
        return len(body)
    depth = 0
    for index in range(start, len(body)):
        depth += (body[index].text == opened) - (body[index].text == closed)
        if depth == 0:
            return index
    return len(body)


def functions(text: str) -> tuple[Function, ...]:
    """Return the functions that the text defines, in its order, kernels among them."""
    return tuple(_functions(tokens(text)))


def calls_between(defined: Sequence[Function]) -> dict[str, frozenset[str]]:
    """Return who calls whom among these functions, by qualified names; overloads are one.

    A kernel is called by nobody, so the function that it shares its name with is meant. Scopes are
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


def _functions(code: tuple[Token, ...]) -> Iterator[Function]:
    start = index = 0
    scopes: list[str] = []
    while index < len(code):
        text = code[index].text
        if text in ("(", "[["):
            index = closing(code, index)
        elif text == ";":
            start = index + 1
        elif text == "}":
            del scopes[-1:]
            start = index + 1
        elif text == "{":
            head, end = code[start:index], closing(code, index)
            function = _function(head, code[index + 1 : end], "::".join(filter(None, scopes)))
            inside = _scope(head)
            if function:
                yield function
            if function or inside is None:
                index = end
            else:
                scopes.append(inside)
            start = index + 1
        index += 1


def _scope(head: Sequence[Token]) -> str | None:
    """Return the name of the namespace or struct that a head opens; None where it opens neither."""
    words = [token.text for token in head]
    for word, name in zip(words, [*words[1:], ""], strict=True):
        if word in ("namespace", "struct", "class", "union", "extern"):
            return name if name.isidentifier() else ""
    return None


def _function(head: tuple[Token, ...], body: tuple[Token, ...], scope: str) -> Function | None:
    index = 0
    while index < len(head):
        text = head[index].text
        if text == "[[":
            index = closing(head, index)
        elif text == "<":
            index = max(index, _after_template(head, index) - 1)
        elif text == "=" and head[index - 1].text != "operator":
            return None  # an initialiser
        elif text == "(" and index and head[index - 1].text not in ("decltype", "alignas"):
            name = head[index - 1]
            is_operator = index > 1 and head[index - 2].text == "operator"
            return Function(
                "operator" + name.text if is_operator else name.text,
                scope,
                name.line,
                head[:index],
                head[index + 1 : closing(head, index)],
                body,
            )
        index += 1
    return None


@dataclass(frozen=True)
class Source:
    """A file, and the text of the project headers that it includes."""

    name: str
    text: str
    included: str = ""

    @cached_property
    def is_header(self) -> bool:
        """Whether MLX gets it as `header`, and other files include it."""
        return self.name.endswith(".h")

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """The code of this file."""
        return tokens(self.text)

    @cached_property
    def directives(self) -> tuple[Token, ...]:
        """The preprocessor lines of this file."""
        return directives(self.text)

    @cached_property
    def functions(self) -> tuple[Function, ...]:
        """The functions that this file defines."""
        return functions(self.text)

    @cached_property
    def visible(self) -> tuple[Function, ...]:
        """The functions that this file defines or includes."""
        return (*functions(self.included), *self.functions)


@dataclass(frozen=True)
class Problem:
    """What one rule has against one line."""

    line: int
    what: str


@dataclass(frozen=True)
class Rule:
    """A check of one file.

    Attributes:
        name: one or two words.
        why: what would go wrong on a GPU.
        instead: what to write.
        check: yields the offending lines.
    """

    name: str
    why: str
    instead: str
    check: Callable[[Source], Iterator[Problem]]


@dataclass(frozen=True)
class Finding:
    """A problem with its rule, printed as compilers do."""

    file: str
    line: int
    what: str
    rule: Rule

    def __str__(self) -> str:
        """Return the line of a compiler's message."""
        return f"{self.file}:{self.line}: {self.what}: {self.rule.why}; {self.rule.instead}"
