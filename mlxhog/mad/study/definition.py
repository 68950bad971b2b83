"""A study: all that decides its runs and their scores, as `study.yaml` has it.

The execution of a study (its place, the number at once, its end) is not part of it, and may change
from session to session.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, Final, Self

from mlxhog.config.plugins import KEY, files_of, remembered
from mlxhog.errors import ConfigError, shown
from mlxhog.mad.options import Recipe
from mlxhog.mad.run import CandidateRecord, EvalPoint, RunConfig
from mlxhog.mad.samplers.pruning import RUNGS, Pruner
from mlxhog.mad.samplers.samplers import SAMPLERS, Sampler
from mlxhog.mad.samplers.space import CandidateList, CandidateSet, Layers, to_space
from mlxhog.mad.scores import CandidateScore, Select, scores
from mlxhog.mad.suites import Suite, TaskConfig, suite
from mlxhog.mad.tasks import GENERATOR_VERSION, find, resolve
from mlxhog.models.layers import at_width
from mlxhog.models.mad.sequence import canonical, parse

STAMP: Final = {"format": 1, "mlxhog": version("mlxhog"), "generator": GENERATOR_VERSION}
"""Versions of the format, of the package and of the tasks' rows: others' runs do not compare."""


@dataclass(frozen=True, kw_only=True)
class StudyDefinition:
    """The definition of a study; its properties raise a ConfigError for an impossible one."""

    # the search space, the keys of its file; empty for a list of candidates
    space: Mapping[str, Any] = field(default_factory=dict)
    # canonical strings of architectures; empty for a search of `space`
    candidates: tuple[str, ...] = ()
    suite: str = "smoke"  # name of the suite
    # full names of the counting tasks of the suite; empty for all. One that the suite lacks, such
    # as the user's own, has its defaults
    tasks: tuple[str, ...] = ()
    # fields of `Recipe` that differ from the suite's
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)  # every run is repeated with each
    rates: tuple[float, ...] = ()  # the learning-rate sweep, ascending; empty for the suite's
    dim: int | None = None  # width; None is the suite's
    position: str = "none"  # positional embedding
    workers: str = "torch:cpu"  # backends of the workers of a candidate
    threads: int = 1  # of each worker
    share_embedding: bool = False  # whether candidates train one embedding table
    sampler: str = "grid"  # a key of `SAMPLERS`
    sampler_seed: int = 0  # of its draws
    prune: bool = False  # whether runs may end at rungs
    plugin: tuple[str, ...] = ()  # the user's files of layers and tasks, see `config.plugins`

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `study.yaml`, versions first."""
        values = {n: [*v] if isinstance(v, tuple) else v for n, v in asdict(self).items()}
        if_set = ("rates", "share_embedding", KEY)  # which it has only if they are not empty
        return {n: v for n, v in {**STAMP, **values}.items() if v or n not in if_set}

    @property
    def parts(self) -> tuple[object, ...]:
        """Every possible layer of a candidate, and the settings of the named tasks."""
        lists: Iterable[Layers] = map(parse, self.candidates)
        if self.space:
            space = to_space(self.space)
            lists = itertools.chain(space.block(), space.starts())
        return (*dict.fromkeys(itertools.chain(*lists)), *map(find, self.tasks))

    def remembering(self) -> Self:
        """Return the study with the user's files of layers and tasks."""
        return replace(self, plugin=tuple(remembered(self.parts)))

    @cached_property
    def measured(self) -> Suite:
        """The suite with the study's tasks, fixed values, learning rates and width.

        The sweep is the suite optimizer's: another one has its own learning rate and decay,
        unless the recipe fixes them.
        """
        whole = suite(self.suite)
        sweep = ({"lr": None},) if "optimizer" in self.recipe else whole.sweep
        rates = [{"lr": lr} for lr in self.rates] or [{}]
        fixed = [{n: self.recipe.get(n, v) for n, v in entry.items()} for entry in sweep]
        sweep = tuple({**entry, **rate} for rate in rates for entry in fixed)
        present = dict.fromkeys(one.task for one in whole.task_configs)
        named = {task.name: task for task in map(find, self.tasks or present)}
        configs = [one for one in whole.task_configs if one.task in named]
        configs += [
            TaskConfig(name, asdict(task()), "baseline")
            for name, task in named.items()
            if name not in present
        ]
        widths = {one.dim: one.task for one in configs if one.dim is not None}
        if widths and self.dim not in (None, whole.dim):
            raise ConfigError(
                f"the width is {self.dim}, but suite {whole.name} compares widths on "
                f"{', '.join({*widths.values()})}: {whole.dim} and {', '.join(map(str, widths))}; "
                "leave the width out of the command and of the space, give layers instead of an "
                "architecture, or choose other --tasks"
            )
        return replace(
            whole,
            task_configs=tuple(configs),
            sweep=tuple(one for n, one in enumerate(sweep) if one not in sweep[:n]),
            dim=self.dim or whole.dim,
        )

    @property
    def cores(self) -> int:
        """CPU threads of one candidate."""
        return self.threads * len(self.workers.split(","))

    @property
    def select(self) -> Select:
        """Rows whose accuracy selects between runs, and between candidates."""
        recipe = {**self.measured.recipe, **self.recipe}
        return "val" if recipe.get("select") == "val" else "test"

    # -- candidates and their runs ---------------------------------------------------------------

    @cached_property
    def choices(self) -> CandidateSet | CandidateList:
        """The possible candidates at the study's width."""
        dim = self.measured.dim
        if not self.space:
            return CandidateList(
                [*dict.fromkeys(at_width(parse(one), dim) for one in self.candidates)]
            )
        settings = (resolve(one.task, one.settings) for one in self.measured.task_configs)
        return CandidateSet(to_space(self.space), dim, max(one.test_length for one in settings))

    @property
    def first(self) -> str:
        """A candidate: the first one of a list, or of a space that is listed."""
        return canonical(self.choices.first)

    def runs(self, candidate: str) -> list[RunConfig]:
        """Return the runs of a candidate, by task config, then by seed.

        The fields of the study's recipe replace those of the suite and of its task configs.
        """
        layers, measured, runs = parse(candidate), self.measured, list[RunConfig]()
        for one, seed, entry in itertools.product(
            measured.task_configs, self.seeds, measured.sweep
        ):
            how = {**entry, **measured.recipe, **one.recipe, **self.recipe}
            run = RunConfig(
                task=one.task,
                settings=one.settings,
                layers=layers,
                dim=measured.dim if one.dim is None else one.dim,
                recipe=Recipe(**how),
                seed=seed,
                position=self.position,
                workers=self.workers,
                threads=self.threads,
                plugins=files_of((*layers, find(one.task))),
                candidate=canonical(layers),
                label=one.label,
            )
            run.model()  # refuses one that cannot be built
            runs.append(run)
        return runs

    def check_stored(self) -> None:
        """Raise a ConfigError if a field has a value that no command stores."""
        for is_wrong, name, wanted in (
            (not (self.space or self.candidates), "candidates", "some, or a space"),
            (not self.seeds, "seeds", "at least one"),
            (self.dim is not None and self.dim < 1, "dim", "a width from 1 on"),
            (self.threads < 1, "threads", "a number from 1 on"),
            (self.sampler not in SAMPLERS, "sampler", f"one of {', '.join(SAMPLERS)}"),
        ):
            if is_wrong:
                raise ConfigError(f"{name} is {shown(getattr(self, name))}; wanted {wanted}")

    def check(self) -> None:
        """Raise a ConfigError if a listed candidate, or the space, is impossible."""
        for candidate in self.candidates or [self.first]:
            self.runs(candidate)

    @property
    def runs_each(self) -> int:
        """Runs of a candidate."""
        return self.measured.runs * len(self.seeds)

    @property
    def total(self) -> int | None:
        """Runs of all candidates; None for a large space with bounds, which are not counted."""
        return None if self.choices.count is None else self.choices.count * self.runs_each

    def new_sampler(self) -> Sampler:
        """Return the sampler in its initial state."""
        return SAMPLERS[self.sampler](self.choices, self.sampler_seed)

    def new_pruner(self, curve: Callable[[str], Sequence[EvalPoint]]) -> Pruner:
        """Return the pruner in its initial state; `curve` has the evaluations of ended runs."""
        return Pruner(curve, RUNGS if self.prune else 0)

    def score_of(self, records: Sequence[CandidateRecord]) -> CandidateScore:
        """Return the score of a candidate from its records."""
        (row,) = scores(records, self.measured, self.seeds, self.select)
        return row
