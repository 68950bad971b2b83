"""The definition of a study: written once into `study.yaml`, and everything follows from it.

How a study is executed (where, how many at once, until when) is no part of it: any of that may be
another the next time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlxhog.config.plugins import KEY, recalled, remembered, same_files
from mlxhog.errors import ConfigError, StudyError, did_you_mean, shown
from mlxhog.mad.options import Protocol
from mlxhog.mad.run import RunConfig
from mlxhog.mad.scores import Select
from mlxhog.mad.search.space import to_space
from mlxhog.mad.study.store import Store, check_name, create, is_study
from mlxhog.mad.suites import Suite, fixed, only, suite
from mlxhog.mad.tasks import GENERATOR_VERSION
from mlxhog.models.fields import MOST_WIDTH
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.sequence import parse

FORMAT = 1
_LISTS = ("candidates", "tasks", "seeds", "layers_from")


def _is_whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= MOST_WIDTH


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


_KINDS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("space", "protocol"), _is_mapping),
    **dict.fromkeys(("candidates", "tasks", "layers_from"), _are_texts),
    **dict.fromkeys(("suite", "position", "workers", "sampler"), lambda v: isinstance(v, str)),
    **dict.fromkeys(("prune", "share_embedding"), lambda v: isinstance(v, bool)),
    **dict.fromkeys(("threads", "batch_candidates"), _is_size),
    "seeds": lambda value: isinstance(value, list) and all(map(_is_whole, value)),
    "dim": lambda value: value is None or _is_size(value),
    "sampler_seed": _is_whole,
}
"""What each field of study.yaml has to be."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What decides which runs there are, and what each of them computes.

    Attributes:
        space: the search space as its file spells it; empty where `candidates` are given.
        candidates: canonical strings of architectures; empty where `space` is searched.
        suite: name of the suite.
        tasks: full names of those of its tasks that count; all where it is empty.
        protocol: fields of `Protocol` that differ from the suite's.
        seeds: every run is made with each of them.
        dim: width; None is the suite's.
        position: positional embedding.
        workers: backends of the workers of a candidate.
        threads: of each worker.
        sampler: who proposes candidates.
        sampler_seed: of its choices.
        prune: whether runs may be ended at rungs.
        share_embedding: whether candidates train one embedding table.
        batch_candidates: candidates that are trained as one computation.
        layers_from: files of layers of the user's own, see `config.plugins`.
    """

    space: Mapping[str, Any] = field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    suite: str = "smoke"
    tasks: tuple[str, ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    dim: int | None = None
    position: str = "none"
    workers: str = "torch:cpu"
    threads: int = 1
    sampler: str = "grid"
    sampler_seed: int = 0
    prune: bool = False
    share_embedding: bool = False
    batch_candidates: int = 1
    layers_from: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what `study.yaml` holds: versions first, and files only where there are some."""
        stamp = {"format": FORMAT, "mlxhog": version("mlxhog"), "generator": GENERATOR_VERSION}
        values = asdict(self)
        lists = {name: list(values[name]) for name in _LISTS}
        whole = {**stamp, **values, **lists}
        return whole if self.layers_from else {k: v for k, v in whole.items() if k != KEY}

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer that a candidate may have.

        Raises:
            ConfigError: one is not known.
        """
        if not self.space:
            return tuple(layer for text in self.candidates for layer in parse(text))
        space = to_space(self.space)
        return (*space.mixers, *space.channels, *itertools.chain(*space.start))

    def remembering(self) -> Study:
        """Return the study with the files of the user's own layers."""
        return replace(self, layers_from=tuple(remembered(self.layers)))

    def measured(self) -> Suite:
        """Return the settings that make a score.

        Raises:
            ConfigError: no such suite or task.
        """
        whole = fixed(suite(self.suite), self.protocol)
        return only(whole, self.tasks) if self.tasks else whole

    @property
    def cores(self) -> int:
        """CPU threads of one candidate."""
        return self.threads * len(self.workers.split(","))

    @property
    def select(self) -> Select:
        """Rows whose accuracy decides between runs, and between candidates."""
        fields = {**self.measured().protocol, **self.protocol}
        return "val" if fields.get("select") == "val" else "test"


def read(store: Store) -> Study:
    """Return the study that a directory holds; its own layers are loaded from their files.

    Raises:
        StudyError: another version made it, its description was changed, or the file of a layer
            may not be loaded.
    """
    definition = store.definition()
    _refuse_other_version(store, definition)
    names = {item.name for item in fields(Study)}
    values = {name: value for name, value in definition.items() if name not in _stamp()}
    for name in values:
        if name not in names:
            raise StudyError(
                f"{store.directory / 'study.yaml'} has {name!r}{did_you_mean(name, names)}; "
                "it is written by mlxhog and not edited: give another --study"
            )
    for name, value in values.items():
        if not _KINDS[name](value):
            raise StudyError(
                f"{store.directory / 'study.yaml'} has {name} {shown(value)}; it is written by "
                "mlxhog and not edited: give another --study"
            )
    try:
        Protocol(**{str(name): value for name, value in values.get("protocol", {}).items()})
    except (ConfigError, TypeError) as error:  # a wrong value, an unknown name
        raise StudyError(
            f"{store.directory / 'study.yaml'} has a protocol that is none of this mlxhog: "
            f"{error}; give another --study"
        ) from error
    study = Study(**{**values, **{name: tuple(values.get(name, ())) for name in _LISTS}})
    if study.layers_from:
        try:
            recalled(study.layers_from, lambda: study.layers, lambda layers: layers)
        except ConfigError as error:
            raise StudyError(f"study {store.name}: {error}") from error
    return study


def refuse_other_files(store: Store, study: Study) -> None:
    """Refuse to go on in a directory whose study has another version of the user's own layers.

    Args:
        store: of the study that was begun.
        study: with the files as they are now.

    Raises:
        StudyError: new runs would not compare with those that there are.
    """
    began = read(store).layers_from
    if began and not same_files(began, study.layers_from):
        files = ", ".join(text.partition(" sha256:")[0] for text in study.layers_from)
        raise StudyError(
            f"the runs of study {store.name} were made with another version of {files}; restore "
            "the file, or begin another study with --study"
        )


def refuse_another(store: Store, study: Study) -> None:
    """Refuse to go on in a directory that holds another study.

    Raises:
        StudyError: naming every difference, and the ways out.
    """
    refuse_other_files(store, study)
    stored = {**read(store).to_dict(), KEY: list(study.layers_from)}  # wherever the files lie
    differences = [
        f"  {name}: it has {_short(stored[name])}, asked for was {_short(value)}"
        for name, value in study.to_dict().items()
        if stored[name] != value
    ]
    if differences:
        raise StudyError(
            f"{store.directory} holds another study:\n"
            + "\n".join(differences)
            + f"\ngive another --study, or go on with it as it is: mlxhog mad resume {store.name}"
        )


def find_same(study: Study, root: str, name: str) -> Store | None:
    """Return the store of a study, None if it is not there yet.

    Raises:
        StudyError: another study has that name, or nothing can.
    """
    check_name(name)
    directory = Path(root).absolute() / name
    if not is_study(directory):
        return None
    store = Store(directory)
    refuse_another(store, study)
    return store


def open_store(study: Study, root: str, name: str) -> Store:
    """Return the store of a study, made if it is not there.

    Raises:
        StudyError: as `find_same`, or the directory cannot be made.
    """
    return find_same(study, root, name) or create(Path(root), name, study.to_dict())


def _stamp() -> tuple[str, ...]:
    return ("format", "mlxhog", "generator")


def _refuse_other_version(store: Store, definition: Mapping[str, Any]) -> None:
    ours = Study().to_dict()
    for name in _stamp():
        if definition.get(name) != ours[name]:
            what = {"mlxhog": "mlxhog", "generator": "the tasks' generators", "format": "a format"}
            raise StudyError(
                f"{store.directory} was made by {what[name]} "
                f"{_short(definition.get(name, 'unknown'))}, this is {ours[name]}: its runs would "
                "not compare; go on with the version that made it, or give another --study"
            )


def _short(value: object) -> str:
    text = "nothing" if value in ("", None, [], {}, ()) else str(value)
    return text if len(text) <= 100 else text[:98] + ".."


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that belongs to a candidate.

    Attributes:
        candidate: canonical string of its layers.
        config: all that its scores depend on.
        key: of `config`.
        label: of the setting, such as "baseline".
        params: elements of all parameters.
        state: numbers kept per sequence.
    """

    candidate: str
    config: RunConfig
    key: str
    label: str
    params: int = 0
    state: int = 0

    @property
    def title(self) -> str:
        """What it is trained on, in a few words."""
        protocol = self.config.protocol
        parts = [self.config.task, self.label, f"lr {protocol.lr:.0e}"]
        if protocol.weight_decay:
            parts.append(f"wd {protocol.weight_decay:g}")
        return " ".join([*parts, f"seed {self.config.seed}"])
