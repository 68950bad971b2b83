"""The run that `--resume` names: its checkpoint, its remaining budget, and checks that it fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from mlxhog.arena.ledger import Position
from mlxhog.base.paths import quoted, words
from mlxhog.base.quantities import parse_number
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.checkpoint import Checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.config import optimizers
from mlxhog.config.budget import Budget
from mlxhog.config.choices import OPTIMIZERS, STRATEGIES
from mlxhog.config.config import ORIGINS, TrainConfig
from mlxhog.config.options import options
from mlxhog.config.sources import read_stored
from mlxhog.config.strategies import Serial
from mlxhog.config.strategy import StrategyChoice
from mlxhog.data.prepare import Prepared
from mlxhog.errors import CheckpointError, ConfigError, RunError
from mlxhog.report.metrics import scored_at

_NEEDED = (
    "version", "optimizer", "strategy", "regime", "used", "budget", "left", "over", "ended",
    "network_bytes", "held_out", "best", "followed", "ledgers", "emulated", "joined", "opt_steps",
    "tokens_sha256", "held_out_sha256",
)  # fmt: skip
"""State that every checkpoint of a run has."""


@dataclass(frozen=True)
class Resumption:
    """A run, and the checkpoint from which it resumes.

    Attributes:
        config: of this call, with the run's own budget if the call has none.
        run: the run.
        checkpoint: from which it resumes.
        own_budget: rest of the run's own budget, if this call has none.
    """

    config: TrainConfig
    run: Run
    checkpoint: Checkpoint
    own_budget: Budget | None

    @classmethod
    def of(
        cls, config: TrainConfig, model: Mapping[str, Any], hidden: frozenset[str]
    ) -> Self | None:
        """Load the run that the configuration resumes; None for a new run.

        Args:
            config: of this call.
            model: the fields of its architecture.
            hidden: names of its hidden matrices.

        Raises:
            RunError: the run does not exist.
            CheckpointError: there is no checkpoint yet, it is damaged, or of another architecture
                or optimizer.
            ConfigError: the run is done, and the call has no budget.
        """
        if config.resume is None:
            return None
        run, path = checkpoint.resumable(config.resume, Path(config.out))
        saved = checkpoint.load(path)
        if lacking := [name for name in _NEEDED if name not in saved.state]:
            raise CheckpointError(
                f"{saved.path} has no {', '.join(lacking)}: another version of mlxhog wrote it; "
                "train with the version that wrote it, or begin a new run with its weights: mlxhog "
                f"train --init-from {quoted(str(saved.path))}"
            )
        checkpoint.check_architecture(saved, model)
        config = _with_strategy(_with_optimizer(config, saved, hidden), saved)
        begins_to_follow = config.follow is not None and not saved.state["followed"]
        if config.has_budget or begins_to_follow:  # the followed text has no end
            return cls(config, run, saved, None)
        own, left = saved.state["budget"], saved.state["left"]
        rest = {unit: left[unit] for unit in ("steps", "tokens", "seconds")}
        # It is zero if the run was stopped after training, during its last evaluation.
        if saved.state["over"] or any(n is not None and n <= 0 for n in rest.values()):
            rest = {unit: None if n is None else 0 for unit, n in rest.items()}
        budget = Budget(**rest)
        if budget.is_used_up and run.read_status().get("status") == "done":
            spelt = ", ".join(f"{unit} {n}" for unit, n in own.items() if n is not None)
            ended = saved.state["ended"] or f"it has used up its budget, {spelt}"
            raise ConfigError(
                f"the run {run.directory} is done: {ended}; give "
                "a further budget with --steps, --tokens or --time: mlxhog train --resume "
                f"{config.resume} --steps {own['steps'] or 1000}"
            )
        return cls(replace(config, **own), run, saved, budget)

    @cached_property
    def stored(self) -> dict[str, Any]:
        """The options in the run's folder, by name."""
        path = self.run.config_path
        stored = read_stored(path) if path.is_file() else {}
        return {name: value for name, (value, _) in stored.items()}

    def automatic(self) -> dict[str, float]:
        """Return the run's earlier values of options that are "auto"."""
        names = [name for name in self.run.automatic() if self.stored.get(name, "auto") != "auto"]
        return {name: parse_number(self.stored[name]) for name in names}

    def began_with(self) -> dict[str, Any]:
        """Return the options of the run's initial weights; empty if they were new."""
        began = {name: self.stored[name] for name in ORIGINS if name in self.stored}
        return began if began.get("init_from") not in (None, "none") else {}

    @property
    def regime(self) -> str | None:
        """The strategy in which a run without a named one was saved; None if not measured."""
        name: str | None = self.checkpoint.state["regime"]
        return name

    def evaluated_bytes(self) -> int:
        """Size of the held-out text that the run was evaluated on."""
        return int(self.checkpoint.state["held_out"]["asked_bytes"])

    def in_steps(self, budget: Budget, batches_per_step: float) -> Budget:
        """Convert the rest of a budget of passes or tokens to steps of this number of batches."""
        rest = self.checkpoint.state["left"]
        if self.own_budget is None or budget.steps is None or not rest.get("batches_per_step"):
            return budget
        ratio = rest["batches_per_step"] / batches_per_step
        return replace(
            budget,
            steps=math.ceil(round(budget.steps * ratio, 6)),
            equal_steps_before=rest["steps_before"] * ratio,
        )

    def position(self) -> Position | None:
        """The position at which training continues in the text, of `--data` or of `--follow`.

        A run may alternate between the two; each has its own position. None is the beginning.
        """
        positions: Mapping[str, Position] = self.checkpoint.state["ledgers"]
        return positions.get(text_kind(self.config))

    def check_data(self, data: Prepared, train: str, held_out: str) -> None:
        """Refuse another tokenizer, or tokens with another digest than the run was trained on.

        Raises:
            CheckpointError: one of them differs.
        """
        checkpoint.check_tokenizer(self.checkpoint, data.tokenizer)
        state = self.checkpoint.state
        for part, own_digest, digest in (
            ("training", state["tokens_sha256"], train),
            ("held-out", state["held_out_sha256"], held_out),
        ):
            if own_digest != digest:
                raise CheckpointError(
                    f"{self.config.resume} was trained with another {part} text than --data "
                    f"{words(self.config.data)} holds now: its tokens have digest "
                    f"{own_digest[:12]}, not {digest[:12]}{data.corpus.in_brackets()}; restore the "
                    "text and the tokenizer that the run was started with, or begin a new run with "
                    f"its weights: mlxhog train --init-from {quoted(str(self.config.resume))} "
                    f"--data {words(self.config.data)}"
                )

    def check_newest(self) -> None:
        """Refuse a checkpoint if another command has since resumed it; the caller holds the lock.

        Raises:
            RunError: another command was faster.
        """
        assert self.config.resume is not None
        _, newest = checkpoint.resumable(self.config.resume, Path(self.config.out))
        if newest != self.checkpoint.path:
            raise RunError(f"another command has just resumed {self.run.directory}; try again")


def score_of(run: Run | None, path: Path, state: Mapping[str, Any]) -> str:
    """Spell a checkpoint's held-out bits per byte, and the step that they scored; "" if unknown.

    The last evaluation of a run follows its last checkpoint, so it is in the run's result.
    """
    result = run.read_status().get("result") if run is not None and run.ended_with(path) else None
    for score in (result, state):
        if not isinstance(score, Mapping):
            continue
        if isinstance(bits := score.get("val_bits_per_byte"), int | float):
            step, used = score.get("val_step"), state.get("used", {})
            return f"held-out {bits:.3f}{scored_at(step, used.get('steps'))}"
    return ""


def text_kind(config: TrainConfig) -> str:
    """The name of the trained text's kind in checkpoints."""
    return "data" if config.follow is None else "stream"


def _with_optimizer(config: TrainConfig, saved: Checkpoint, hidden: frozenset[str]) -> TrainConfig:
    """Use the run's own optimizer unless another is named; refuse moments of another one."""
    own = saved.state["optimizer"]
    if config.optimizer is None:
        return replace(config, optimizer=optimizers.by_name(own))
    if config.reset_optimizer:
        return config
    if own in OPTIMIZERS.known():
        own = optimizers.by_name(own).fitted(hidden=bool(hidden)).name
    if own != config.optimizer.fitted(hidden=bool(hidden)).name:
        raise CheckpointError(
            f"{config.resume} was trained with optimizer {own}, this is {config.optimizer.name}, "
            f"which cannot use its moments; add --optimizer {own}, or --reset-optimizer to "
            "begin without moments"
        )
    return config


def _with_strategy(config: TrainConfig, saved: Checkpoint) -> TrainConfig:
    """Use the run's own strategy unless another is named, or it had a single worker."""
    own = saved.state["strategy"]
    if config.strategy is not None or own["strategy"] in ("auto", Serial.name):
        return config
    chosen = STRATEGIES.find(own["strategy"])
    numbers = {spec.flat for spec in options(chosen).values()} & own.keys()
    choice = STRATEGIES.make(chosen, {name: own[name] for name in numbers})
    assert isinstance(choice, StrategyChoice), "nothing else is registered there"
    return replace(config, strategy=choice)
