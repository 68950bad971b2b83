"""The configuration of a training run: its options, checked together."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from mlxhog.config import plugins
from mlxhog.config.components import (
    OPTIMIZERS,
    STRATEGIES,
    Component,
    Constraints,
    UnknownComponent,
    broken,
)
from mlxhog.config.options import yaml_values
from mlxhog.config.sources import ConfigSource, resolve, unmet_requirements
from mlxhog.config.train_options import (
    DEFAULT_MODEL,
    DEFAULT_OPTIMIZER,
    DEFAULT_TIME_S,
    TrainOptions,
    trackers,
)
from mlxhog.errors import ConfigError


@dataclass(frozen=True, kw_only=True, init=False)
class TrainConfig(TrainOptions):
    """One training run; a ConfigError names every invalid value and constraint at once.

    Values are converted and checked when the object is made, so every instance is valid.
    """

    def __init__(self, **values: Any) -> None:
        """Take options as the base does, with the components of the files that `plugin` names."""
        try:
            super().__init__(**values)
        except ConfigError as error:
            files = values.get(plugins.KEY)
            if not files or not isinstance(error.__cause__, UnknownComponent):
                raise
            plugins.load_all(files)  # of the caller: merging a YAML file has its components before
            super().__init__(**values)

    def __post_init__(self) -> None:
        """Check the values together, and set those implied by others.

        Other options may imply a strategy. A new run gets the default budget, optimizer and model;
        a resumed run has its own, and a run with the weights of a checkpoint has its model.

        Raises:
            ConfigError: all problems, one per line.
        """
        if self.resume is None:
            optimizer = self.optimizer or OPTIMIZERS.read(DEFAULT_OPTIMIZER)
            object.__setattr__(self, "optimizer", optimizer)
        if self.strategy is None and (implied := self._implied_strategy()):
            object.__setattr__(self, "strategy", STRATEGIES.read(implied))
        problems = [*unmet_requirements(self), *broken(self._constraints())]
        for component in (self.strategy, self.optimizer, self.schedule, self.adapter):
            if component is not None:
                problems += component.broken("run_constraints", self)
        if problems:
            raise ConfigError("\n".join(f"{name}: {text}" for name, text in problems))
        if self.resume is not None:
            return
        if self.model == "auto" and self.init_from is None:
            object.__setattr__(self, "model", DEFAULT_MODEL)
        if self.follow is None and not self.has_budget:
            object.__setattr__(self, "time", DEFAULT_TIME_S)

    def _implied_strategy(self) -> str | None:
        """Return the strategy that other options require, if it is open."""
        if self.determinism == "rounds":
            return "sync"
        is_asked_for = (self.follow, self.max_workers, self.cluster) != (None,) * 3
        is_lock_free = self.determinism != "none" or self.overlap or is_asked_for
        return "hogwild" if is_lock_free or self.read == "live" or self.write == "racy" else None

    def _constraints(self) -> Constraints:
        """Constraints between the options of the run itself."""
        resume, follow = self.resume, self.follow
        return (
            (self.cluster and self.cluster_limit_s <= self.round_every, "cluster_timeout",
             f"{self.cluster_timeout} s, not above round_every, {self.round_every} s, so a "
             "machine could not wait for the next round of the others; set six times that"),
            (self.cluster and self.determinism != "none", "cluster",
             "its rounds follow the clock, so no run is deterministic; leave determinism out"),
            (self.cluster and follow, "cluster",
             "gives machines batches of one text; leave follow or cluster out"),
            (self.gpu_write.startswith("metal") and self.write not in ("auto", "cas"), "write",
             f"is {self.write}, but beside gpu_write={self.gpu_write} every CPU writer has to use "
             "cas; set write=auto, or gpu_write=cpu"),
            (not self.live_every.on and self.live != "off", "live_every",
             "off, so readers would get no snapshot; set live=off as well"),
            (self.init_from and resume, "init_from",
             f"resume {resume} has its own weights; leave one of the two out"),
            *((value and self.embedding_init != "auto", "embedding_init",
               f"{self.embedding_init}, but {source} {value} has embeddings; leave one of the two "
               "out")
              for source, value in (("init_from", self.init_from), ("resume", resume))),
            (self.adapter and not (self.init_from or resume), "adapter",
             f"{self.adapter} trains beside the weights of a model; name it with --init-from, such "
             "as --init-from latest, or leave adapter out"),
            (self.adapter and self.resize_vocab, "adapter",
             "the embedding is frozen, so its rows stay as they are; leave resize_vocab out"),
            *((self.epochs and value, "epochs",
               f"is {self.epochs}, and {budget} {value} is a budget, too; leave one of them out, "
               "or set it to none")
              for budget, value in (
                ("steps", self.steps), ("tokens", self.tokens), ("time", self.time))),
            (self.epochs and follow, "epochs",
             "a followed folder never ends, so it has no epochs; leave epochs out"),
        )  # fmt: skip

    @property
    def micro_batch(self) -> int:
        """`batch_size` as a number, once `mlxhog.training.plan.batch_size` has measured it."""
        if self.batch_size is None:
            raise ConfigError(
                "batch_size is auto, which only mlxhog train measures; give a number, such as "
                "--batch-size 4"
            )
        return self.batch_size

    @property
    def sequences_per_ticket(self) -> int:
        """Sequences in one batch, which may be several micro-batches."""
        return self.micro_batch * self.grad_accumulation

    @property
    def top_lr(self) -> float:
        """`lr` as a number, which it is once `mlxhog.strategies.for_model` has seen the model."""
        if self.lr is None:
            raise ConfigError("lr is auto, which depends on the model; give a number")
        return self.lr

    @property
    def has_budget(self) -> bool:
        """Whether a budget is given; `resume` without one uses the rest of the run's own."""
        return (self.steps, self.tokens, self.time, self.epochs) != (None,) * 4

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `report_to`."""
        return trackers(self.report_to)

    @property
    def keeps_best(self) -> bool:
        """Whether the best evaluation's checkpoint is saved and kept."""
        return self.eval_every.on and self.keep_best is not False

    @property
    def cluster_limit_s(self) -> float:
        """Limit of each call of a group."""
        return self.cluster_timeout or max(60.0, 6 * self.round_every)

    def to_yaml(self) -> str:
        """Return a YAML text with which `train --config` repeats this run.

        `resume` and `reset_optimizer` are left out: they describe one command, not the run. So is
        the token of a cluster, which is a secret.
        """
        values = yaml_values(self) | {"cluster_token": "auto"}
        for name, value in vars(self).items():
            if isinstance(value, Component):
                values[name] = value.to_dict()
        del values["resume"], values["reset_optimizer"]
        return yaml.safe_dump(values, sort_keys=False)  # ASCII: it reads back all that it writes


def train_config(sources: Iterable[ConfigSource]) -> TrainConfig:
    """Return the options of a run from several sources, the weakest first.

    A component that only a user's file defines is looked up in the files that sources remember.

    Raises:
        ConfigError: everything that is wrong in any of them; or such a file may not be loaded.
    """
    sources = list(sources)
    *_, named = None, *(source[plugins.KEY][0] for source in sources if plugins.KEY in source)
    return plugins.recalled(
        plugins.texts("" if named == "none" else named),
        lambda: resolve(TrainConfig, sources),
        lambda config: vars(config).values(),
    )
