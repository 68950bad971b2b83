"""The leaderboard of a study at one moment: one table, as text, on a page, and as JSON.

It is read from the study's directory only, also while a scheduler writes there.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxhog.base.quantities import format_duration, format_value
from mlxhog.display.table import Section
from mlxhog.mad.objectives import FRONT
from mlxhog.mad.report.progress import compact, score
from mlxhog.mad.run import CandidateRecord, EvalPoint
from mlxhog.mad.scores import LOST, UNFINISHED, CandidateScore
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.store import Store
from mlxhog.mad.tasks import find
from mlxhog.mad.tasks.text import TEXT_TASK

WITHIN = 0.05
"""Largest difference of a cost from the first candidate's that counts as equal."""
MAX_LISTED = 5
"""Most failed and diverged runs of the text; --json has all."""
NUMBERS = (
    "score", "interval", "val_score", "params", "state", "state_bytes", "seconds", "status",
    "n_runs", "n_diverged", "n_failed", "task_configs", "tasks", "intervals", "acc_token",
    "best_achievable", "seeds", "missing",
)  # fmt: skip
"""The fields of a `CandidateScore` in --json."""
MEASURES = {
    "val_bits_per_byte": ("bits/byte", ".4f"),
    "train_tokens_per_s": ("train tok/s", ",.0f"),
    "decode_tokens_per_s": ("decode tok/s", ",.0f"),
    "peak_memory_bytes": ("peak bytes", ",.0f"),
    "state_bytes": ("state", ",.0f"),
}
"""Heads and number formats of the columns of suite lm."""
EXACT = (
    "score interval val_score params state_bytes seconds status n_runs n_diverged n_failed"
).split()
"""The fields of a row of CSV, before the accuracies of the tasks."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A study at one moment."""

    study: str  # its name
    suite: str  # name of the suite
    rows: tuple[CandidateScore, ...]  # the best first, as `scores` orders them
    records: tuple[CandidateRecord, ...]  # runs that ended, in order
    curve: Callable[[str], Sequence[EvalPoint]]  # the evaluations of a run, by its key
    planned: int  # runs of all candidates so far
    running: bool = False  # whether a scheduler works on it
    facts: Mapping[str, str] = field(default_factory=dict)  # the definition as texts, by name
    final: Mapping[str, Any] | None = None  # of suite lm: the comparison of the first two

    @property
    def measures(self) -> tuple[str, ...]:
        """The objectives that the runs of suite lm have measured."""
        return tuple(one for one in FRONT if any(one in row.measures for row in self.rows))

    @property
    def statuses(self) -> dict[str, int]:
        """Status -> number of runs that ended with it, the most frequent first."""
        return dict(Counter(record.status for record in self.records).most_common())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Full names of the tasks with a score, in the suite's order."""
        return tuple(dict.fromkeys(task for row in self.rows for task in row.tasks))

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs that ended, in order."""
        return sorted({record.seed for record in self.records})

    @property
    def seconds(self) -> float:
        """Training time of all runs together."""
        return sum(record.seconds for record in self.records)

    @property
    def heading(self) -> str:
        """StudyDefinition, suite, runs, time and statuses in one line."""
        ends = [f"{n} {name}" for name, n in self.statuses.items() if name != "done"]
        runs = f"{len(self.records):,} of {self.planned:,} runs"
        seeds = f"seed{'s' * (len(self.seeds) != 1)} {', '.join(map(str, self.seeds)) or '-'}"
        time = f"{format_duration(self.seconds)} of training"
        return "  ".join([f"study {self.study}", f"suite {self.suite}", runs, seeds, time, *ends])

    @property
    def lacking(self) -> str:
        """The missing part of the study, in one sentence; "" for a complete one."""
        parts, ended = [], len(self.records)
        if ended < self.planned:
            parts.append(f"{ended:,} of {self.planned:,} runs have ended")
        if partial := sum(row.status == "partial" for row in self.rows):
            parts.append(f"{partial} of {len(self.rows)} candidates lack runs")
        if not parts and not self.rows:
            parts.append("no run has ended yet")
        verb = "is running" if self.running else "is partial"
        return f"this study {verb}: {', '.join(parts)}" if parts else ""

    @property
    def best_achievable(self) -> str:
        """The tasks whose best achievable accuracy is below 1, in a line; "" without any."""
        lowest = {
            task: min(row.best_achievable.get(task, 1.0) for row in self.rows)
            for task in self.tasks
        }
        below = [f"{task} {value:.3f}" for task, value in lowest.items() if value < 1]
        return f"best achievable accuracy: {', '.join(below)}" if below else ""

    @property
    def final_note(self) -> str:
        """The comparison of the first two candidates, in a line; "" without one."""
        if self.final is None:
            return ""
        places = {row.candidate: f"#{n}" for n, row in enumerate(self.rows, start=1)}
        a, b = (places.get(self.final[name], "?") for name in "ab")
        return f"final of A {a} and B {b}: {self.final['answer']}"

    @property
    def troubles(self) -> list[dict[str, str]]:
        """The failed and diverged runs, which score 0, and those with a remark."""
        return [
            {"status": one.status, "layers": one.candidate, "run": one.title, "reason": one.reason,
             "host": one.host}
            for one in self.records
            if one.status in LOST or one.reason
        ]  # fmt: skip

    def equal_cost(self, cost: str) -> dict[str, int]:
        """Return candidate -> rank among the finished ones that cost as much as the first.

        `cost` is "params" or "state_bytes".
        """
        finished = [row for row in self.rows if row.status not in UNFINISHED]
        costs = {row.candidate: getattr(row, cost) for row in finished}
        first = next(iter(costs.values()), 0)
        alike = [name for name, own in costs.items() if abs(own - first) <= WITHIN * first]
        return {name: rank for rank, name in enumerate(alike, start=1)}

    def to_json(self) -> dict[str, Any]:
        """Return the whole ranking as plain values; scores and accuracies are in [0, 1]."""
        by_params, by_state = map(self.equal_cost, ("params", "state_bytes"))
        return {
            "study": self.study,
            "suite": self.suite,
            "partial": bool(self.lacking),
            "running": self.running,
            "runs_done": len(self.records),
            "runs_planned": self.planned,
            "statuses": self.statuses,
            "seconds": self.seconds,
            "candidates": [
                {
                    "layers": row.candidate,
                    **{name: getattr(row, name) for name in NUMBERS},
                    **(
                        {
                            "rung": row.rung,
                            "measures": dict(row.measures),
                            "pareto": row.is_on_front,
                        }
                        if row.measures
                        else {}
                    ),
                    **({"beyond": row.beyond} if row.beyond else {}),
                    "rank_equal_params": by_params.get(row.candidate),
                    "rank_equal_state": by_state.get(row.candidate),
                }
                for row in self.rows
            ],
            "troubles": self.troubles,
            "facts": dict(self.facts),
            **({"final": dict(self.final)} if self.final else {}),
        }


def read_ranking(store: Store) -> Ranking:
    """Return the present ranking of a study."""
    study, records = store.study(), tuple(store.records())
    final = store.final()
    rows = study.rows(records, final)
    # Of text, a list or a grid all runs are known, of another sampler those of its proposals.
    is_known = study.is_text or not study.space or study.sampler == "grid"
    planned = study.total if is_known else None
    if planned is None:
        planned = len({one.candidate for one in store.proposals()}) * study.runs_each
    return Ranking(
        study=store.name,
        suite=study.suite,
        rows=tuple(rows),
        records=records,
        curve=store.curve,
        planned=planned
        - sum(len(row.missing) for row in rows if row.status == "pruned")
        - (study.unfilled(records) if study.is_text else 0),
        running=store.is_locked(),
        facts=_facts(study, records),
        final=final,
    )


def _facts(study: StudyDefinition, records: Sequence[CandidateRecord]) -> dict[str, str]:
    """The definition of a study as texts, by name, with its tasks, and where it ran."""
    suite = study.measured
    whole = {
        **study.to_dict(),
        "recipe": {**suite.recipe, **study.recipe},
        "tasks": list(dict.fromkeys(one.task for one in suite.task_configs)),
        "sweep": suite.sweep,
        "hosts": sorted({record.host for record in records}),
    }
    return {name: _words(v) for name, v in whole.items() if v not in (None, (), [], {}, "")}


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(own)}" for name, own in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_words, value))
    return "auto" if value is None else format_value(value)


# -- the forms of the table ------------------------------------------------------------------------


def table(ranking: Ranking) -> list[dict[str, str]]:
    """Return the rows of the leaderboard: the head of each column, and its text.

    Layers are in compact notation, as `--layers` takes them.
    """
    by_val = any(row.val_score is not None for row in ranking.rows)

    def cells(row: CandidateScore) -> dict[str, str]:
        counts = {"missing": len(row.missing), "diverged": row.n_diverged, "failed": row.n_failed}
        ends = [f"{n} {name}" for name, n in counts.items() if n and name != row.status]
        accuracies = {"val": row.val_score} if by_val else {}
        accuracies |= {
            find(task).short: row.tasks.get(task) for task in ranking.tasks if task != TEXT_TASK
        }
        return {
            "layers": compact(row.layers),
            **{
                head: format(row.measures[name], form) if name in row.measures else "-"
                for name, (head, form) in MEASURES.items()
                if name in ranking.measures
            },
            **({"front": "*" if row.is_on_front else ""} if ranking.measures else {}),
            "score": score(row.score, row.interval),
            **{head: "-" if v is None else f"{v:.3f}" for head, v in accuracies.items()},
            "params": f"{row.params:,}",
            "state bytes": f"{row.state_bytes:,}",
            "time": format_duration(row.seconds),
            "status": ", ".join([row.status, *ends, *(f"not {one}" for one in row.beyond)]),
        }

    return [{"#": str(rank), **cells(row)} for rank, row in enumerate(ranking.rows, start=1)]


def section(ranking: Ranking, *, exact: bool = False) -> Section:
    """Return heading, table and notes; an `exact` table is for programs, its numbers as in JSON."""
    rows, notes = table(ranking), list[str]()
    if exact:
        values = [
            {"rank": rank, "layers": row.candidate}
            | {name: getattr(row, name) for name in EXACT}
            | {name: row.measures.get(name) for name in ranking.measures if name not in EXACT}
            | {task: row.tasks.get(task) for task in ranking.tasks}
            for rank, row in enumerate(ranking.rows, start=1)
        ]
        rows = [{k: "" if x is None else str(x) for k, x in one.items()} for one in values]
    places = {row.candidate: f"#{n}" for n, row in enumerate(ranking.rows, start=1)}
    for cost, name in (("params", "parameters"), ("state_bytes", "state bytes")):
        alike = [places[candidate] for candidate in ranking.equal_cost(cost)]
        if len(rows) > 1 and alike:
            others = f", before {', '.join(alike[1:])}" if alike[1:] else " alone"
            notes.append(f"at equal {name} (within {WITHIN:.0%}): {alike[0]}{others}")
    lost = ranking.troubles
    notes += [f"... {len(lost) - MAX_LISTED} more, see --json"] * (len(lost) > MAX_LISTED)
    notes += [
        f"{one['status']}: `{one['layers']}` on {one['run']}"
        + f": {one['reason']}" * bool(one["reason"])
        for one in lost[-MAX_LISTED:]
    ]
    notes += [ranking.final_note, ranking.best_achievable, ranking.lacking]
    notes = [*filter(None, notes)]
    return Section(ranking.heading, [*rows[0]] if rows else (), [[*row.values()] for row in rows],
                   notes)  # fmt: skip
