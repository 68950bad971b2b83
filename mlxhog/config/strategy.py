"""What a strategy says of itself, as a run chooses it, and the numbers that several have.

A choice says what `mlxhog.strategies` then runs. It imports no NumPy, so that help and wrong
options are answered at once. Whatever is true of some strategies only is a fact of their classes;
what does not go together with other options of a run, the class that knows it yields in `beside`.
The strategies are in `strategies.py` and `local_strategies.py`.
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
"""Options of the run, and what each contradicts, with the way out."""


@dataclass(frozen=True, kw_only=True)
class StrategyChoice(Choice, ABC):
    """A strategy and its numbers.

    Attributes:
        one_process: it has one worker.
        repeats: two runs of as many steps end with the same bits, whatever timing does.
        averages: a step is along the mean of the workers' gradients.
        copies: each worker, or a group of them, trains a copy of the parameters.
        elastic: a batch belongs to whichever worker takes it, so that workers may join and leave,
            and text may arrive.
        recorded: the workers take just the steps of `hogwild`, of which there is a record.
        looks_ahead: gradients are taken where the parameters will be, unless `predict` says other.
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
        """Number of workers, of a run's, that add steps of their own to shared parameters."""
        return 1

    @property
    def lr_rule(self) -> str:
        """The factor of lr by the workers that add steps of their own, as `lr_workers` has it."""
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

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield options of a run that do not go together with this choice, and the way out."""
        if self.reads_copies and config.read == "live":
            yield "read", f"live, but {self.name} computes with copies; leave read out"
        if self.writes_alone and config.write == "racy":
            alone = f"racy, but in {self.name} no other process writes beside a worker"
            yield "write", f"{alone}; leave it out"


def of(config: TrainConfig, kind: type[C]) -> C:
    """Return the strategy of a configuration, which is of this kind."""
    assert isinstance(config.strategy, kind), f"{config.strategy} is not {kind.__name__}"
    return config.strategy


def strategy_name(config: TrainConfig) -> str:
    """Return the name of the strategy of a configuration, "auto" where it is open."""
    return "auto" if config.strategy is None else config.strategy.name


def sparsify(config: TrainConfig) -> str:
    """Return what is written of a step, as `--sparsify` has it; "none" is all."""
    return config.strategy.sparsify if isinstance(config.strategy, Sparse) else "none"


# -- numbers that several strategies have ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Apart(StrategyChoice):
    """The number of strategies each worker of which adds steps of its own."""

    lr_workers: str = option(
        "auto",
        "factor of lr where P workers add steps of their own: none, 1/sqrt(P), or 1/P; auto is "
        "sqrt for Lion, none for the others",
        choices=("auto", "none", "sqrt", "linear"),
    )

    @property
    def lr_rule(self) -> str:
        """The factor of lr by the workers that add steps of their own."""
        return self.lr_workers

    def steppers(self, workers: int) -> int:
        """Number of workers that add steps of their own: all."""
        return workers


@dataclass(frozen=True, kw_only=True)
class LateSteps(Apart):
    """Numbers of strategies whose workers add gradients that come late."""

    staleness_lr: str = option(
        "none",
        "step size of a gradient that comes tau updates late: linear:C divides it by 1 + C tau, "
        "exp:D multiplies it by D^tau, delay_adaptive by (P - 1)/tau where that is less than 1, "
        "drop:T leaves out what is later than T",
    )
    delay_compensation: str = option(
        "none",
        "correct a late gradient g by F g g (w - w_read), as DC-ASGD: constant:F, or adaptive:F, "
        "which divides F by the root of the mean square of g",
    )

    @property
    def is_adapted(self) -> bool:
        """Whether a late gradient's step is another than a fresh one's."""
        return (self.staleness_lr, self.delay_compensation) != ("none", "none")

    def broken_rules(self) -> Iterable[str]:
        """Yield what cannot be read."""
        yield from super().broken_rules()
        yield from unread("staleness_lr", StalenessRule.parse, self.staleness_lr)
        yield from unread("delay_compensation", Compensation.parse, self.delay_compensation)

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield what late gradients cannot be corrected with, too."""
        yield from super().beside(config)
        if self.delay_compensation != "none" and config.read == "live":
            problem = "live reads keep no copy of what the gradient was taken at"
            yield "delay_compensation", f"{problem}; leave read out"


@dataclass(frozen=True, kw_only=True)
class Paced(LateSteps):
    """Numbers of late workers each of which has a speed of its own."""

    rescale_by_speed: bool = option(
        False,
        "multiply a worker's step size by its time for a gradient, so that slow and fast workers "
        "move the parameters equally far (Rescaled ASGD)",
    )

    @property
    def is_adapted(self) -> bool:
        """Whether a late gradient's step is another than a fresh one's."""
        return super().is_adapted or self.rescale_by_speed


@dataclass(frozen=True, kw_only=True)
class FedBack(StrategyChoice):
    """The number of strategies that can take back what was added in advance."""

    delay_feedback: bool = option(
        False,
        "add a step that comes tau updates late with tau/n of it in advance, and take that back "
        "with the next one; n updates come between two steps of a worker (error feedback)",
    )

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield what corrected steps cannot be written with, too."""
        yield from super().beside(config)
        if self.delay_feedback and config.gpu_write != "cpu":
            yield "gpu_write", uncorrected(config.gpu_write)


def uncorrected(value: str) -> str:
    """Say that error feedback on delay does not go together with a value."""
    problem = f"is {value}, and only steps that the CPU writes whole are corrected"
    return f"{problem}; leave it out, or delay_feedback"


@dataclass(frozen=True, kw_only=True)
class LookAhead(StrategyChoice):
    """The number of strategies whose gradients may be taken where the parameters will be."""

    predict: str = option(
        "auto",
        "where a gradient is taken: at the parameters, or where they will be when it lands, by "
        "their movement since this worker's last read (own) or by the last steps of all (last); "
        "auto is last if hogwild shares moments, own if it does not, else none",
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
        """Yield what the last steps of all need."""
        yield from super().beside(config)
        if self.predict in ("own", "last") and config.read == "live" and not self.one_process:
            yield "read", "live reads have no snapshot to predict from; add predict=none"
        is_open = config.optimizer is None
        if self.predict == "last" and not is_open and not config.shares_moments:
            problem = "last looks ahead by steps that all workers' moments make"
            yield "predict", f"{problem}; add moments=shared"


@dataclass(frozen=True, kw_only=True)
class Sparse(StrategyChoice):
    """Numbers of strategies whose workers may write a part of their own steps."""

    sparsify: str = option(
        "none",
        "what is written of a step: all, the share F of each parameter's elements with the largest "
        "steps (topk:F), or those whose step has reached F times lr (threshold:F)",
    )
    error_feedback: bool = option(
        True, "sparsify: what is not written waits in the worker for later steps, or is dropped"
    )

    def selection(self) -> Selection | None:
        """What is written of a step; None is all of it."""
        return Selection.parse(self.sparsify)

    @property
    def writes_whole_steps(self) -> bool:
        """Whether a worker adds its step to every parameter."""
        return self.sparsify == "none"

    def broken_rules(self) -> Iterable[str]:
        """Yield what cannot be read, or has no effect."""
        yield from super().broken_rules()
        yield from unread("sparsify", Selection.parse, self.sparsify)
        if self.sparsify == "none" and not self.error_feedback:
            problem = "without sparsify every step is written whole, and nothing is left to drop"
            yield f"error_feedback: {problem}; leave it out, or add sparsify=topk:0.01"

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield what writes steps whole."""
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
        "sequences of a round that each worker computes: as many as the others, or in proportion "
        "to its measured speed",
        choices=("equal", "speed"),
        flat="sync_shares",
    )


def unread(name: str, parse: Callable[[str], object], text: str) -> Iterator[str]:
    """Yield what is wrong with the text of a number, if anything."""
    try:
        parse(text)
    except ValueError as error:
        yield f"{name}: {error}"
