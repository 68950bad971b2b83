"""Objectives and limits: the order of candidates by numbers other than their score, and the front.

A limit is a text such as "decode_tokens_per_s >= 2000". Candidates beyond one are last; a number
that a candidate lacks, as one that cannot decode, is beyond every limit.

In a suite of text and tasks, candidates have two ranks, by the objective and by the mean score of
the tasks; the mean of the ranks orders them, so that neither scale outweighs the other.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from mlxhog.base.quantities import parse_count, parse_number
from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.mad.options import OBJECTIVES
from mlxhog.mad.scores import LOST, UNFINISHED, CandidateScore
from mlxhog.mad.tasks.text import TEXT_TASK

OF_TEXT = ("val_bits_per_byte", "train_tokens_per_s", "decode_tokens_per_s", "peak_memory_bytes")
"""The objectives that only suite lm measures."""
FRONT = (*OF_TEXT, "state_bytes")
"""The objectives of the Pareto front."""
OUT = -1e18
"""The selection score of a candidate beyond a limit, or without the objective.

It is below every objective, also bytes of memory.
"""


class Limit(NamedTuple):
    """A bound of a number."""

    text: str
    name: str
    sign: int  # 1 for at least, -1 for at most
    bound: float

    def is_kept(self, row: CandidateScore) -> bool:
        """Whether a candidate is within the limit."""
        value = value_of(row, self.name)
        return value is not None and self.sign * value >= self.sign * self.bound


def parse_limit(text: str) -> Limit:
    """Read a limit; else a ConfigError."""
    parts = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*(\S+)\s*", text)
    bound = math.nan
    for read in (parse_count, parse_number):
        with suppress(ValueError):
            bound = read(parts[3]) if parts else math.nan
    if parts is None or math.isnan(bound):
        raise ConfigError(
            f"--limit is {text!r}; give a name, >= or <=, and a number, such as "
            '"decode_tokens_per_s >= 2000"'
        )
    return Limit(text, parts[1], 1 if parts[2] == ">=" else -1, bound)


def check(names: Iterable[str], suite: str, *, is_text: bool) -> None:
    """Raise a ConfigError for an objective that no run of the suite measures."""
    known = [name for name in OBJECTIVES if is_text or name not in OF_TEXT]
    for name in names:
        if name not in known:
            near = did_you_mean(name, known) or f"; it measures {', '.join(known)}"
            also = "; --suite lm:60s measures it" if name in OF_TEXT else near
            raise ConfigError(f"suite {suite} does not measure {name}{also}")


def value_of(row: CandidateScore, name: str) -> float | None:
    """Return a candidate's number by its name; None if it was not measured."""
    if name in row.measures:
        return row.measures[name]
    if name == "score":
        return row.split_score
    return None if name in OF_TEXT else float(getattr(row, name))


def ordered(
    rows: Sequence[CandidateScore], objective: str, limits: Sequence[Limit], *, select: bool
) -> list[CandidateScore]:
    """Return candidates in order, with broken limits and the Pareto front; lost ones are last.

    `select` says whether the objective replaces the score for samplers and promotions.
    """
    sign = OBJECTIVES[objective]

    def worth(row: CandidateScore) -> float:
        value = row.selection_score if objective == "score" else value_of(row, objective)
        return OUT if value is None or row.status in LOST else sign * value

    def by_tasks(row: CandidateScore) -> float:
        of_split = row.val_tasks if row.select == "val" and row.val_tasks else row.tasks
        return fmean(v for name, v in of_split.items() if name != TEXT_TASK)

    def is_out(row: CandidateScore) -> bool:
        # Of text, a candidate has all runs of its rung when a sampler learns its score.
        return bool(row.beyond) or (row.status in UNFINISHED and TEXT_TASK not in row.tasks)

    is_mixed = any({TEXT_TASK} < row.tasks.keys() for row in rows)
    complete = [row for row in rows if not is_mixed or {TEXT_TASK} < row.tasks.keys()]
    ranks = [_ranks(complete, by) for by in ([worth, by_tasks] if is_mixed else [worth])]
    front = pareto(rows)
    marked = [
        replace(
            row,
            beyond=tuple(limit.text for limit in limits if not limit.is_kept(row)),
            is_on_front=row.candidate in front,
        )
        for row in rows
    ]
    if select:
        marked = [replace(row, objective=OUT if is_out(row) else worth(row)) for row in marked]

    def key(row: CandidateScore) -> tuple[object, ...]:
        place = fmean(of.get(row.candidate, len(rows)) for of in ranks)
        last = row.status in LOST, row.status in UNFINISHED
        return *last, -row.rung, bool(row.beyond), place, -worth(row), row.params, row.candidate

    return sorted(marked, key=key)


def _ranks(
    rows: Sequence[CandidateScore], worth: Callable[[CandidateScore], float]
) -> dict[str, int]:
    """Return candidate -> rank among those of its rung, from 0 on; equal ones share a rank."""
    values = {row.candidate: (row.rung, worth(row)) for row in rows}
    return {
        name: sum(rung == r and other > own for r, other in values.values())
        for name, (rung, own) in values.items()
    }


def pareto(rows: Iterable[CandidateScore]) -> set[str]:
    """Return the finished candidates that no other one beats in an objective and ties in all."""
    points = {
        row.candidate: [
            -math.inf if (v := value_of(row, name)) is None else OBJECTIVES[name] * v
            for name in FRONT
        ]
        for row in rows
        if "dim" in row.measures and row.status not in (*UNFINISHED, *LOST)  # else no text is done
    }
    return {
        name
        for name, own in points.items()
        if not any(
            other != own and all(a >= b for a, b in zip(other, own, strict=True))
            for other in points.values()
        )
    }
