"""Late gradients of one worker: how the options change their steps.

    staleness_lr        a factor of lr by the gradient's staleness
    delay_compensation  g + F g g (w - w_read), element by element: the gradient where it lands,
                        with g g in the place of the second derivative. adaptive: F / sqrt(ms + eps)
                        for F, where ms = .95 ms + .05 g g of this worker's gradients, over
                        1 - .95^t after t gradients of its process, which begins with ms = 0
    delay_feedback      u + e - e' for a step u: e = u tau/n is added in advance, e' was before; n
                        updates come between two steps of a worker (`mlxhog.optim.delay_feedback`)
    rescale_by_speed    lr T_p mean(1 / T), T_p a worker's time for a gradient: workers then move
                        the parameters equally far in the same time, and all together as far as
                        without it

Step size by `staleness_lr` of a gradient that comes tau updates late, with P workers (with
`--overlap` P is one more, since the worker's own last step comes in between, too):

    staleness_lr      step size
    none              lr
    linear:C          lr / (1 + C tau); C is 0.5 by default
    exp:D             lr D^tau; D is 0.9 by default
    delay_adaptive    lr min(1, (P - 1) / tau): lr up to the usual age, and less for older gradients
    drop:T            lr up to tau = T, and 0 beyond; T is 2 P by default

Sources: linear, Zhang et al. 2015, arXiv:1511.05950 (there lr / tau); delay_adaptive and drop,
Koloskova et al. 2022, arXiv:2206.08307, and Mishchenko et al. 2022, arXiv:2206.07638, whose rules
know the smoothness of the objective; delay_compensation, Zheng et al. 2017, DC-ASGD,
arXiv:1609.08326; rescale_by_speed, Mahran, Maranjyan and Richtarik 2026, Rescaled Asynchronous SGD,
arXiv:2605.13434. lr / P and lr / sqrt(P), which do not depend on tau, are `lr_workers`.

Rules by staleness, and different speeds, give some workers a larger share of the result than
others. That is a bias if fast workers see other text than slow ones; `mlxhog.report.monitor` warns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from mlxhog.base.late import np
from mlxhog.config.choices import Rules
from mlxhog.config.options import option
from mlxhog.config.rules import Forms, not_negative, positive, share
from mlxhog.optim import gradients, updates
from mlxhog.optim.delay_feedback import FedBack
from mlxhog.optim.gradients import Float32, Grads, Int32, Rows
from mlxhog.optim.rule import parameter
from mlxhog.strategies.strategy import Apart

if TYPE_CHECKING:
    from mlxhog.strategies.context import Context

_LATE_FORMS = Forms(
    "none, linear:C with C >= 0, exp:D with 0 <= D <= 1, delay_adaptive, or drop:T with T >= 0",
    {"linear": 0.5, "exp": 0.9, "drop": None},
    none=(), linear=(not_negative,), exp=(share,), delay_adaptive=(), drop=(not_negative,),
)  # fmt: skip
_COMPENSATION_FORMS = Forms(
    "none, constant:F or adaptive:F with F > 0",
    {"constant": 0.04, "adaptive": 2.0},
    none=(), constant=(positive,), adaptive=(positive,),
)  # fmt: skip


class StalenessRule(NamedTuple):
    """A rule of `staleness_lr`, with its C, D or T; None if it has none, and for T = 2 P."""

    kind: str
    number: float | None = None

    @classmethod
    def parse(cls, text: str) -> StalenessRule:
        """Read "none", "linear:0.5", "exp", "delay_adaptive" or "drop:8", or raise ValueError."""
        kind, numbers = _LATE_FORMS.read(text)
        return cls(kind, *numbers)

    def factor(self, staleness: int, workers: int) -> float:
        """Factor of lr, in [0, 1], for tau >= 0 and P >= 1; 0 leaves the gradient out."""
        number = self.number or 0.0
        if self.kind == "linear":
            return 1.0 / (1.0 + number * staleness)
        if self.kind == "exp":
            return float(number**staleness)
        if self.kind == "delay_adaptive":
            return min(1.0, max(1, workers - 1) / max(1, staleness))
        if self.kind == "drop":
            return float(staleness <= (2 * workers if self.number is None else self.number))
        return 1.0


class Compensation(NamedTuple):
    """A rule of `delay_compensation`: F, and whether the gradient's mean square divides it."""

    factor: float
    adaptive: bool

    @classmethod
    def parse(cls, text: str) -> Compensation | None:
        """Read "none", "constant:0.04" or "adaptive:2", or raise ValueError; F may be left out."""
        kind, factor = _COMPENSATION_FORMS.read(text)
        return cls(factor[0], kind == "adaptive") if factor else None


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
        return super().is_adapted or self.rescale_by_speed


MEMORY = 0.95
"""Decay of the mean square of gradients, per gradient."""
EPS = 1e-7


class Delays:
    """One worker's late gradients."""

    def __init__(self, context: Context, *, workers: int | None = None) -> None:
        """Read the options; P is the run's when a gradient lands, or that of simulated workers."""
        chosen = context.strategy
        self._context, self._simulated = context, workers
        self._rule, self._adapts = StalenessRule("none"), False
        self._compensation: Compensation | None = None
        if isinstance(chosen, LateSteps):
            self._rule = StalenessRule.parse(chosen.staleness_lr)
            self._compensation = Compensation.parse(chosen.delay_compensation)
            self._adapts = chosen.is_adapted
        self._by_speed = isinstance(chosen, Paced) and chosen.rescale_by_speed
        self._feeds_back = isinstance(chosen, FedBack) and chosen.delay_feedback
        self._now: Float32 | None = None
        self._mean_squares: dict[str, tuple[Float32, Float32]] = {}

    def _factor(self, staleness: int) -> float:
        """The factor of lr: of P workers, or P + 1 with `--overlap`."""
        workers = self._simulated
        if workers is None:  # with overlap a worker's own step lands between, as another's
            workers = self._context.live_workers + self._context.config.overlap
        return self._rule.factor(staleness, workers)

    def is_too_late(self, staleness: int) -> bool:
        """Whether a gradient is left out."""
        return self._factor(staleness) == 0.0

    def rate(self, lr: float, staleness: int) -> float:
        """The step size of a gradient with this staleness; added up if options change it."""
        entry = self._context.entry
        lr *= self._factor(staleness)
        if self._by_speed:
            lr *= speed_factor(entry.step_s, _step_times(self._context))
        if self._adapts:
            entry.rate_sum += lr
        return lr

    def feedback(self, staleness: int, since: int) -> float:
        """The share of a late step that is added in advance, F = tau / n.

        Args:
            staleness: tau, updates by others between the read and the write.
            since: n, updates after the worker's previous step up to this one, this one included;
                tau + 1 for a worker that reads as soon as it has written.
        """
        return staleness / since if self._feeds_back else 0.0

    def compensated(self, grads: Grads) -> Grads:
        """Approximation of a gradient at the current parameters.

        It was taken at those in the backend's inbox. A gradient that is not finite is returned
        unchanged: it will be dropped, and would stay in the mean square.
        """
        arena = self._context.arena
        if self._compensation is None or not math.isfinite(self._context.norm(grads)):
            return grads
        if self._now is None:
            self._now = np.empty_like(arena.dense)
        updates.snapshot(self._now, arena.dense)
        moved = self._now - self._context.backend.inbox
        corrected: dict[str, Float32 | Rows] = dict(grads)
        for name, grad in gradients.without_tables(grads, arena.layout.slots).items():
            by = parameter(moved, arena.layout.slots[name])
            if isinstance(grad, Rows):
                rows = grad.coalesced()
                square = rows.values * rows.values
                strength = self._strength(name, square, rows.index)
                values = rows.values + strength * square * by[rows.index]
                corrected[name] = Rows(rows.index, values)
            else:
                square = grad * grad
                corrected[name] = grad + self._strength(name, square, slice(None)) * square * by
        return corrected

    def _strength(self, name: str, square: Float32, at: slice | Int32) -> Float32 | np.float32:
        """F, or F over the root of the running mean square, which these squares join."""
        assert self._compensation is not None
        factor = np.float32(self._compensation.factor)
        if not self._compensation.adaptive:
            return factor
        if name not in self._mean_squares:
            shape = self._context.arena.layout.slots[name].shape
            of_rows = (*shape[:1], *[1] * (len(shape) - 1))  # 1 - .95^t, row by row
            zeros = np.zeros(shape, np.float32), np.zeros(of_rows, np.float32)
            self._mean_squares[name] = zeros
        mean, weight = self._mean_squares[name]
        keep, take = np.float32(MEMORY), np.float32(1.0 - MEMORY)
        mean[at] = keep * mean[at] + take * square
        weight[at] = keep * weight[at] + take
        strength: Float32 = factor / np.sqrt(mean[at] / weight[at] + np.float32(EPS))
        return strength


def _step_times(context: Context) -> list[float]:
    """Seconds of each worker for a gradient; 0 is not measured yet."""
    from mlxhog.arena.workers import State

    working = (State.STARTING, State.RUNNING)
    return [entry.step_s for entry in context.arena.workers if entry.state in working]


def speed_factor(own_s: float, all_s: Sequence[float]) -> float:
    """Factor of lr for a worker that takes `own_s` for a gradient; 1 until all are measured.

    `all_s` has its own, too. factor / seconds is the same for every worker, and its sum over
    workers is that of 1 / seconds, so all together move the parameters as far as without it.
    """
    if own_s <= 0.0 or not all_s or min(all_s) <= 0.0:
        return 1.0
    return own_s * sum(1.0 / each for each in all_s) / len(all_s)
