"""What a rule sees, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from tools.lint.text import Function, Token, directives, functions, tokens


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
