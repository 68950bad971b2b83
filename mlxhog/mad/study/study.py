"""The definition of a study, written once into `study.yaml`; it decides all runs.

The execution of a study (its place, the number at once, its end) is not part of it, and may change
from session to session.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlxhog.base import typed
from mlxhog.config.plugins import KEY, recalled, remembered, same_files
from mlxhog.errors import ConfigError, StudyError, did_you_mean
from mlxhog.mad.options import Protocol
from mlxhog.mad.scores import Select
from mlxhog.mad.search.space import to_space
from mlxhog.mad.study.store import Store, check_name, create, is_study
from mlxhog.mad.suites import Suite, at_dim, fixed, only, suite, with_rates
from mlxhog.mad.tasks import GENERATOR_VERSION, find
from mlxhog.models.mad.sequence import parse

FORMAT = 1
_STAMP = {"format": "a format", "mlxhog": "mlxhog", "generator": "the tasks' generators"}
_IF_SET = ("rates", "share_embedding", KEY)
"""Fields that `study.yaml` has only if they are not empty."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that decides the runs and their results."""

    # the search space, as in its file; empty for a list of candidates
    space: Mapping[str, Any] = field(default_factory=dict)
    # canonical strings of architectures; empty for a search of `space`
    candidates: tuple[str, ...] = ()
    suite: str = "smoke"  # name of the suite
    tasks: tuple[str, ...] = ()  # full names of the counting tasks of the suite; empty for all
    # fields of `Protocol` that differ from the suite's
    protocol: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)  # every run is repeated with each
    rates: tuple[float, ...] = ()  # step sizes of the points, ascending; empty for the suite's
    dim: int | None = None  # width; None is the suite's
    position: str = "none"  # positional embedding
    workers: str = "torch:cpu"  # backends of the workers of a candidate
    threads: int = 1  # of each worker
    share_embedding: bool = False  # whether candidates train one embedding table
    sampler: str = "grid"  # name of the sampler
    sampler_seed: int = 0  # of its draws
    prune: bool = False  # whether runs may end at rungs
    plugin: tuple[str, ...] = ()  # the user's files of layers and tasks, see `config.plugins`

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `study.yaml`, versions first."""
        stamp = {"format": FORMAT, "mlxhog": version("mlxhog"), "generator": GENERATOR_VERSION}
        values = {n: [*v] if isinstance(v, tuple) else v for n, v in asdict(self).items()}
        return {n: v for n, v in {**stamp, **values}.items() if v or n not in _IF_SET}

    @property
    def parts(self) -> tuple[object, ...]:
        """Every possible layer of a candidate, and the settings of the named tasks.

        Raises:
            ConfigError: one is unknown.
        """
        space = to_space(self.space) if self.space else None
        lists = map(parse, self.candidates) if space is None else (space.layers, *space.start)
        return (*itertools.chain(*lists), *map(find, self.tasks))

    def remembering(self) -> Study:
        """Return the study with the user's files of layers and tasks."""
        return replace(self, plugin=tuple(remembered(self.parts)))

    def measured(self) -> Suite:
        """Return the suite with the study's tasks, fixed values, step sizes and width.

        Raises:
            ConfigError: no such suite or task, or the suite compares widths.
        """
        chosen = fixed(suite(self.suite), self.protocol)
        chosen = with_rates(chosen, self.rates) if self.rates else chosen
        chosen = only(chosen, self.tasks) if self.tasks else chosen
        return chosen if self.dim is None else at_dim(chosen, self.dim)

    @property
    def cores(self) -> int:
        """CPU threads of one candidate."""
        return self.threads * len(self.workers.split(","))

    @property
    def select(self) -> Select:
        """Rows whose accuracy selects between runs, and between candidates."""
        protocol = {**self.measured().protocol, **self.protocol}
        return "val" if protocol.get("select") == "val" else "test"


def read(store: Store) -> Study:
    """Return the study of a directory; the user's layers and tasks are loaded from their files.

    Raises:
        StudyError: another version made it, its definition was changed, or the file of a layer or
            task may not be loaded.
    """
    definition = store.definition()
    ours = Study().to_dict()
    for name, what in _STAMP.items():
        if (theirs := definition.get(name, "unknown")) != ours[name]:
            raise StudyError(
                f"{store.directory} was made by {what} {_short(theirs)}, this is {ours[name]}: its "
                "runs would not compare; continue with the version that made it, or give another "
                "--study"
            )
    values = {name: value for name, value in definition.items() if name not in _STAMP}
    try:
        study = typed.read(Study, values)
        names = {one.name for one in fields(Study)}
        if foreign := sorted(map(str, values.keys() - names)):
            raise ValueError(f"{foreign[0]!r} is unknown{did_you_mean(foreign[0], names)}")
        Protocol(**study.protocol)
    except (ConfigError, TypeError, ValueError) as error:
        raise StudyError(
            f"{store.directory / 'study.yaml'}: {error}; mlxhog writes this file, which is not to "
            "be edited: give another --study"
        ) from error
    if study.plugin:
        try:
            recalled(study.plugin, lambda: study.parts, lambda parts: parts)
        except ConfigError as error:
            raise StudyError(f"study {store.name}: {error}") from error
    return study


def refuse_other_files(store: Store, study: Study) -> None:
    """Refuse to continue a study with another version of the user's files.

    Raises:
        StudyError: new runs would not compare with the earlier ones.
    """
    began = read(store).plugin
    if began and not same_files(began, study.plugin):
        files = ", ".join(text.partition(" sha256:")[0] for text in study.plugin)
        raise StudyError(
            f"the runs of study {store.name} were made with another version of {files}; restore "
            "the file, or begin another study with --study"
        )


def find_same(study: Study, root: str, name: str) -> Store | None:
    """Return the store of a study; None if it does not exist.

    Raises:
        StudyError: another study has that name (every difference is named, and the ways out), or
            the name is impossible.
    """
    check_name(name)
    directory = Path(root).absolute() / name
    if not is_study(directory):
        return None
    store = Store(directory)
    refuse_other_files(store, study)
    stored = replace(read(store), plugin=study.plugin)  # wherever the files lie
    pairs = {
        one.name: (getattr(stored, one.name), getattr(study, one.name)) for one in fields(study)
    }
    differences = [
        f"  {name}: it has {_short(had)}, the command {_short(value)}"
        for name, (had, value) in pairs.items()
        if had != value
    ]
    if differences:
        raise StudyError(
            f"{store.directory} holds another study:\n"
            + "\n".join(differences)
            + f"\ngive another --study, or continue it unchanged: mlxhog mad resume {store.name}"
        )
    return store


def open_store(study: Study, root: str, name: str) -> Store:
    """Return the store of a study, created if it does not exist.

    Raises:
        StudyError: as `find_same`, or the directory cannot be created.
    """
    return find_same(study, root, name) or create(Path(root), name, study.to_dict())


def _short(value: object) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    text = "nothing" if value in ("", None, [], {}, ()) else text
    return text if len(text) <= 100 else text[:98] + ".."
