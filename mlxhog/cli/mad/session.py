"""A study on the command line: its options, and one session of it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TextIO

from mlxhog.base.quantities import format_count, format_duration, parse_number
from mlxhog.cli.flags import Flags, Parsed
from mlxhog.config.options import option, options
from mlxhog.config.sources import Config, resolve, values_of
from mlxhog.errors import ConfigError
from mlxhog.mad.options import PROTOCOL, ExecutionConfig, Protocol
from mlxhog.report.streams import console
from mlxhog.report.views import Observer, Silence, may_redraw

if TYPE_CHECKING:
    from mlxhog.mad.study.progress import StudyProgress
    from mlxhog.mad.study.scheduler import SessionResult
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
    )
    dim: int | None = option(None, "width", low=1, none="the architecture's, or the suite's")
    backend: str | None = option(
        None, "mlx or torch, or one of them with its device, such as mlx:cpu", none="torch:cpu"
    )
    workers: str | None = option(
        None, "several workers inside a candidate, such as mlx:cpu,torch:cpu", none="one"
    )
    threads: int = option(1, "threads of each worker", low=1)
    share_embedding: bool = option(
        False, "candidates train one embedding table together, lock-free"
    )


def add(flags: Flags, *classes: type) -> None:
    """Add the flags of every command, after the options of some classes."""
    flags.argument("--study", metavar="NAME", help="name of the study, new or to be continued")
    flags.plugin()
    flags.argument("--dry-run", action="store_true", help="say what would run, and stop")
    add_output(flags)
    for cls in (*classes, StudyConfig):
        flags.options(cls)
    group = "training of every run; replaces the values of the suite"
    flags.options(Protocol, only=PROTOCOL, group=group, default="the suite's")
    flags.options(ExecutionConfig)


def add_output(flags: Flags) -> None:
    """Add the flags of a command's output."""
    flags.argument("--json", action="store_true", help="end with one line of JSON")
    flags.quiet()


def part(
    cls: type[Config], parsed: Parsed, problems: list[str], only: Sequence[str] | None = None
) -> Config | None:
    """Return the options of one class; None if one is wrong, after adding it to `problems`."""
    names = options(cls) if only is None else only
    try:
        return resolve(cls, [{n: value for n, value in parsed.values.items() if n in names}])
    except ConfigError as error:
        problems.append(str(error))
        return None


def parts(parsed: Parsed, *classes: type[Any]) -> list[Any]:
    """Return the options of every class.

    Raises:
        ConfigError: every problem of any of them, and of the command line.
    """
    problems = list(parsed.problems)
    configs = [part(cls, parsed, problems) for cls in classes]
    typed = part(Protocol, parsed, problems, PROTOCOL)
    problems += [] if typed is None else typed.unused
    if problems:
        raise ConfigError("\n".join(problems))
    return configs


def protocol(parsed: Parsed) -> dict[str, object]:
    """Return the given fields of the protocol as plain values; steps replace a suite's epochs.

    Numbers of an optimizer that is not named are those of the suite's.
    """
    chosen = part(Protocol, parsed, [], PROTOCOL)
    assert chosen is not None, "`parts` has refused wrong ones"
    named = set(parsed.values)
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
    try:
        numbers = tuple(int(word) for word in text.split(",") if word.strip() or "," not in text)
    except ValueError:
        numbers = ()
    if "," not in text:
        numbers = tuple(range(FIRST_SEED, FIRST_SEED + numbers[0])) if numbers else ()
    if (
        not numbers
        or len(set(numbers)) < len(numbers)
        or not all(0 <= seed < 2**32 for seed in numbers)
    ):
        raise ConfigError(
            f"--seeds is {text!r}; give a number, such as 3, or different ones such as 1,2,3"
        )
    return numbers


def rates(text: str) -> tuple[float, ...]:
    """Read step sizes such as `5e-4,1e-3,2e-3`.

    Raises:
        ConfigError: the list is empty, a value is not above 0, or they do not ascend.
    """
    try:
        values = tuple(map(parse_number, text.split(",")))
    except ValueError:
        values = ()
    if not values or min(values) <= 0:
        raise ConfigError(f"--rates is {text!r}; give step sizes above 0, such as 5e-4,1e-3,2e-3")
    if twice := [f"{one:g}" for one, after in pairwise(sorted(values)) if one == after]:
        raise ConfigError(f"--rates is {text!r} and has {twice[0]} twice; leave one out")
    ascending = sorted(values)
    if list(values) != ascending:
        spelt = ",".join(f"{one:g}" for one in ascending)
        raise ConfigError(f"--rates is {text!r}, which does not ascend; give {spelt}")
    return values


def common(config: StudyConfig, parsed: Parsed) -> dict[str, Any]:
    """Return the fields of `Study` from the shared options.

    Raises:
        ConfigError: the workers or the tasks are impossible.
        EnvironmentLacks: a backend is missing here.
    """
    from mlxhog.base import machine
    from mlxhog.base.workers import backend_here, resolve_workers
    from mlxhog.mad import tasks

    here = machine.here()
    if config.backend is not None and config.workers is not None:
        raise ConfigError(
            "--backend is one worker's and --workers lists the backends of several; keep one"
        )
    workers = config.workers or backend_here(config.backend or "torch:cpu", here)
    resolved = resolve_workers(workers, config.threads, machine=here).workers
    if config.share_embedding and len(resolved) > 1:
        raise ConfigError(
            f"--share-embedding is for candidates of one worker, these have {len(resolved)}; leave "
            "out one of the two"
        )
    fields_set = protocol(parsed)
    if config.rates is not None and "lr" in fields_set:
        raise ConfigError("--lr is one step size and --rates are several; keep one")
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


EXIT_CODES = {"done": 0, "budget": 0, "interrupted": 130}
ALL_FAILED = 1


def begin(study: Study, planning: Planning, name: str, how: ExecutionConfig, parsed: Parsed) -> int:
    """Begin a study, or continue the same one; return the exit code.

    Args:
        study: of the command line.
        planning: of the study.
        name: of its directory.
        how: its execution.
        parsed: the command line, with the flags `dry_run`, `json` and `quiet`.

    Raises:
        StudyError: the directory holds another study, or one of another version.
    """
    from mlxhog.mad.study.study import find_same, open_store

    asked = parsed.other
    if asked.dry_run:
        store = find_same(study, how.out, name)
        how = how if store is None else at_once(store, how, parsed)
        return dry_run(planning, name, how, store, as_json=asked.json)
    store = open_store(study, how.out, name)
    how = at_once(store, how, parsed)
    return go(store, planning, how, as_json=asked.json, quiet=asked.quiet)


def at_once(store: Store, how: ExecutionConfig, parsed: Parsed) -> ExecutionConfig:
    """Return the execution of a session, with the study's last --parallel if none is given."""
    if "parallel" in parsed.values:
        return how
    return replace(how, parallel=store.parallel)


def dry_run(
    planning: Planning, name: str, how: ExecutionConfig, store: Store | None, *, as_json: bool
) -> int:
    """Print the plan of a session; return the exit code.

    Args:
        planning: of the study.
        name: of the study.
        how: its execution.
        store: of the study, if it exists.
        as_json: print one JSON object.
    """
    from mlxhog.base import machine

    study, here = planning.study, machine.here()
    records = () if store is None else store.records()
    parallel = how.resolve_parallel(study, here)
    known = [number for number in (planning.total, how.limit.runs) if number is not None]
    runs = min(known) if known else None
    runs_left = None if runs is None else max(0, runs - len(records))
    seconds = steps = None  # until the first run has ended
    if runs_left is not None:
        steps = planning.steps * runs_left // planning.runs_each
        if records:
            mean_s = sum(one.seconds for one in records) / len(records)
            seconds = mean_s * runs_left / parallel
            seconds = round(min(seconds, how.limit.seconds or seconds))
    facts: dict[str, Any] = {
        "study": name,
        "suite": study.suite,
        "candidates": planning.candidates,
        "unused": planning.unused,
        "runs_each": planning.runs_each,
        "seeds": list(study.seeds),
        "runs": runs,
        "ended": len(records),
        "steps": steps,
        "parallel": parallel,
        "estimated_seconds": seconds,
    }
    if as_json:
        print(json.dumps(facts))
        return 0
    each = f"each {facts['runs_each']} runs with seeds {', '.join(map(str, study.seeds))}"
    print(f"study        {name}: suite {study.suite}, width {planning.dim}, {study.workers}")
    count = "more than can be listed" if facts["candidates"] is None else f"{facts['candidates']:,}"
    print(f"candidates   {count}, {each}")
    if facts["unused"]:
        print(f"in none      {', '.join(facts['unused'])}: the budget leaves no room")
    most = "no limit" if runs is None else f"at most {runs:,}"
    print(f"runs         {most}, {len(records):,} have ended; {parallel} at once")
    if steps is not None:
        print(f"steps        at most {steps:,} ({format_count(steps)}) to go")
    if seconds is None:
        print("time         unknown until the first run has ended")
    else:
        print(f"time         about {format_duration(seconds)}, as the runs so far")
    return 0


def go(
    store: Store,
    planning: Planning,
    how: ExecutionConfig,
    *,
    as_json: bool,
    quiet: bool,
    retry_failed: bool = False,
) -> int:
    """Execute a session and print its result; return the exit code."""
    from mlxhog.base import machine
    from mlxhog.mad.study.session import execute

    study, here = planning.study, machine.here()
    parallel = how.resolve_parallel(study, here)
    threads = parallel * study.cores
    if threads > here.cores and how.ray_address is None and not quiet:
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
        observer(sys.stderr, quiet=quiet),
        retry_failed=retry_failed,
    )
    if as_json:
        print(json.dumps(record(store, outcome)))
    elif not quiet:
        print(summary(store, outcome, how))
    return ALL_FAILED if _all_failed(outcome) else EXIT_CODES[outcome.status]


def record(store: Store, outcome: SessionResult) -> dict[str, Any]:
    """Return the result of a session for JSON."""
    statuses = ("done", "failed", "pruned", "diverged")
    best = None if outcome.best is None or _all_failed(outcome) else asdict(outcome.best)
    return {
        "study": str(store.directory),
        "status": outcome.status,
        "runs": {name: outcome.statuses.get(name, 0) for name in statuses},
        "seconds": outcome.seconds,
        "best": best,
    }


def summary(store: Store, outcome: SessionResult, how: ExecutionConfig) -> str:
    """Return the result of a session, the best candidate, and the next commands."""
    ended = sum(outcome.statuses.values())
    counts = ", ".join(f"{n} {status}" for status, n in sorted(outcome.statuses.items()))
    words = {"done": "done", "budget": "the budget is used up", "interrupted": "interrupted"}
    lines = [
        f"{words[outcome.status]}: {ended} runs have ended ({counts or 'none'}) after "
        f"{format_duration(outcome.seconds)} of this session"
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
        lines.append(f"continue: mlxhog mad resume {name}{_flags(how)}")
    lines += [f"next: mlxhog mad board {name}", f"      mlxhog mad plot {name}"]
    return "\n".join(lines)


def _all_failed(outcome: SessionResult) -> bool:
    """Whether every run of the study failed."""
    return outcome.status != "interrupted" and set(outcome.statuses) == {"failed"}


def _name(store: Store, how: ExecutionConfig) -> str:
    """Return the name or the path of the study for the next commands."""
    default = options(type(how))["out"].default
    return shlex.quote(store.name if how.out == default else str(store.directory))


def _flags(how: ExecutionConfig) -> str:
    """Return the flags that continue a session unchanged, without its used budget."""
    specs = options(type(how))
    return "".join(
        f" {specs[field.name].flag} {shlex.quote(str(specs[field.name].spell(value)))}"
        for field in fields(how)
        if field.name not in ("budget", "out")
        and (value := getattr(how, field.name)) != specs[field.name].default
    )


def observer(
    stream: TextIO, *, quiet: bool = False, environ: Mapping[str, str] = os.environ
) -> AbstractContextManager[Observer[StudyProgress]]:
    """Return a live board, or plain lines if the stream cannot be redrawn; see `may_redraw`."""
    from mlxhog.mad.report.board import LiveBoard, PlainBoard

    if quiet:
        silence: Silence[StudyProgress] = Silence()
        return silence
    if may_redraw(stream, environ):
        return LiveBoard(console(stream))
    return PlainBoard(stream)
