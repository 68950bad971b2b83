"""The Python API `mlxhog.mad.search`, and what it shares with the commands on studies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.quantities import parse_number
from mlxhog.config import plugins
from mlxhog.config.options import options
from mlxhog.config.sources import ConfigSource, of_keywords, resolve, values_of
from mlxhog.mad.options import DEFAULT_SEED, RECIPE, ExecutionConfig, Recipe

if TYPE_CHECKING:
    from mlxhog.display.views import Observer
    from mlxhog.mad.study.scheduler import StudyProgress
    from mlxhog.mad.study.store import Store
    from mlxhog.mad.study.study import Study

CALL = "mad.search()"


def search(
    space: str | Path = "space-small",
    *,
    study: str | None = None,
    suite: str | None = None,
    tasks: Sequence[str] | str | None = None,
    seeds: Sequence[int] | int = 1,
    sampler: str = "grid",
    seed: int = 0,
    prune: bool = True,
    dim: int | None = None,
    backend: str | None = None,
    workers: str | None = None,
    threads: int = 1,
    share_embedding: bool = False,
    plugin: str | Path | Sequence[str | Path] | None = None,
    observer: Observer[StudyProgress] | None = None,
    **values: object,
) -> StudyProgress:
    """Search a space of architectures, or continue the search of that name.

        outcome = mlxhog.mad.search("space-small", study="first", tasks="in-context-recall")
        print(outcome.best)

    Every result is kept in studies/NAME; the same call continues after a kill at any time.

    Args:
        space: a YAML file or a name of the package.
        study: the name of the study; None is that of the space.
        suite: tasks and their training, such as "smoke"; None is the space's, or smoke.
        tasks: only these tasks of the suite.
        seeds: a number of seeds of every run, or the seeds.
        sampler: "grid", "random", "evolution" or "tpe".
        seed: of the sampler.
        prune: end runs early whose candidate has a low rank at a rung.
        dim: width; None is the space's, or the suite's.
        backend: "mlx", "torch" or one with its device; None is torch:cpu.
        workers: several workers inside a candidate, in place of `backend`.
        threads: of each worker.
        share_embedding: candidates train one embedding table together, lock-free.
        plugin: Python files with layers and tasks.
        observer: called with the progress.
        values: of execution (`parallel`, `budget`, `studies_dir`, `executor`, ...), and of every
            run's training (`lr`, `steps`, `optimizer`, ...), by their names in
            `mlxhog options mad search`.

    Raises:
        ConfigError: wrong names and values, all at once where they are of one group.
        StudyError: the study has another definition, is damaged, or another process works on it.
        EnvironmentLacks, WorkerFailed: as of `mlxhog mad search`.
    """
    from mlxhog.mad.samplers.space import read_space, to_space
    from mlxhog.mad.study.session import execute
    from mlxhog.mad.study.store import open_store

    for file in plugins.texts(plugin):
        plugins.load(file)
    own = {name: values.pop(name) for name in options(ExecutionConfig) if name in values}
    how = resolve(ExecutionConfig, [of_keywords(CALL, own)])
    keys = read_space(str(space))
    found = to_space(keys)
    planned, definition = define(
        study, Path(space).stem, Path(how.studies_dir),
        tasks=tasks.split(",") if isinstance(tasks, str) else tasks,
        backend=backend, workers=workers, threads=threads, share_embedding=share_embedding,
        seeds=tuple(range(DEFAULT_SEED, DEFAULT_SEED + seeds) if isinstance(seeds, int) else seeds),
        space=keys, position=found.position, suite=suite or found.suite or "smoke",
        dim=dim or found.dim, recipe=recipe_of(of_keywords(CALL, values)),
        sampler=sampler, sampler_seed=seed, prune=prune,
    )  # fmt: skip
    store = open_store(definition, planned.directory.parent, planned.name)
    return execute(store, definition, how, nullcontext(observer or (lambda progress: None)))


def read_seeds(text: str) -> tuple[int, ...]:
    """Read `3`, a count from `DEFAULT_SEED` on, or the list `1,2,3`; else a ValueError."""
    try:
        numbers = [int(word) for word in text.removesuffix(",").split(",")]
    except ValueError:
        numbers = []
    if "," not in text and numbers:
        numbers = [*range(DEFAULT_SEED, DEFAULT_SEED + numbers[0])]
    is_legal = numbers and len({*numbers}) == len(numbers)
    if not is_legal or not 0 <= min(numbers) <= max(numbers) < 2**32:
        raise ValueError("give a number, such as 3, or different ones such as 1,2,3")
    return tuple(numbers)


def read_rates(text: str) -> tuple[float, ...]:
    """Read ascending learning rates such as `5e-4,1e-3,2e-3`; else a ValueError."""
    try:
        values = tuple(parse_number(word) for word in text.split(","))
    except ValueError:
        values = (0.0,)
    if not all(one < after for one, after in pairwise((0.0, *values))):
        raise ValueError(
            "give learning rates above 0, each larger than the one before, such as 5e-4,1e-3,2e-3"
        )
    return values


def recipe_of(typed: ConfigSource) -> dict[str, object]:
    """Return the written fields of the recipe as plain values; steps replace a suite's epochs.

    Without `optimizer` its hyperparameters change the suite's optimizer.
    """
    chosen, named = resolve(Recipe, [typed]), set(typed)
    values = {**values_of(chosen), "optimizer": str(chosen.optimizer)}
    if "optimizer" in named:
        named -= set(RECIPE) - set(options(Recipe))
    fields = {name: values[name] for name in RECIPE if name in named}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if fields.get(one) is not None:
            fields.setdefault(other, None)
    return fields


def define(
    name: str | None, otherwise: str | None, folder: Path, *, tasks: Sequence[str] | None,
    backend: str | None, workers: str | None, threads: int, **fields: Any,
) -> tuple[Store, Study]:  # fmt: skip
    """Return a study by its fields, and its store, which may not exist yet.

    Its name is `name`, `otherwise`, or made of its definition.
    """
    from mlxhog.base import machine
    from mlxhog.base.workers import backend_here, resolve_workers
    from mlxhog.mad import tasks as known
    from mlxhog.mad.study.store import store_of
    from mlxhog.mad.study.study import Study

    here = machine.here()
    asked = workers or backend_here(backend or "torch:cpu", here)
    resolved = resolve_workers(asked, threads, machine=here).workers
    chosen = {known.find(task).name for task in tasks or ()}
    study = Study(
        **fields,
        tasks=tuple(task for task in known.known() if task in chosen),
        workers=",".join(worker.backend for worker in resolved),
        threads=threads,
    ).remembering()
    digest = hashlib.sha256(json.dumps(study.to_dict(), sort_keys=True).encode()).hexdigest()
    name = name or otherwise or f"bench-{study.suite}-{digest[:8]}"
    return store_of(study, str(folder), name), study
