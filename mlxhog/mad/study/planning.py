"""From what a study is to its runs: candidates in a space, runs of a candidate, scores of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mlxhog.mad import tasks
from mlxhog.mad.run_config import RunConfig
from mlxhog.mad.scores import scores
from mlxhog.mad.search.candidates import Candidates
from mlxhog.mad.search.pruning import Halving
from mlxhog.mad.search.samplers import Sampler, make_sampler
from mlxhog.mad.search.space_file import to_space
from mlxhog.mad.sizes import state
from mlxhog.mad.study.candidates import Listed
from mlxhog.mad.study.progress import Best
from mlxhog.mad.study.pruner import Pruner, Unpruned
from mlxhog.mad.study.record import Record
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.study import PlannedRun, Study
from mlxhog.mad.suites import Suite, expand
from mlxhog.mad.training.course import step_limit
from mlxhog.models.families import param_count
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import canonical, parse


@dataclass(frozen=True)
class Cost:
    """What a study asks for at most: runs, and steps of all of them."""

    runs: int
    steps: int


class Planning:
    """What follows from a study.

    Args:
        study: what it consists of.

    Raises:
        ConfigError: no such suite or layer, or the space has no candidate.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.suite: Suite = study.measured()
        self.dim = study.dim or self.suite.dim
        self.listed = [parse(text) for text in study.candidates]
        self._space: Candidates | None = None
        if study.space:
            self._space = Candidates(to_space(study.space), self.dim, self._longest)
        for candidate in study.candidates:
            self.runs(candidate)  # whether it can be built

    @cached_property
    def _longest(self) -> int:
        """Tokens of the longest row."""
        return max(
            tasks.resolve(setting.task, setting.settings).length for setting in self.suite.settings
        )

    @property
    def first(self) -> str:
        """Some candidate."""
        return self.study.candidates[0] if self._space is None else canonical(self._space[0])

    @property
    def candidates(self) -> int:
        """Number of candidates."""
        return len(self.listed) if self._space is None else self._space.count

    @property
    def unused(self) -> list[str]:
        """Layers of the space that its budget leaves no room for."""
        found = () if self._space is None else self._space.unused()
        return [canonical([layer]) for layer in found]

    @property
    def total(self) -> int:
        """Runs of all candidates."""
        return self.candidates * self.suite.runs * len(self.study.seeds)

    def sampler(self) -> Sampler:
        """Return the sampler as it is at the beginning.

        Raises:
            ConfigError: no such sampler.
            EnvironmentLacks: it needs a package that is not installed.
        """
        if self._space is None:
            return Listed(self.listed)
        return make_sampler(self.study.sampler, self._space, self.study.sampler_seed)

    def pruner(self, store: Store) -> Pruner:
        """Return who ends runs early, as it is before any run."""
        return Halving(store.curve) if self.study.prune else Unpruned()

    def runs(self, candidate: str) -> list[PlannedRun]:
        """Return the runs of a candidate, setting after setting.

        Raises:
            ConfigError: it cannot be built at this width.
        """
        study = self.study
        found = expand(
            self.suite,
            parse(candidate),
            study.seeds,
            dim=self.dim,
            position=study.position,
            workers=study.workers,
            threads=study.threads,
            protocol=study.protocol,
        )
        return [
            PlannedRun(
                candidate=candidate,
                config=config,
                key=config.key(),
                label=setting.label,
                params=param_count(model := _model(config)),
                state=state(config.layers, config.dim, model.max_length),
            )
            for setting, config in found
        ]

    def cost(self) -> Cost:
        """Return the most that the study asks for."""
        steps = sum(steps_of(run.config) for run in self.runs(self.first))
        return Cost(self.total, self.candidates * steps)

    def judge(self, candidate: str, records: Sequence[Record]) -> Best:
        """Return the score of a candidate: of validation rows, where the study selects by them.

        One that was given up scores 0 on the runs it was spared. They may be harder than those it
        has, and a sampler must not take it for better than candidates that went through them.
        """
        (row,) = scores(records, self.suite, self.study.select, self.study.seeds)
        lacks = len(row.missing)
        share = row.n_runs / (row.n_runs + lacks) if row.status == "pruned" else 1.0
        return Best(
            candidate=candidate, score=share * row.worth, interval=row.interval, missing=lacks
        )


def steps_of(config: RunConfig) -> int:
    """Return the most steps that a run takes."""
    per_epoch = math.ceil(config.settings["train_rows"] / config.protocol.batch_size)
    return step_limit(config.protocol, per_epoch)


def _model(config: RunConfig) -> MADConfig:
    task = tasks.find(config.task)
    settings = tasks.resolve(task.name, config.settings)
    return MADConfig(
        vocab_size=settings.vocab,
        hidden_size=config.dim,
        layers=config.layers,
        max_length=settings.length,
        position=config.position,
        backbone=task.backbone,
    )
