"""A session of a study, from the command line: what it would do, how it goes, how it ended."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from mlxhog.config.options import options
from mlxhog.config.quantities import format_clock, format_count

if TYPE_CHECKING:
    from mlxhog.mad.study.execution import ExecutionConfig
    from mlxhog.mad.study.planning import Planning
    from mlxhog.mad.study.scheduler import Outcome
    from mlxhog.mad.study.store import Store
    from mlxhog.mad.study.study import Study

EXIT_CODES = {"done": 0, "budget": 0, "interrupted": 130}
ALL_FAILED = 1
DAY_S = 86_400


def begin(
    study: Study, planning: Planning, name: str, how: ExecutionConfig, asked: Namespace
) -> int:
    """Begin a study, or go on with the same one; returns the exit code.

    Args:
        study: as the command line describes it.
        planning: of the study.
        name: of its directory.
        how: it is executed.
        asked: whether for a `dry_run`, for `json`, for `quiet`.

    Raises:
        StudyError: the directory holds another study, or one of another version.
    """
    from mlxhog.mad.study.session import find_same, open_store

    if asked.dry_run:
        store = find_same(study, how.out, name)
        return dry_run(planning, name, how, store, as_json=asked.json)
    store = open_store(study, how.out, name)
    return go(store, planning, how, as_json=asked.json, quiet=asked.quiet)


def dry_run(
    planning: Planning, name: str, how: ExecutionConfig, store: Store | None, *, as_json: bool
) -> int:
    """Print what a session would do; returns the exit code.

    Args:
        planning: of the study.
        name: of the study.
        how: it would be executed.
        store: of the study, where there is one.
        as_json: one JSON object instead.
    """
    from mlxhog.machine import machine
    from mlxhog.mad.study.guess import seconds_of_a_run

    study, cost, here = planning.study, planning.cost(), machine.here()
    records = () if store is None else store.records()
    parallel = how.resolve_parallel(study, here)
    runs = min(cost.runs, how.limit.runs or cost.runs)
    left = max(0, runs - len(records))
    seconds = seconds_of_a_run(planning, records, here.cores) * left / parallel
    facts: dict[str, Any] = {
        "study": name,
        "suite": study.suite,
        "candidates": planning.candidates,
        "unused": planning.unused,
        "runs_each": planning.suite.runs * len(study.seeds),
        "seeds": list(study.seeds),
        "runs": runs,
        "ended": len(records),
        "steps": cost.steps * left // cost.runs,
        "parallel": parallel,
        "estimated_seconds": round(min(seconds, how.limit.seconds or seconds)),
    }
    if as_json:
        print(json.dumps(facts))
        return 0
    guess = "as the runs so far" if records else "a guess from how fast this machine multiplies"
    each = f"each {facts['runs_each']} runs with seeds {', '.join(map(str, study.seeds))}"
    print(f"study        {name}: suite {study.suite}, width {planning.dim}, {study.workers}")
    print(f"candidates   {planning.candidates:,}, {each}")
    if facts["unused"]:
        print(f"in none      {', '.join(facts['unused'])}: the budget leaves no room")
    print(f"runs         at most {runs:,}, {len(records):,} have ended; {parallel} at once")
    print(f"steps        at most {facts['steps']:,} ({format_count(facts['steps'])}) to go")
    print(f"time         about {_long(facts['estimated_seconds'])}: {guess}")
    return 0


def _long(seconds: float) -> str:
    """A time that may be years."""
    return format_clock(seconds) if seconds < 4 * DAY_S else f"{seconds / DAY_S:,.0f} days"


def go(
    store: Store,
    planning: Planning,
    how: ExecutionConfig,
    *,
    as_json: bool,
    quiet: bool,
    retry_failed: bool = False,
) -> int:
    """Go through a session, and say how it ended; returns the exit code."""
    from mlxhog.machine import machine
    from mlxhog.mad.report.board import observer
    from mlxhog.mad.study.session import execute

    study, here = planning.study, machine.here()
    parallel = how.resolve_parallel(study, here)
    threads = parallel * study.cores
    if threads > here.cores and how.ray_address is None:
        print(
            f"{parallel} candidates at once have {threads} threads, this machine {here.cores} "
            "cores: they share, which adds no speed",
            file=sys.stderr,
        )
    outcome = execute(
        store,
        planning,
        how,
        parallel,
        observer(sys.stderr, quiet=quiet),
        retry_failed=retry_failed,
    )
    if as_json:
        print(json.dumps(record(store, outcome)))
    else:
        print(summary(store, outcome, how))
    return ALL_FAILED if _all_failed(outcome) else EXIT_CODES[outcome.status]


def record(store: Store, outcome: Outcome) -> dict[str, Any]:
    """Return how a session ended, as JSON has it."""
    statuses = ("done", "failed", "pruned", "diverged")
    best = None if outcome.best is None or _all_failed(outcome) else asdict(outcome.best)
    return {
        "study": str(store.directory),
        "status": outcome.status,
        "runs": {name: outcome.statuses.get(name, 0) for name in statuses},
        "seconds": outcome.seconds,
        "best": best,
    }


def summary(store: Store, outcome: Outcome, how: ExecutionConfig) -> str:
    """Say how a session ended, what is best, and what to type next."""
    ended = sum(outcome.statuses.values())
    counts = ", ".join(f"{n} {status}" for status, n in sorted(outcome.statuses.items()))
    words = {"done": "done", "budget": "the budget is used up", "interrupted": "interrupted"}
    lines = [
        f"{words[outcome.status]}: {ended} runs have ended ({counts or 'none'}) after "
        f"{format_clock(outcome.seconds)} of this session"
    ]
    best = outcome.best
    if best is not None and not _all_failed(outcome):
        interval = "" if best.interval is None else f" +- {best.interval:.3f}"
        lacks = f" ({best.missing} runs are missing)" if best.missing else ""
        lines.append(f"best: {best.candidate}  {best.score:.3f}{interval}{lacks}")
    name = _name(store, how)
    if outcome.statuses.get("failed"):
        lines.append(
            f"failed runs: reasons in {how.out}/{store.name}/runs.jsonl, and logs/ beside it; "
            f"again with mlxhog mad resume {name} --retry-failed"
        )
    if outcome.status != "done":
        lines.append(f"go on: mlxhog mad resume {name}{_flags(how)}")
    lines.append(f"next: mlxhog mad board {name}   mlxhog mad plot {name}")
    return "\n".join(lines)


def _all_failed(outcome: Outcome) -> bool:
    """No run of the study has a score that means anything."""
    return outcome.status != "interrupted" and set(outcome.statuses) == {"failed"}


def _name(store: Store, how: ExecutionConfig) -> str:
    """What finds the study again from here."""
    default = options(type(how))["out"].default
    return shlex.quote(store.name if how.out == default else str(store.directory))


def _flags(how: ExecutionConfig) -> str:
    """The flags under which a session goes on as it was; a budget that is used up is none."""
    specs = options(type(how))
    return "".join(
        f" {specs[field.name].flag} {shlex.quote(str(specs[field.name].spell(value)))}"
        for field in fields(how)
        if field.name not in ("budget", "out")
        and (value := getattr(how, field.name)) != specs[field.name].default
    )
