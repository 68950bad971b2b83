"""The scores of the candidates of a study, from its runs.

One seed of a candidate scores

    task config = accuracy (acc_macro) at the best learning rate and decay of the sweep
    task        = mean over its configs
    score       = mean over the tasks

and a candidate the mean over its seeds, with a 95 % t-interval for two or more. A run that diverged
or failed scores 0 and is counted; the reference drops it before it takes the best, and so drops
every task config on which an architecture always diverges.

Source: Poli et al. 2024, arXiv:2403.17844; athms/mad-lab.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

from mlxhog.experiments.paired_test import single_look
from mlxhog.mad.run import CandidateRecord, params
from mlxhog.mad.suites import Suite
from mlxhog.mad.tasks.text import TEXT_TASK, WORST_BITS
from mlxhog.models.layers import at_width
from mlxhog.models.mad.sequence import parse

Select = Literal["test", "val"]
LOST = ("diverged", "failed")
"""Statuses of a run whose accuracy counts as 0."""
UNFINISHED = ("partial", "pruned")
STATE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class CandidateScore:
    """The score of one candidate.

    Scores are in [0, 1], of the test rows: the mean over the complete seeds, or over all runs while
    no seed is complete. An interval is half the width of the 95 % interval over the complete seeds
    (Student's t); None with fewer than two.
    """

    candidate: str  # canonical string
    score: float
    interval: float | None  # of the score
    # as score, of the validation rows, of the same runs, and of text its score; None without rows
    val_score: float | None
    seeds: Mapping[int, float]  # seed -> score, of the seeds in the score
    tasks: Mapping[str, float]  # task -> score, in the suite's order; absent without a run
    val_tasks: Mapping[str, float]  # as tasks, of val_score; empty where that is None
    intervals: Mapping[str, float | None]  # task -> interval of its score
    acc_token: Mapping[str, float]  # task -> mean share of right positions, of the same runs
    best_achievable: Mapping[str, float]  # task -> the best achievable accuracy
    best: tuple[CandidateRecord, ...]  # the runs in the score, with 0 for lost ones
    params: int  # parameters of the layers at the suite's width, see `run.params`
    state: int  # numbers kept per sequence after the longest row, at the suite's width
    seconds: float  # of all runs together
    # "done", "partial" (runs are missing), "pruned" (stopped early, as worse than others),
    # "diverged" or "failed" (every run was lost, the last one so)
    status: str
    n_runs: int  # runs with a result, lost ones included
    n_diverged: int  # runs that score 0 because they diverged
    n_failed: int  # runs that score 0 because they failed
    missing: tuple[str, ...]  # the runs without a result, in words
    select: Select = "test"  # split whose accuracy selects within a sweep
    rung: int = 0  # of suite lm: the last one whose runs have all ended
    measures: Mapping[str, float] = field(default_factory=dict)  # means over the runs of suite lm
    beyond: tuple[str, ...] = ()  # limits of the study that it breaks
    is_on_front: bool = False  # the Pareto front of `objectives.FRONT`
    objective: float | None = None  # in place of the score, more is better; None for the score

    @property
    def layers(self) -> tuple[str, ...]:
        """One string per layer."""
        return tuple(self.candidate.split())

    @property
    def state_bytes(self) -> int:
        """Bytes of the state, whose numbers are float32."""
        return STATE_BYTES * self.state

    @property
    def split_score(self) -> float:
        """The score of the split that selects."""
        by_val = self.select == "val" and self.val_score is not None
        return (self.val_score if by_val else self.score) or 0.0

    @property
    def selection_score(self) -> float:
        """The objective of a search: the score of the split that selects; skipped runs count as 0.

        A pruned candidate's skipped runs may be harder than its others, and a sampler must not rank
        it above candidates that had them.
        """
        if self.objective is not None:
            return self.objective
        planned = self.n_runs + len(self.missing)
        return self.split_score * (self.n_runs / planned if self.status == "pruned" else 1.0)

    @property
    def task_configs(self) -> dict[str, dict[str, dict[str, float]]]:
        """Task -> label of a task config -> its accuracy (mean over seeds), width and state."""
        return {
            task: {
                label: {
                    "acc_macro": fmean(run.acc_macro for run in runs),
                    "dim": runs[0].config["dim"],
                    "state": runs[0].state,
                }
                for label, runs in _by("label", own).items()
            }
            for task, own in _by("task", self.best).items()
        }


def scores(
    records: Iterable[CandidateRecord],
    suite: Suite,
    seeds: Sequence[int],
    select: Select = "test",
    n_rungs: int = 1,
) -> list[CandidateScore]:
    """Return the score of every candidate: by score, then by size.

    Unfinished candidates are behind the finished ones, lost ones last.

    Of the records of one run the last one counts. Interrupted runs count as missing; runs outside
    the suite or the seeds are ignored. `select` is the split whose accuracy selects within a sweep,
    and orders the candidates. With `n_rungs` the text runs of a candidate's last whole rung count.
    """
    records = list(records)
    text = [run for run in records if run.task == TEXT_TASK and run.status != "interrupted"]
    rung_of = _rungs(text, len(seeds) * len(suite.sweep))
    expected = {
        (one.task, one.label, seed, number): f"{one.task} {one.label} {_words(point)} seed {seed}"
        for seed in seeds
        for one in suite.task_configs
        for number, point in enumerate(suite.sweep)
    }
    runs: dict[str, dict[Place, CandidateRecord]] = defaultdict(dict)
    for run in records:
        for number, point in enumerate(suite.sweep):
            place, recipe = (run.task, run.label, run.seed, number), run.config["recipe"]
            fits = all(recipe.get(name) == value for name, value in point.items())
            fits &= run.task != TEXT_TASK or run.rung == rung_of[run.candidate]
            if fits and place in expected and run.status != "interrupted":
                runs[run.candidate][place] = run
    furthest = max(rung_of.values(), default=0)
    rows = [
        _row(candidate, own, expected, suite, select, rung_of.get(candidate, 0))
        for candidate, own in runs.items()
    ]
    rows = [
        replace(row, status="pruned" if row.rung < furthest else "partial")
        if row.status == "done" and row.rung < n_rungs - 1
        else row
        for row in rows
    ]

    def key(row: CandidateScore) -> tuple[object, ...]:
        last = row.status in LOST, row.status in UNFINISHED
        return *last, -row.selection_score, row.params, row.candidate

    return sorted(rows, key=key)


def _rungs(runs: Iterable[CandidateRecord], n_runs: int) -> dict[str, int]:
    """Return candidate -> its last rung with all runs, or 0."""
    keys: dict[tuple[str, int], set[str]] = defaultdict(set)
    for run in runs:
        keys[run.candidate, run.rung].add(run.key)
    whole: dict[str, int] = {}
    for (candidate, rung), own in keys.items():
        whole[candidate] = max(whole.get(candidate, 0), rung if len(own) >= n_runs else 0)
    return whole


Place = tuple[str, str, int, int]
"""Task, label of the task config, seed and place in the sweep of a run."""


def _row(
    candidate: str,
    by_place: Mapping[Place, CandidateRecord],
    expected: Mapping[Place, str],
    suite: Suite,
    select: Select,
    rung: int,
) -> CandidateScore:
    runs = [by_place[place] for place in expected if place in by_place]
    missing = {place: words for place, words in expected.items() if place not in by_place}
    whole = {seed for _, _, seed, _ in expected} - {seed for _, _, seed, _ in missing}

    def interval(values: Iterable[float]) -> float | None:
        looked = single_look(list(values))
        return looked.high - looked.mean if whole and looked.pairs > 1 else None

    counted = [run for run in _best(runs, select) if run.seed in whole or not whole]
    of_task = _by("task", counted)
    by_seed = {
        seed: {task: fmean(run.acc_macro for run in own) for task, own in _by("task", some).items()}
        for seed, some in sorted(_by("seed", counted).items())
    }
    seeds = {seed: fmean(own.values()) for seed, own in by_seed.items()}
    val_tasks = _val_tasks(of_task)
    statuses = [run.status for run in runs]
    status = statuses[-1] if all(status in LOST for status in statuses) else "done"
    failed = {"val_bits_per_byte": WORST_BITS}  # as a run that diverged
    measured = [run.measures or failed for run in counted if run.task == TEXT_TASK]
    names = dict.fromkeys(name for own in measured for name in own)
    measures = {n: fmean(own[n] for own in measured if n in own) for n in names}
    dim = int(measures.get("dim", suite.dim))
    # Runs of another width count only while there is no other run.
    sized = [run for run in runs if run.config["dim"] == suite.dim] or runs
    return CandidateScore(
        candidate=candidate,
        score=fmean(seeds.values()),
        interval=interval(seeds.values()),
        val_score=fmean(val_tasks.values()) if val_tasks else None,
        seeds=seeds,
        tasks={task: fmean(run.acc_macro for run in own) for task, own in of_task.items()},
        val_tasks=val_tasks,
        intervals={
            task: interval(own[task] for own in by_seed.values() if task in own) for task in of_task
        },
        acc_token={task: fmean(run.acc_token for run in own) for task, own in of_task.items()},
        best_achievable={
            task: fmean(run.best_achievable for run in own) for task, own in of_task.items()
        },
        best=tuple(counted),
        params=params(at_width(parse(candidate), dim), dim),
        state=max(run.state for run in sized),
        seconds=sum(run.seconds for run in runs),
        status="pruned" if "pruned" in statuses else "partial" if missing else status,
        n_runs=len(runs),
        n_diverged=statuses.count("diverged"),
        n_failed=statuses.count("failed"),
        missing=tuple(missing.values()),
        select=select,
        rung=rung,
        measures=measures,
    )


def _best(runs: Iterable[CandidateRecord], select: Select) -> list[CandidateRecord]:
    """The best run of every seed and task config, the first of equal ones; lost ones have 0."""
    best: dict[tuple[str, str, int], tuple[float, CandidateRecord]] = {}
    for run in runs:
        if run.status in LOST:
            val = None if run.val_macro is None and select == "test" else 0.0
            run = replace(run, acc_macro=0.0, acc_token=0.0, val_macro=val)
        value = (run.acc_macro if select == "test" else run.val_macro) or 0.0
        at = (run.task, run.label, run.seed)
        if at not in best or value > best[at][0]:
            best[at] = (value, run)
    return [run for _, run in best.values()]


def _val_tasks(of_task: Mapping[str, Sequence[CandidateRecord]]) -> dict[str, float]:
    """Return task -> score of its validation rows; {} if a run of a task lacks them.

    The score of text is of validation text.
    """
    vals = {
        task: [run.acc_macro if task == TEXT_TASK else run.val_macro for run in own]
        for task, own in of_task.items()
    }
    known = {task: [v for v in own if v is not None] for task, own in vals.items()}
    is_whole = known == vals and vals.keys() != {TEXT_TASK}
    return {task: fmean(own) for task, own in known.items()} if is_whole else {}


def _by(key: str, runs: Iterable[CandidateRecord]) -> dict[Any, list[CandidateRecord]]:
    """Runs by a field, in the order of the first of each."""
    by: dict[Any, list[CandidateRecord]] = {}
    for run in runs:
        by.setdefault(getattr(run, key), []).append(run)
    return by


def _words(point: Mapping[str, float | None]) -> str:
    return " ".join(f"{name} {'auto' if v is None else f'{v:g}'}" for name, v in point.items())
