"""Options that commands share which begin a study, and the study that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from mlxhog.cli.flags import Flags, Parsed
from mlxhog.config.options import option, options
from mlxhog.config.sources import Config, resolve
from mlxhog.errors import ConfigError
from mlxhog.mad.protocol import Protocol
from mlxhog.mad.study.execution import ExecutionConfig

FIRST_SEED = 12345
PROTOCOL = tuple(field.name for field in fields(Protocol))
"""What may differ from the suite's; lr and weight_decay take the place of its optimiser points."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Options that say what a study consists of."""

    suite: str | None = option(
        None, "tasks and optimiser points: smoke, lite or full", none="the space's, or smoke"
    )
    tasks: str | None = option(None, "only these tasks of the suite, by commas", none="all")
    seeds: str = option(
        "1", f"every run with so many seeds from {FIRST_SEED} on, or with these: 1,2,3"
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
        False, "candidates train one embedding table together, lock-free; see mad board"
    )
    batch_candidates: int = option(
        1,
        "hand so many small runs of one shape to one worker, which trains them as one batched "
        "computation where that is faster",
        low=1,
    )


def add(flags: Flags, *classes: type) -> None:
    """Add what every command has, and the options of some classes before it."""
    flags.argument("--study", metavar="NAME", help="name of the study, or of the one to go on with")
    flags.argument("--dry-run", action="store_true", help="say what would run, and stop")
    add_output(flags)
    for cls in (*classes, StudyConfig):
        flags.options(cls)
    group = "training of every run, over what the suite says"
    flags.options(Protocol, only=PROTOCOL, group=group, default="the suite's")
    flags.options(ExecutionConfig)


def add_output(flags: Flags) -> None:
    """Add how a command shows what it does."""
    flags.argument("--json", action="store_true", help="end with one line of JSON")
    flags.argument("--quiet", action="store_true", help="plain lines instead of a live board")


def part(
    cls: type[Config], parsed: Parsed, problems: list[str], only: Sequence[str] | None = None
) -> Config | None:
    """Return the options of one class; None where something is wrong, which `problems` gets."""
    names = options(cls) if only is None else only
    try:
        return resolve(cls, [[given for given in parsed.given if given.name in names]])
    except ConfigError as error:
        problems.append(str(error))
        return None


def parts(parsed: Parsed, *classes: type[Any]) -> list[Any]:
    """Return an object of every class.

    Raises:
        ConfigError: everything that is wrong in any of them, and in the command line.
    """
    problems = list(parsed.problems)
    found = [part(cls, parsed, problems) for cls in classes]
    part(Protocol, parsed, problems, PROTOCOL)
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def protocol(parsed: Parsed) -> dict[str, object]:
    """Return the fields of the protocol that were given; steps replace a suite's epochs."""
    chosen = part(Protocol, parsed, [], PROTOCOL)
    named = {given.name for given in parsed.given}
    aliases = {alias: name for name, one in options(Protocol).items() for alias in one.aliases}
    named = {aliases.get(name, name) for name in named}
    found: dict[str, object] = {name: getattr(chosen, name) for name in PROTOCOL if name in named}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if found.get(one) is not None:
            found.setdefault(other, None)
    return found


def seeds(text: str) -> tuple[int, ...]:
    """Read `3`, which is so many from `FIRST_SEED` on, or the list `1,2,3`.

    Raises:
        ConfigError: it is neither.
    """
    try:
        found = tuple(int(word) for word in text.split(",") if word.strip() or "," not in text)
    except ValueError:
        found = ()
    if "," not in text:
        found = tuple(range(FIRST_SEED, FIRST_SEED + found[0])) if found else ()
    if not found or len(set(found)) < len(found) or not all(0 <= seed < 2**32 for seed in found):
        raise ConfigError(
            f"--seeds is {text!r}; wanted how many, such as 3, or different ones such as 1,2,3"
        )
    return found


def common(given: StudyConfig, parsed: Parsed) -> dict[str, Any]:
    """Return the fields of `Study` that follow from the shared options.

    Raises:
        ConfigError: the workers or the tasks cannot be.
        EnvironmentLacks: a backend is missing here.
    """
    from mlxhog.machine import machine
    from mlxhog.machine.workers import backend_here, resolve_workers
    from mlxhog.mad import tasks

    here = machine.here()
    if given.backend is not None and given.workers is not None:
        raise ConfigError(
            "--backend is one worker's and --workers lists the backends of several; keep one"
        )
    workers = given.workers or backend_here(given.backend or "torch:cpu", here)
    resolved = resolve_workers(workers, given.threads, machine=here).workers
    _check_alone(given, len(resolved))
    names = (
        [] if given.tasks is None else [tasks.find(name).name for name in given.tasks.split(",")]
    )
    return {
        "tasks": tuple(name for name in tasks.TASKS if name in names),
        "protocol": protocol(parsed),
        "seeds": seeds(given.seeds),
        "workers": ",".join(worker.backend for worker in resolved),
        "threads": given.threads,
        "share_embedding": given.share_embedding,
        "batch_candidates": given.batch_candidates,
    }


def _check_alone(given: StudyConfig, workers: int) -> None:
    """Refuse what candidates of several workers cannot do.

    Raises:
        ConfigError: a flag needs candidates of one worker.
    """
    flags = {"--share-embedding": given.share_embedding}
    flags["--batch-candidates"] = given.batch_candidates > 1
    for flag, wanted in flags.items():
        if wanted and workers > 1:
            raise ConfigError(
                f"{flag} is for candidates of one worker, these have {workers}; leave out one of "
                "the two"
            )
