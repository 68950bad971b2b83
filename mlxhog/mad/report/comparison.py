"""Two candidates of a study, compared run by run: same task, same setting, same seed.

The differences of `acc_macro`, weighted so that every task has the same share, have the difference
of the scores as their mean. Its interval and p-value are Student's t over the pairs. They are about
other seeds on the same tasks and settings, not about other tasks. The differences of the tasks
among each other widen the interval. That the pairs are independent is assumed: those of one seed
share initial values and random streams, which would narrow it wrongly if they rose and fell
together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.mad.report.ranking import Ranking
from mlxhog.mad.scores import CandidateScore
from mlxhog.mad.tasks import find
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.report.table import aligned
from mlxhog.theory.paired_test import PairedResult, single_look

ANSWERS = {1: "A is better", -1: "B is better", 0: "cannot be told"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The differences of candidate A from candidate B."""

    a: CandidateScore  # the one
    b: CandidateScore  # the other
    whole: PairedResult  # of all pairs
    tasks: Mapping[str, PairedResult]  # task -> of its pairs
    unpaired: int  # runs of either one without the same run of the other


def candidate_of(ranking: Ranking, text: str) -> CandidateScore:
    """Return a candidate by its place on the board, such as 1, or by its layers.

    Raises:
        ConfigError: the study has no such candidate.
    """
    if text.removeprefix("#").isdigit():
        place = int(text.removeprefix("#"))
        if 1 <= place <= len(ranking.rows):
            return ranking.rows[place - 1]
        raise ConfigError(
            f"the board of study {ranking.study} has {len(ranking.rows)} candidates, none at "
            f"{place}; see mlxhog mad board {ranking.study}"
        )
    name = canonical(parse(text))
    rows = {row.candidate: row for row in ranking.rows}
    if name not in rows:
        hint = did_you_mean(name, rows) or f"; see mlxhog mad board {ranking.study}"
        raise ConfigError(f"study {ranking.study} has no run of {name!r}{hint}")
    return rows[name]


def compare(a: CandidateScore, b: CandidateScore) -> Comparison:
    """Compare the best runs of two candidates of one study; lost ones count as 0.

    Raises:
        ConfigError: they are the same, or have no run in common.
    """
    if a.candidate == b.candidate:
        raise ConfigError(f"A and B are both {a.candidate}; name two candidates")
    ours, theirs = (
        {(run.task, run.label, run.seed): run.acc_macro for run in row.best} for row in (a, b)
    )
    differences = {at: ours[at] - theirs[at] for at in ours if at in theirs}
    if not differences:
        raise ConfigError(
            f"{a.candidate} and {b.candidate} have no task, setting and seed in common; resume the "
            "study"
        )
    pairs = Counter(task for task, _, _ in differences)
    share = len(differences) / len(pairs)
    return Comparison(
        a=a,
        b=b,
        whole=single_look([share / pairs[at[0]] * own for at, own in differences.items()]),
        tasks={
            task: single_look([own for at, own in differences.items() if at[0] == task])
            for task in pairs
        },
        unpaired=len(ours.keys() ^ theirs.keys()),
    )


def to_json(comparison: Comparison) -> dict[str, object]:
    """Return the comparison as plain values."""
    return {
        "a": comparison.a.candidate,
        "b": comparison.b.candidate,
        "scores": [comparison.a.score, comparison.b.score],
        **_plain(comparison.whole),
        "tasks": {task: _plain(own) for task, own in comparison.tasks.items()},
        "unpaired": comparison.unpaired,
    }


def _plain(result: PairedResult) -> dict[str, Any]:
    several = result.pairs > 1
    return {
        "pairs": result.pairs,
        "difference": result.mean,
        "interval": [result.low, result.high] if several else None,
        "p": result.p if several else None,
        "answer": ANSWERS[result.sign],
    }


def lines(comparison: Comparison) -> list[str]:
    """Return the comparison as a table, and the answer."""
    whole = _plain(comparison.whole)
    rows = [[find(task).short, *_cells(_plain(own))] for task, own in comparison.tasks.items()]
    head = ["task", "pairs", "A - B", "95 % interval", "p", "answer"]
    notes = [
        f"{whole['answer']}: difference of the scores {whole['difference']:+.3f}, over "
        f"{whole['pairs']} pairs of one task, setting and seed"
    ]
    if comparison.unpaired:
        notes.append(f"{comparison.unpaired} runs without the same run of the other do not count")
    return [
        f"A {comparison.a.candidate}: {comparison.a.score:.3f}",
        f"B {comparison.b.candidate}: {comparison.b.score:.3f}",
        *aligned(head, [*rows, ["all", *_cells(whole)]], words=[0, 5]),
        *notes,
    ]


def _cells(plain: dict[str, Any]) -> list[str]:
    interval, p = plain["interval"], plain["p"]
    return [
        str(plain["pairs"]),
        f"{plain['difference']:+.3f}",
        "-" if interval is None else " to ".join(f"{end:+.3f}" for end in interval),
        "-" if p is None else f"{p:.2g}" if p >= 1e-4 else "< 1e-4",
        plain["answer"],
    ]
