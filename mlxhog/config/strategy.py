"""The base of a strategy as a run chooses it, and numbers that several strategies have.

`mlxhog.strategies` runs the choice. Nothing here imports NumPy, so that help and errors about
options are fast. A fact of some strategies is an attribute of their classes. The strategies are in
`strategies.py`.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from mlxhog.config.choices import STRATEGIES, Choice, Kind, Rules
from mlxhog.config.options import option
from mlxhog.config.rules import Compensation, Selection, StalenessRule

C = TypeVar("C", bound="StrategyChoice")


@dataclass(frozen=True, kw_only=True)
class StrategyChoice(Choice, ABC):
    """A strategy and its numbers; its facts are attributes of the class."""

    kind: ClassVar[Kind] = STRATEGIES
    one_process: ClassVar[bool] = False  # it has one worker
    repeats: ClassVar[bool] = False  # runs of equally many steps end with the same bits
    averages: ClassVar[bool] = False  # a step is along the mean of the workers' gradients
    copies: ClassVar[bool] = False  # each worker, or group of them, trains a copy of the parameters
    elastic: ClassVar[bool] = False  # any worker takes any batch; workers and text may arrive
    recorded: ClassVar[bool] = False  # workers take the steps of `hogwild`, which can be recorded
    looks_ahead: ClassVar[bool] = False  # `predict=auto` takes gradients where parameters will be
    shares_moments: ClassVar[bool] = False  # an optimizer may share one pair of moments by default
    reads_copies: ClassVar[bool] = False  # workers compute with copies only
    writes_alone: ClassVar[bool] = False  # no other process writes beside a worker
    rules: ClassVar[Rules] = (
        ("read", "reads_copies & read=live",
         "live, but {strategy} computes with copies; leave read out"),
        ("write", "writes_alone & write=racy",
         "racy, but in {strategy} no other process writes beside a worker; leave it out"),
        ("overlap", "overlap & not overlaps",
         "a worker of {spelt} reads after its own step, in rounds or in an order; set "
         "strategy=hogwild, or leave overlap out"),
    )  # fmt: skip

    def steppers(self, workers: int) -> int:
        """Number of the run's workers that add their own steps to shared parameters."""
        return 1

    @property
    def lr_rule(self) -> str:
        """Rule for the factor of lr by the number of these workers: a value of `lr_workers`."""
        return "none"

    def prediction(self, config: Any) -> str:
        """Where a run's gradients are taken: one of none, own, last."""
        return "none"

    @property
    def writes_whole_steps(self) -> bool:
        """Whether a worker adds its step to every parameter."""
        return True

    @property
    def is_lock_free(self) -> bool:
        """Whether workers take any batch from the first step to the last."""
        return self.elastic

    @property
    def overlaps(self) -> bool:
        """Whether a worker may read for its next gradient before it adds the step of the last."""
        return False


def of(config: Any, kind: type[C]) -> C:
    """Return the strategy of a configuration, which is of this kind."""
    assert isinstance(config.strategy, kind), f"{config.strategy} is not {kind.__name__}"
    return config.strategy


def strategy_name(config: Any) -> str:
    """Return the name of the strategy of a configuration, "auto" where it is open."""
    return "auto" if config.strategy is None else str(config.strategy.name)


def sparsify(config: Any) -> str:
    """Return the value of `--sparsify`: the part of a step that is written; "none" is all."""
    return config.strategy.sparsify if isinstance(config.strategy, Sparse) else "none"


# -- numbers that several strategies have ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Apart(StrategyChoice):
    """The number of strategies whose workers add their own steps."""

    lr_workers: str = option(
        "auto",
        "factor of lr if P workers add their own steps: none, 1/sqrt(P), or 1/P; auto is sqrt for "
        "Lion, none for the others",
        choices=("auto", "none", "sqrt", "linear"),
        train_only=True,
    )

    @property
    def lr_rule(self) -> str:
        """Rule for the factor of lr by the number of these workers."""
        return self.lr_workers

    def steppers(self, workers: int) -> int:
        """Number of workers that add their own steps: all."""
        return workers


@dataclass(frozen=True, kw_only=True)
class LateSteps(Apart):
    """Numbers of strategies whose workers add gradients that come late."""

    staleness_lr: str = option(
        "none",
        "step size of a gradient that comes tau updates late: linear:C divides it by 1 + C tau, "
        "exp:D multiplies it by D^tau, delay_adaptive by (P - 1)/tau if that is less than 1, "
        "drop:T leaves out gradients that are later than T",
        reads=StalenessRule.parse,
    )
    delay_compensation: str = option(
        "none",
        "correct a late gradient g by F g g (w - w_read), as DC-ASGD: constant:F, or adaptive:F, "
        "which divides F by the root of the mean square of g",
        reads=Compensation.parse,
    )
    rules: ClassVar[Rules] = (
        ("delay_compensation", "delay_compensation!=none & read=live",
         "live reads keep no copy of the gradient's parameters; leave read out"),
    )  # fmt: skip

    @property
    def is_adapted(self) -> bool:
        """Whether the step of a late gradient is scaled or corrected."""
        return (self.staleness_lr, self.delay_compensation) != ("none", "none")


@dataclass(frozen=True, kw_only=True)
class Paced(LateSteps):
    """Numbers of strategies whose workers are late and differ in speed."""

    rescale_by_speed: bool = option(
        False,
        "multiply a worker's step size by its time for a gradient, so that slow and fast workers "
        "move the parameters equally far (Rescaled ASGD)",
    )

    @property
    def is_adapted(self) -> bool:
        """Whether the step of a late gradient is scaled or corrected."""
        return super().is_adapted or self.rescale_by_speed


@dataclass(frozen=True, kw_only=True)
class FedBack(StrategyChoice):
    """The number of strategies with error feedback on late steps."""

    delay_feedback: bool = option(
        False,
        "to a step that comes tau updates late add tau/n of it in advance, and take that back with "
        "the worker's next one; n updates come between the two (error feedback)",
    )

    rules: ClassVar[Rules] = (
        ("gpu_write", "delay_feedback & gpu_write!=cpu",
         "is {gpu_write}, and only steps that the CPU writes whole are corrected; leave it out, "
         "or delay_feedback"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LookAhead(StrategyChoice):
    """The number of strategies that can take gradients where the parameters will be."""

    predict: str = option(
        "auto",
        "parameters at which a gradient is taken: the current ones, or those expected when it "
        "lands, by their movement since this worker's last read (own) or by the last steps of all "
        "workers (last); auto is last if hogwild shares moments, own if it does not, else none",
        choices=("auto", "none", "own", "last"),
    )

    def prediction(self, config: Any) -> str:
        """Where a run's gradients are taken; auto looks ahead where the strategy does."""
        if self.predict in ("none", "last"):
            return self.predict
        feeds_back = isinstance(self, FedBack) and self.delay_feedback
        if config.read == "live" or feeds_back or (self.predict == "auto" and not self.looks_ahead):
            return "none"
        return "last" if self.predict == "auto" and config.shares_moments else "own"

    rules: ClassVar[Rules] = (
        ("read", "predict=own|last & read=live & not one_process",
         "live reads have no snapshot to predict from; add predict=none"),
        ("predict", "predict=last & optimizer!=auto & not shared",
         "last needs steps from moments that all workers share; add moments=shared"),
        ("predict", "predict=own|last & delay_feedback",
         "{predict} already expects the pending steps of other workers; leave it out, or "
         "delay_feedback"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sparse(StrategyChoice):
    """Numbers of strategies whose workers may write a part of their steps."""

    sparsify: str = option(
        "none",
        "part of a step that is written: all, the share F of each parameter's elements with the "
        "largest steps (topk:F), or the elements whose step has reached F times lr (threshold:F)",
        train_only=True,
        reads=Selection.parse,
    )
    error_feedback: bool = option(
        True,
        "sparsify: the worker adds the rest of a step to later ones, or drops it",
        train_only=True,
    )

    def selection(self) -> Selection | None:
        """The rule for the part of a step that is written; None is all of it."""
        return Selection.parse(self.sparsify)

    @property
    def writes_whole_steps(self) -> bool:
        """Whether a worker adds its step to every parameter."""
        return self.sparsify == "none"

    rules: ClassVar[Rules] = (
        ("error_feedback", "sparsify=none & error_feedback=false",
         "without sparsify every step is written whole, and nothing is left to drop; leave it out, "
         "or add sparsify=topk:0.01"),
        ("sparsify", "sparsify!=none & gpu_write!=cpu",
         "single elements are added by the CPU, and gpu_write is {gpu_write}; set gpu_write=cpu"),
        ("sparsify", "sparsify!=none & moments=shared",
         "shared moments would still be written whole at every step; set moments=private"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class InRounds(StrategyChoice):
    """The number of strategies with rounds, at least in the beginning."""

    shares: str = option(
        "equal",
        "sequences of each worker in a round: equal numbers, or in proportion to its measured "
        "speed",
        choices=("equal", "speed"),
        flat="sync_shares",
        train_only=True,
    )
