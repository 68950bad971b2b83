"""The runs of a study: candidates that a sampler proposes, their seeds, and their scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mlxhog.config.limits import shown
from mlxhog.errors import StudyError
from mlxhog.mad import tasks
from mlxhog.mad.scores import scores
from mlxhog.mad.search.budget import state
from mlxhog.mad.search.candidates import Candidates
from mlxhog.mad.search.pruning import Halving, Pruner
from mlxhog.mad.search.samplers import Listed, Sampler, make_sampler
from mlxhog.mad.search.space import to_space
from mlxhog.mad.study.progress import Best
from mlxhog.mad.study.record import Record
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.study import PlannedRun, Study
from mlxhog.mad.suites import Suite, expand
from mlxhog.mad.training.evaluation import most_steps
from mlxhog.mad.training.run_plan import model_of
from mlxhog.models.families import param_count
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
        layers = () if self._space is None else self._space.unused()
        return [canonical([layer]) for layer in layers]

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
        return Halving(store.curve) if self.study.prune else Pruner()

    def runs(self, candidate: str) -> list[PlannedRun]:
        """Return the runs of a candidate, setting after setting.

        Raises:
            ConfigError: it cannot be built at this width.
        """
        study = self.study
        configs = expand(
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
                params=param_count(model := model_of(config)),
                state=state(config.layers, config.dim, model.max_length),
            )
            for setting, config in configs
        ]

    def cost(self) -> Cost:
        """Return the most that the study asks for."""
        steps = sum(most_steps(run.config) for run in self.runs(self.first))
        return Cost(self.total, self.candidates * steps)

    def judge(self, candidate: str, records: Sequence[Record]) -> Best:
        """Return the score of a candidate: of validation rows, where the study selects by them.

        One that was pruned scores 0 on the runs that were skipped. They may be harder than those it
        has, and a sampler must not take it for better than candidates that went through them.
        """
        (row,) = scores(records, self.suite, self.study.select, self.study.seeds)
        lacks = len(row.missing)
        share = row.n_runs / (row.n_runs + lacks) if row.status == "pruned" else 1.0
        return Best(
            candidate=candidate, score=share * row.worth, interval=row.interval, missing=lacks
        )


class Proposals:
    """A sampler with a memory.

    Args:
        sampler: as it is at the beginning of the study.
        store: of the study; its history is repeated.

    Attributes:
        proposed: every candidate so far, in order.
        untold: those whose score has not been told.
    """

    def __init__(self, sampler: Sampler, store: Store) -> None:
        self._sampler, self._store = sampler, store
        self.proposed: list[str] = []
        self.untold: set[str] = set()
        for entry in store.proposals():
            candidate, score = entry.get("candidate"), entry.get("score", 0.0)
            if not isinstance(candidate, str) or not isinstance(score, int | float):
                raise StudyError(
                    f"candidates.jsonl in {store.directory} has {shown(entry)}, wanted a candidate "
                    "and perhaps its score; remove the line"
                )
            if "score" in entry:
                sampler.tell(parse(candidate), float(score))
                self.untold.discard(candidate)
            else:
                sampler.recall(parse(candidate))
                self._asked(candidate)

    def ask(self) -> str | None:
        """Return the next candidate as a canonical string, or None."""
        layers = self._sampler.ask()
        if layers is None:
            return None
        candidate = canonical(layers)
        self._store.add_proposal({"candidate": candidate})
        self._asked(candidate)
        return candidate

    def tell(self, candidate: str, score: float) -> None:
        """Tell what became of a candidate."""
        self._store.add_proposal({"candidate": candidate, "score": score})
        self._sampler.tell(parse(candidate), score)
        self.untold.discard(candidate)

    def _asked(self, candidate: str) -> None:
        self.proposed.append(candidate)
        self.untold.add(candidate)


MATRIX_SIZE = 512
EFFICIENCY = 0.4
"""Share of the speed of one matrix product that training a candidate of width 64 was measured to
have on torch CPU. Wide ones have more, recurrent ones less."""


def seconds_of_a_run(planning: Planning, records: Sequence[Record], cores: int) -> float:
    """Return the mean seconds of a run of a study.

    Args:
        planning: of the study.
        records: runs that ended; where there is one, their mean is returned.
        cores: that NumPy multiplies on.

    Otherwise a step is taken to cost 6 operations per weight and token, forward and backward.
    """
    if records:
        return sum(record.seconds for record in records) / len(records)
    runs = planning.runs(planning.first)
    operations = 0.0
    for run in runs:
        config = run.config
        tokens = config.protocol.batch_size * config.settings["seq_len"]
        operations += 6.0 * run.params * tokens * most_steps(config)
    return operations / len(runs) / (EFFICIENCY * _operations_per_s() / cores)


def _operations_per_s() -> float:
    """Speed of a float32 matrix product, the best of a few."""
    a = np.ones((MATRIX_SIZE, MATRIX_SIZE), np.float32)
    best = float("inf")
    for _ in range(5):
        began_s = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began_s)
    return 2 * MATRIX_SIZE**3 / best
