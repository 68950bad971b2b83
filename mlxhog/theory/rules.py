"""The one engine of rules: a table of rows, of which the first that holds decides a topic.

`advisor.rules` has the table for a training that is planned, `analysis.advice` the one for a model
that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Facts = TypeVar("Facts")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Rule(Generic[Facts, Answer]):
    """One row of a table.

    Attributes:
        topic: of the advice, or name of the situation.
        holds: whether the facts are such that this row is for them.
        answer: the advice.
        because: the reason, with the numbers.
        otherwise: a change that leads to another answer; "" for none.
    """

    topic: str
    holds: Callable[[Facts], bool]
    answer: Callable[[Facts], Answer]
    because: Callable[[Facts], str]
    otherwise: str = ""


def holding(rules: Iterable[Rule[Facts, Answer]], facts: Facts) -> Iterator[Rule[Facts, Answer]]:
    """Yield the rows that hold, in their order."""
    return (rule for rule in rules if rule.holds(facts))
