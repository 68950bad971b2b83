"""The base of a strategy as a run chooses it, and numbers that several strategies have.

`mlxhog.strategies` runs the choice. Nothing here imports NumPy, so that help and errors about
options are fast. A fact of some strategies is an attribute of their classes; `beside` of a class
yields the options of a run that contradict it. The strategies are in `strategies.py` and
`local_strategies.py`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from mlxhog.config import optimizers
from mlxhog.config.choices import STRATEGIES, Choice, Kind
from mlxhog.config.options import option
from mlxhog.config.rules import Compensation, Selection, StalenessRule

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig

C = TypeVar("C", bound="StrategyChoice")

Pairs = Iterator[tuple[str, str]]
"""Options of the run, each with its contradiction and the way out."""


@dataclass(frozen=True, kw_only=True)
class StrategyChoice(Choice, ABC):
    """A strategy and its numbers.

    Attributes:
        one_process: it has one worker.
        repeats: two runs of the same number of steps end with the same bits, at any timing.
        averages: a step is along the mean of the workers' gradients.
        copies: each worker, or a group of them, trains a copy of the parameters.
        elastic: any worker may take any batch, so that workers may join and leave, and text may
            arrive.
        recorded: the workers take the steps of `hogwild`, which can be recorded.
        looks_ahead: `predict=auto` takes gradients where the parameters will be.
        shares_moments: an optimizer may keep one pair of moments for all workers by default.
        reads_copies: workers compute with copies only, never with the shared parameters themselves.
        writes_alone: no other process writes beside a worker.
    """

    kind: ClassVar[Kind] = STRATEGIES
    one_process: ClassVar[bool] = False
    repeats: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    copies: ClassVar[bool] = False
    elastic: ClassVar[bool] = False
    recorded: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False
    shares_moments: ClassVar[bool] = False
    reads_copies: ClassVar[bool] = False
    writes_alone: ClassVar[bool] = False

    def steppers(self, workers: int) -> int:
        """Number of the run's workers that add their own steps to shared parameters."""
        return 1

    @property
    def lr_rule(self) -> str:
        """Rule for the factor of lr by the number of these workers: a value of `lr_workers`."""
        return "none"

    def prediction(self, config: TrainConfig) -> str:
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

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield options of a run that contradict this choice, and the way out."""
        if self.reads_copies and config.read == "live":
            yield "read", f"live, but {self.name} computes with copies; leave read out"
        if self.writes_alone and config.write == "racy":
            alone = f"racy, but in {self.name} no other process writes beside a worker"
            yield "write", f"{alone}; leave it out"
        if config.overlap and not self.overlaps:
            problem = f"a worker of {self} reads after its own step, in rounds or in an order"
            yield "overlap", f"{problem}; set strategy=hogwild, or leave overlap out"


def of(config: TrainConfig, kind: type[C]) -> C:
    """Return the strategy of a configuration, which is of this kind."""
    assert isinstance(config.strategy, kind), f"{config.strategy} is not {kind.__name__}"
    return config.strategy


def strategy_name(config: TrainConfig) -> str:
    """Return the name of the strategy of a configuration, "auto" where it is open."""
    return "auto" if config.strategy is None else config.strategy.name


def sparsify(config: TrainConfig) -> str:
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
    )
    delay_compensation: str = option(
        "none",
        "correct a late gradient g by F g g (w - w_read), as DC-ASGD: constant:F, or adaptive:F, "
        "which divides F by the root of the mean square of g",
    )

    @property
    def is_adapted(self) -> bool:
        """Whether the step of a late gradient is scaled or corrected."""
        return (self.staleness_lr, self.delay_compensation) != ("none", "none")

    def broken_rules(self) -> Iterable[str]:
        """Yield numbers that cannot be read."""
        yield from super().broken_rules()
        yield from unread("staleness_lr", StalenessRule.parse, self.staleness_lr)
        yield from unread("delay_compensation", Compensation.parse, self.delay_compensation)

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield options without the copy that a correction needs, too."""
        yield from super().beside(config)
        if self.delay_compensation != "none" and config.read == "live":
            problem = "live reads keep no copy of the gradient's parameters"
            yield "delay_compensation", f"{problem}; leave read out"


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

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield writers that cannot correct steps, too."""
        yield from super().beside(config)
        if self.delay_feedback and config.gpu_write != "cpu":
            yield "gpu_write", uncorrected(config.gpu_write)


def uncorrected(value: str) -> str:
    """Return the error for a value that contradicts error feedback on delay."""
    problem = f"is {value}, and only steps that the CPU writes whole are corrected"
    return f"{problem}; leave it out, or delay_feedback"


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

    def prediction(self, config: TrainConfig) -> str:
        """Where a run's gradients are taken; auto looks ahead where the strategy does."""
        if self.predict in ("none", "last"):
            return self.predict
        feeds_back = isinstance(self, FedBack) and self.delay_feedback
        if config.read == "live" or feeds_back or (self.predict == "auto" and not self.looks_ahead):
            return "none"
        return "last" if self.predict == "auto" and config.shares_moments else "own"

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield options that looking ahead excludes."""
        yield from super().beside(config)
        if self.predict in ("own", "last") and config.read == "live" and not self.one_process:
            yield "read", "live reads have no snapshot to predict from; add predict=none"
        is_open = config.optimizer is None
        if self.predict == "last" and not is_open and not config.shares_moments:
            problem = "last needs steps from moments that all workers share"
            yield "predict", f"{problem}; add moments=shared"


@dataclass(frozen=True, kw_only=True)
class Sparse(StrategyChoice):
    """Numbers of strategies whose workers may write a part of their steps."""

    sparsify: str = option(
        "none",
        "part of a step that is written: all, the share F of each parameter's elements with the "
        "largest steps (topk:F), or the elements whose step has reached F times lr (threshold:F)",
        train_only=True,
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

    def broken_rules(self) -> Iterable[str]:
        """Yield numbers that cannot be read, or have no effect."""
        yield from super().broken_rules()
        yield from unread("sparsify", Selection.parse, self.sparsify)
        if self.sparsify == "none" and not self.error_feedback:
            problem = "without sparsify every step is written whole, and nothing is left to drop"
            yield f"error_feedback: {problem}; leave it out, or add sparsify=topk:0.01"

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield options that write steps whole."""
        yield from super().beside(config)
        if self.sparsify != "none" and config.gpu_write != "cpu":
            problem = f"single elements are added by the CPU, and gpu_write is {config.gpu_write}"
            yield "sparsify", f"{problem}; set gpu_write=cpu"
        if self.sparsify != "none" and optimizers.of(config).asks_to_share:
            problem = "shared moments would still be written whole at every step"
            yield "sparsify", f"{problem}; set moments=private"


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


def unread(name: str, parse: Callable[[str], object], text: str) -> Iterator[str]:
    """Yield the error if the text of a number cannot be read."""
    try:
        parse(text)
    except ValueError as error:
        yield f"{name}: {error}"
