"""A study: all that decides its runs and their scores, as `study.yaml` has it.

The execution of a study (its place, the number at once, its end) is not part of it, and may change
from session to session.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, Final, Self

from mlxhog.config.options import options
from mlxhog.config.plugins import KEY, files_of, remembered
from mlxhog.errors import ConfigError, StudyError, shown
from mlxhog.mad import objectives
from mlxhog.mad.objectives import ordered, parse_limit
from mlxhog.mad.options import Recipe
from mlxhog.mad.run import CandidateRecord, EvalPoint, RunConfig
from mlxhog.mad.samplers.pruning import ETA, RUNGS, Pruner
from mlxhog.mad.samplers.samplers import SAMPLERS, Sampler
from mlxhog.mad.samplers.space import CandidateList, CandidateSet, Layers, to_space
from mlxhog.mad.scores import LOST, CandidateScore, Select, scores
from mlxhog.mad.suites import LM, Suite, TaskConfig, suite
from mlxhog.mad.tasks import GENERATOR_VERSION, find, resolve
from mlxhog.mad.tasks.text import TEXT_TASK
from mlxhog.mad.training.text import equal_width, machine_text, read_text
from mlxhog.models.layers import at_width
from mlxhog.models.mad.sequence import canonical, parse

STAMP: Final = {"format": 1, "mlxhog": version("mlxhog"), "generator": GENERATOR_VERSION}
"""Versions of the format, of the package and of the tasks' rows: others' runs do not compare."""


OF_TEXT: Final = ("data", "text", "machine", "n_candidates", "pairs", "equal", "objective", "limit")


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
    # -- suite lm, and the order of candidates
    data: str = ""  # the text, as in `mlxhog train`
    text: str = ""  # its SHA-256
    machine: str = ""  # whose times and memory the numbers are
    n_candidates: int | None = None  # on the first rung; None for all of the space
    pairs: int = 0  # at most, of the final of the first two candidates
    equal: str = ""  # "parameters" or "step-time": widths of candidates follow the first one
    objective: str = ""  # a key of `OBJECTIVES`; "" for the suite's
    limit: tuple[str, ...] = ()  # limits that candidates should keep

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `study.yaml`, versions first."""
        values = {n: [*v] if isinstance(v, tuple) else v for n, v in asdict(self).items()}
        if_set = ("rates", "share_embedding", KEY, *OF_TEXT)  # which it has only if not empty
        return {n: v for n, v in {**STAMP, **values}.items() if v or n not in if_set}

    @property
    def layers(self) -> Layers:
        """Every possible layer of a candidate, as the user wrote it."""
        lists: Iterable[Layers] = map(parse, self.candidates)
        if self.space:
            space = to_space(self.space)
            lists = itertools.chain(space.block(), space.starts())
        return tuple(dict.fromkeys(itertools.chain(*lists)))

    @property
    def parts(self) -> tuple[object, ...]:
        """Every possible layer of a candidate, and the settings of the named tasks."""
        return (*self.layers, *map(find, self.tasks))

    @property
    def is_text(self) -> bool:
        """Whether candidates are language models, perhaps beside tasks."""
        return re.split("[:+]", self.suite)[0] == LM

    @property
    def is_timed(self) -> bool:
        """Whether language models train for a time."""
        return any(one.settings.get("time") is not None for one in self.measured.task_configs
                   if one.task == TEXT_TASK)  # fmt: skip

    @property
    def by_bits(self) -> bool:
        """Whether bits per byte alone order the candidates, as the final of two compares them."""
        is_alone = self.is_text and "+" not in self.suite
        return is_alone and self.objective in ("", "score", "val_bits_per_byte")

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
        is_bare = "optimizer" in self.recipe and not self.is_text
        sweep = ({"lr": None},) if is_bare else whole.sweep
        rates = [{"lr": lr} for lr in self.rates] or [{}]
        fixed = [{n: self.recipe.get(n, v) for n, v in entry.items()} for entry in sweep]
        sweep = tuple({**entry, **rate} for rate in rates for entry in fixed)
        present = dict.fromkeys(one.task for one in whole.task_configs)
        named = {task.name: task for task in map(find, self.tasks or present)}
        if self.is_text:
            named[TEXT_TASK] = find(TEXT_TASK)
        configs = [
            replace(one, settings={**one.settings, "data": self.data or "sotu",
                                   "machine": self.machine, "like": self._like})
            if one.task == TEXT_TASK
            else one
            for one in whole.task_configs
            if one.task in named
        ]  # fmt: skip
        of_others: tuple[Any, ...] = ()  # recipe and width of tasks that the suite lacks
        if "+" in self.suite:
            beside = suite(self.suite.partition("+")[2])
            own = {} if "optimizer" in self.recipe else beside.sweep[0]
            of_others = {**own, **beside.recipe}, beside.dim
            lost = beside.sweep[0].keys() - own.keys()
            configs = [
                replace(one, recipe={n: x for n, x in one.recipe.items() if n not in lost})
                for one in configs
            ]
        configs += [
            TaskConfig(name, asdict(task()), "baseline", *of_others)
            for name, task in named.items()
            if name not in present
        ]
        widths = {one.dim: one.task for one in configs if one.dim is not None}
        if widths and not self.is_text and self.dim not in (None, whole.dim):
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

    @cached_property
    def _like(self) -> str:
        """The layers whose time per step the others have; "" if widths do not follow it."""
        return self._reference if self.equal == "step-time" else ""

    @cached_property
    def _reference(self) -> str:
        """The first candidate at the suite's width, without the bounds of a space."""
        if self.candidates:
            return self.candidates[0]
        space = to_space(self.space)
        slots = itertools.cycle(one[0] for one in space.block())
        return canonical(itertools.islice(slots, space.depths()[0]))

    # -- rungs -----------------------------------------------------------------------------------

    @cached_property
    def count(self) -> int | None:
        """Candidates of the study; None for a large space with bounds."""
        known = [n for n in (self.n_candidates, self.choices.count) if n is not None]
        return min(known, default=None)

    @cached_property
    def rungs(self) -> tuple[int, ...]:
        """Candidates on each rung of suite lm: of each, the best third go on to the next.

        Budgets triple from rung to rung, up to the suite's. Source: successive halving, Jamieson
        and Talwalkar 2016, arXiv:1502.07943.
        """
        n = self.count
        if not (self.is_text and self.prune) or n is None:
            return (n or 0,)
        n_rungs = 1 + sum(ETA**k <= n for k in range(1, RUNGS))
        return tuple(-(-n // ETA**k) for k in range(n_rungs))

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

    def _as_written(self, layers: Layers) -> Layers:
        """Return the layers of a candidate with numbers left open, where the user left them so."""
        dim = self.measured.dim
        if self.candidates:
            every = map(parse, self.candidates)
            return next((one for one in every if at_width(one, dim) == layers), layers)
        written = {one.at_width(dim): one for one in reversed(self.layers)}
        return tuple(written.get(one, one) for one in layers)

    def runs(self, candidate: str, rung: int = 0, dim: int | None = None) -> list[RunConfig]:
        """Return the runs of a candidate, by task config, then by seed; text alone on later rungs.

        The fields of the study's recipe replace those of the suite and of its task configs. `dim`
        is the width that the candidate had on an earlier rung.
        """
        layers, measured, runs = parse(candidate), self.measured, list[RunConfig]()
        for one, seed, entry in itertools.product(
            measured.task_configs, self.seeds, measured.sweep
        ):
            how = {**entry, **measured.recipe, **one.recipe, **self.recipe}
            width, settings = measured.dim if one.dim is None else one.dim, one.settings
            if one.task == TEXT_TASK:
                is_like = self._like and layers == at_width(parse(self._like), width)
                settings = self._on_rung(settings, rung) | ({"like": ""} if dim or is_like else {})
                if self.equal == "parameters":
                    width = equal_width(layers, parse(self._reference), width)
                width = dim or width
            elif rung:
                continue
            run = RunConfig(
                task=one.task,
                settings=settings,
                layers=layers if one.dim is None else self._as_written(layers),
                dim=width,
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

    def _on_rung(self, settings: Mapping[str, Any], rung: int) -> dict[str, Any]:
        """Return the settings of text with the budget of a rung."""
        share = ETA ** (len(self.rungs) - 1 - rung)
        seconds, tokens = settings["time"], settings["tokens"]
        return {
            **settings,
            "rung": rung,
            "time": None if seconds is None else seconds / share,
            "tokens": None if tokens is None else max(1, tokens // share),
        }

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
        limits = [parse_limit(text) for text in self.limit]
        objectives.check(
            [*filter(None, [self.objective]), *(one.name for one in limits)], self.suite,
            is_text=self.is_text,
        )  # fmt: skip
        if self.is_text:
            self._check_text()
        elif given := [one for one in ("data", "n_candidates", "equal") if getattr(self, one)]:
            flag = given[0].removeprefix("n_").replace("_", "-")
            raise ConfigError(f"--{flag} is for --suite lm, not {self.suite}; leave it out")
        if self.pairs == 1:
            raise ConfigError("--pairs is 1; give 2 or more, or 0 for no final")
        if self.pairs and not self.by_bits:
            raise ConfigError(
                f"--pairs is {self.pairs}, and the final compares bits per byte, which do not "
                "alone order these candidates; leave it out"
            )
        if self.sampler == "grid" and self.choices.count is None:
            raise ConfigError(
                "sampler is grid, which may find no candidate of a large space within its bounds; "
                "begin a study with --sampler random"
            )
        for candidate in self.candidates or [self.first]:
            self.runs(candidate)
        widths = {one.dim for one in self.measured.task_configs if one.dim is not None}
        for layer, dim in itertools.product(self.layers, sorted(widths) if self.space else ()):
            try:
                layer.check(dim)
            except ConfigError as error:
                raise ConfigError(
                    f"{layer.name} at width {dim}, of suite {self.suite}: {error}"
                ) from error

    def _check_text(self) -> None:
        """Raise a ConfigError for options that suite lm does not have."""
        if self.tasks and "+" not in self.suite:
            raise ConfigError(
                f"--tasks has {self.tasks[0]}, which suite {self.suite} lacks; mix it with a suite "
                f"of tasks, as in --suite {self.suite}+smoke"
            )
        if self.equal == "step-time" and self.text_runs > 1:
            raise ConfigError(
                "--equal step-time measures a width in every run, so that the seeds and learning "
                "rates of a candidate would train different models; give one seed and one rate, or "
                "--equal parameters"
            )
        tasks_only = {*options(Recipe)} - {"optimizer", "lr", "clip", "batch_size"}
        foreign = set() if "+" in self.suite else tasks_only & self.recipe.keys()
        if names := sorted(name for name in foreign if self.recipe[name] is not None):
            raise ConfigError(
                f"--{names[0].replace('_', '-')} is for tasks, and the runs of suite lm have a "
                "budget, as in --suite lm:60s or lm:2Mtok; leave it out"
            )
        if self.rates and "+" in self.suite:
            raise ConfigError("--rates is for one suite, not for lm beside tasks; leave it out")
        if self.share_embedding:
            raise ConfigError("--share-embedding is for tasks, not for suite lm; leave it out")
        if self.count is None:
            raise ConfigError(
                "the candidates of this space are not counted; give --candidates, such as 27"
            )
        (settings,) = (one.settings for one in self.measured.task_configs if one.task == TEXT_TASK)
        text = read_text(settings["data"], settings["seq_len"], settings["tokens"])
        if self.text not in ("", text.corpus_sha256):
            raise StudyError(
                f"{', '.join(settings['data'].splitlines())} is another text than that of the "
                "study's runs, whose numbers would not compare; restore it, or begin another study "
                "with --study"
            )
        if self.machine not in ("", here := machine_text()):
            raise StudyError(
                f"the numbers of this study are those of {self.machine}, and this is {here}, where "
                "times differ; continue it there, or begin another study with --study"
            )

    @property
    def runs_each(self) -> int:
        """Runs of a candidate."""
        return self.measured.runs * len(self.seeds)

    @property
    def total(self) -> int | None:
        """Runs of all candidates; None for a large space with bounds, which are not counted."""
        if self.count is None:
            return None
        return self.count * self.runs_each + sum(self.rungs[1:]) * self.text_runs

    def new_sampler(self) -> Sampler:
        """Return the sampler in its initial state."""
        return SAMPLERS[self.sampler](self.choices, self.sampler_seed)

    def new_pruner(self, curve: Callable[[str], Sequence[EvalPoint]]) -> Pruner:
        """Return the pruner in its initial state; `curve` has the evaluations of ended runs."""
        return Pruner(curve, RUNGS if self.prune and not self.is_text else 0)

    def score_of(self, records: Sequence[CandidateRecord]) -> CandidateScore:
        """Return the score of a candidate from its records."""
        (row,) = self.rows(records)
        return row

    def rows(
        self, records: Iterable[CandidateRecord], final: Mapping[str, Any] | None = None
    ) -> list[CandidateScore]:
        """Return the scores of all candidates in order; `final` is the comparison of the first two.

        Of suite lm the objective is the bits per byte by default.
        """
        rows = scores(records, self.measured, self.seeds, self.select, len(self.rungs))
        if not (self.is_text or self.objective or self.limit):
            return rows
        objective = self.objective or ("val_bits_per_byte" if self.is_text else "score")
        limits = [parse_limit(text) for text in self.limit]
        rows = ordered(rows, objective, limits, select=bool(self.objective or limits))
        first = [row.candidate for row in rows[:2]]
        if final and final["verdict"] == "b" and [final["a"], final["b"]] == first:
            rows[:2] = rows[1::-1]
        return rows

    @property
    def text_runs(self) -> int:
        """Runs of a candidate on a rung of text."""
        return len(self.seeds) * len(self.measured.sweep)

    def unfilled(self, records: Iterable[CandidateRecord]) -> int:
        """Return the runs of later rungs for which too few candidates are left, so far."""
        records = list(records)
        text = [one for one in records if one.task == TEXT_TASK]
        each, left, skipped = self.text_runs, self.count or 0, 0
        for rung, planned in enumerate(self.rungs[1:]):
            if sum(one.rung == rung for one in text) < left * each:
                break
            left = len(self.promoted(rung, records))
            skipped += (planned - left) * each
        return skipped

    def promoted(self, rung: int, records: Iterable[CandidateRecord]) -> list[CandidateScore]:
        """Return the candidates of a whole rung that go on to the next one."""
        rows = self.rows(one for one in records if one.rung <= rung)
        going = [  # without a width its text is lost, whatever its tasks have
            row
            for row in rows
            if row.rung == rung and row.status not in LOST and "dim" in row.measures
        ]
        return going[: self.rungs[rung + 1]]
