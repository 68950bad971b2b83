"""A row of the tables of rules that advise: the first row of a topic that holds is its advice.

`advisor.rules` has the table for a training that is planned, `analysis.advice` the one for a model
that was measured.
"""

from __future__ import annotations

from collections.abc import Callable
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
