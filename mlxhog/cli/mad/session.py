"""A study on the command line: its options, and one session of it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TextIO

from mlxhog.base.quantities import format_duration, parse_number
from mlxhog.cli.flags import Part, Plugins, Quiet, Written
from mlxhog.cli.frame import Report, written
from mlxhog.config.options import option, options, switch
from mlxhog.config.sources import values_of
from mlxhog.errors import ConfigError
from mlxhog.mad.options import PROTOCOL, ExecutionConfig, Protocol
from mlxhog.report.streams import console
from mlxhog.report.views import Observer, View, may_redraw

if TYPE_CHECKING:
    from mlxhog.mad.study.scheduler import StudyProgress
    from mlxhog.mad.study.session import Planning
    from mlxhog.mad.study.store import Store
    from mlxhog.mad.study.study import Study

FIRST_SEED = 12345


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Options of the definition of a study."""

    suite: str | None = option(
        None,
        "tasks and optimiser points, such as smoke, lite or full; mlxhog mad suites lists all",
        none="the space's, or smoke",
    )
    tasks: str | None = option(None, "only these tasks of the suite, by commas", none="all")
    seeds: str = option(
        "1", f"number of seeds of every run, from {FIRST_SEED} on; or a list: 1,2,3"
    )
    rates: str | None = option(
        None,
        "step sizes such as 5e-4,1e-3,2e-3: the best one of each setting counts; the suite's own "
        "is always among them, and its score stands beside the best",
        none="the suite's",
        excludes=("lr",),
    )
    dim: int | None = option(None, "width", low=1, none="the architecture's, or the suite's")
    backend: str | None = option(
        None, "mlx or torch, or one of them with its device, such as mlx:cpu", none="torch:cpu"
    )
    workers: str | None = option(
        None,
        "several workers inside a candidate, such as mlx:cpu,torch:cpu",
        none="one",
        excludes=("backend",),
    )
    threads: int = option(1, "threads of each worker", low=1)
    share_embedding: bool = option(
        False, "candidates train one embedding table together, lock-free"
    )


@dataclass(frozen=True, kw_only=True)
class OutputConfig(Plugins, Quiet):
    """Options of the output of a session."""

    dry_run: bool = switch("say what would run, and stop")


@dataclass(frozen=True, kw_only=True)
class BeginConfig(OutputConfig):
    """Options of the beginning of a study."""

    study: str | None = option(None, "name of the study, new or to be continued", metavar="NAME")


PROTOCOL_PART = Part(
    Protocol,
    PROTOCOL,
    "training of every run; replaces the values of the suite",
    "the suite's",
    merged=True,
)


def protocol(typed: Written) -> dict[str, object]:
    """Return the written fields of the protocol as plain values; steps replace a suite's epochs.

    Numbers of an optimizer that is not named are those of the suite's.

    Raises:
        ConfigError: every problem of them, and of the command line.
    """
    chosen = typed.read(Protocol)
    if chosen.unused:
        raise ConfigError("\n".join(chosen.unused))
    named = set(typed.values)
    values = {**values_of(chosen), "optimizer": str(chosen.optimizer)}
    if "optimizer" in named:
        named -= set(PROTOCOL) - set(options(Protocol))
    fields_set = {name: values[name] for name in PROTOCOL if name in named}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if fields_set.get(one) is not None:
            fields_set.setdefault(other, None)
    return fields_set


def seeds(text: str) -> tuple[int, ...]:
    """Read `3`, a number of seeds from `FIRST_SEED` on, or the list `1,2,3`.

    Raises:
        ConfigError: it is neither.
    """
    with suppress(ValueError):
        numbers = [int(word) for word in text.removesuffix(",").split(",")]
        if "," not in text:
            numbers = [*range(FIRST_SEED, FIRST_SEED + numbers[0])]
        if (
            numbers
            and len({*numbers}) == len(numbers)
            and 0 <= min(numbers) <= max(numbers) < 2**32
        ):
            return tuple(numbers)
    raise ConfigError(
        f"--seeds is {text!r}; give a number, such as 3, or different ones such as 1,2,3"
    )


def rates(text: str) -> tuple[float, ...]:
    """Read step sizes such as `5e-4,1e-3,2e-3`.

    Raises:
        ConfigError: the list is empty, a value is not above 0, or they do not ascend.
    """
    with suppress(ValueError):
        values = [parse_number(word) for word in text.split(",")]
        if values[0] > 0 and all(one < after for one, after in pairwise(values)):
            return tuple(values)
    raise ConfigError(
        f"--rates is {text!r}; give step sizes above 0, each larger than the one before, such as "
        "5e-4,1e-3,2e-3"
    )


def common(config: StudyConfig, fields_set: dict[str, object]) -> dict[str, Any]:
    """Return the fields of `Study` from the shared options and those of `protocol`.

    Raises:
        ConfigError: the workers or the tasks are impossible.
        EnvironmentLacks: a backend is missing here.
    """
    from mlxhog.base import machine
    from mlxhog.base.workers import backend_here, resolve_workers
    from mlxhog.mad import tasks

    here = machine.here()
    workers = config.workers or backend_here(config.backend or "torch:cpu", here)
    resolved = resolve_workers(workers, config.threads, machine=here).workers
    names = (
        [] if config.tasks is None else [tasks.find(name).name for name in config.tasks.split(",")]
    )
    return {
        "tasks": tuple(name for name in tasks.known() if name in names),
        "protocol": fields_set,
        "seeds": seeds(config.seeds),
        "rates": () if config.rates is None else rates(config.rates),
        "workers": ",".join(worker.backend for worker in resolved),
        "threads": config.threads,
        "share_embedding": config.share_embedding,
    }


def begin(
    study: Study, planning: Planning, default_name: str, how: ExecutionConfig, asked: BeginConfig
) -> Report:
    """Begin a study, or continue the same one.

    Raises:
        StudyError: the directory holds another study, or one of another version.
    """
    from mlxhog.mad.study.study import find_same, open_store

    name = asked.study or default_name
    if asked.dry_run:
        return dry_run(planning, name, how, find_same(study, how.out, name))
    return go(open_store(study, how.out, name), planning, how, asked)


def dry_run(planning: Planning, name: str, how: ExecutionConfig, store: Store | None) -> Report:
    """Return the plan of a session of a study, which may have a store."""
    from mlxhog.base import machine

    study, here = planning.study, machine.here()
    records = () if store is None else store.records()
    parallel = how.resolve_parallel(study, here)
    known = [number for number in (planning.total, how.limit.runs) if number is not None]
    runs = min(known) if known else None
    seconds = steps = None  # until the first run has ended
    if runs is not None:
        runs_left = max(0, runs - len(records))
        steps = planning.steps * runs_left // planning.runs_each
        if records:
            mean_s = sum(one.seconds for one in records) / len(records)
            seconds = mean_s * runs_left / parallel
            seconds = round(min(seconds, how.limit.seconds or seconds))
    facts: dict[str, Any] = {
        "study": name,
        "suite": study.suite,
        "candidates": planning.candidates,
        "runs_each": planning.runs_each,
        "seeds": list(study.seeds),
        "runs": runs,
        "ended": len(records),
        "steps": steps,
        "parallel": parallel,
        "estimated_seconds": seconds,
    }

    count, dim = planning.candidates, planning.dim
    words = {
        "study": f"{name}: suite {study.suite}, width {dim}, {study.workers}",
        "candidates": "more than can be listed" if count is None else count,
        "each": f"{planning.runs_each} runs with seeds {', '.join(map(str, study.seeds))}",
        "runs": "no limit" if runs is None else f"at most {runs:,}",
        "ended": len(records),
        "at once": parallel,
        "steps": steps,
        "time": "unknown until the first run has ended"
        if seconds is None
        else f"about {format_duration(seconds)}, as the runs so far",
    }
    return Report(facts, words=words)


def go(
    store: Store,
    planning: Planning,
    how: ExecutionConfig,
    asked: OutputConfig,
    *,
    retry_failed: bool = False,
) -> Report:
    """Execute a session."""
    from mlxhog.base import machine
    from mlxhog.mad.study.session import execute

    study, here = planning.study, machine.here()
    parallel = how.resolve_parallel(study, here)
    threads = parallel * study.cores
    if threads > here.cores and how.ray_address is None and not asked.quiet:
        print(
            f"{parallel} candidates at once have {threads} threads, this machine {here.cores} "
            "cores, so more candidates at once are not faster",
            file=sys.stderr,
        )
    outcome = execute(
        store,
        planning,
        how,
        parallel,
        observer(sys.stderr, quiet=asked.quiet),
        retry_failed=retry_failed,
    )
    failed = outcome.status != "interrupted" and set(outcome.statuses) == {"failed"}
    best = None if failed else outcome.best
    statuses = ("done", "failed", "pruned", "diverged")
    facts = {
        "study": str(store.directory),
        "status": outcome.status,
        "runs": {name: outcome.statuses.get(name, 0) for name in statuses},
        "seconds": outcome.elapsed_s,
        "best": None if best is None else asdict(best),
    }
    ended = sum(outcome.statuses.values())
    counts = ", ".join(f"{n} {status}" for status, n in sorted(outcome.statuses.items()))
    state = {"budget": "the budget is used up"}.get(outcome.status, outcome.status)
    head = (
        f"{state}: {ended} runs have ended ({counts or 'none'}) after "
        f"{format_duration(outcome.elapsed_s)} of this session"
    )
    default = options(type(how))["out"].default
    name = shlex.quote(store.name if how.out == default else str(store.directory))
    notes = []
    if outcome.statuses.get("failed"):
        notes.append(
            f"failed runs: reasons in {how.out}/{store.name}/runs.jsonl, and logs/ beside it; "
            f"again with mlxhog mad resume {name} --retry-failed"
        )
    if outcome.status != "done":  # its budget is used up
        flags = written(how, leave_out=("budget", "out"))
        notes.append(f"continue: mlxhog mad resume {name}" + f" {flags}" * bool(flags))
    notes += [f"next: mlxhog mad board {name}", f"      mlxhog mad plot {name}"]
    code = 1 if failed else {"interrupted": 130}.get(outcome.status, 0)
    return Report(facts, head, words={"best": facts["best"]}, notes=notes, code=code)


def observer(
    stream: TextIO, *, quiet: bool = False, environ: Mapping[str, str] = os.environ
) -> AbstractContextManager[Observer[StudyProgress]]:
    """Return a live board, or plain lines if the stream cannot be redrawn; see `may_redraw`."""
    from mlxhog.mad.report.board import LiveBoard, PlainBoard

    if quiet:
        silence: View[StudyProgress] = View()
        return silence
    if may_redraw(stream, environ):
        return LiveBoard(console(stream))
    return PlainBoard(stream)
