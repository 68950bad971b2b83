"""Stale gradients of one worker: staleness-aware learning rates, and corrections.

    staleness_lr        a factor of lr by the gradient's staleness
    delay_compensation  g + F g g (w - w_read), element by element: the gradient where it lands,
                        with g g for the second derivative. adaptive: F / sqrt(ms + eps) for F,
                        where ms is the EMA of g g with decay .95, bias-corrected
    delay_feedback      u + e - e' for an update u: e = u tau/n is added in advance, e' was before;
                        n updates come between two of a worker (`mlxhog.optim.delay_feedback`)
    rescale_by_speed    lr T_p mean(1 / T), T_p a worker's time for a gradient: workers then move
                        the parameters equally far in the same time, all together as without it

Learning rate by `staleness_lr` of a gradient with staleness tau, with P workers (one more with
`--overlap`, for the worker's own pending update):

    staleness_lr      learning rate
    none              lr
    linear:C          lr / (1 + C tau); C is 0.5 by default
    exp:D             lr D^tau; D is 0.9 by default
    delay_adaptive    lr min(1, (P - 1) / tau)
    drop:T            lr up to tau = T, and 0 beyond; T is 2 P by default

Sources: linear, Zhang et al. 2015, arXiv:1511.05950 (there lr / tau); delay_adaptive and drop,
Koloskova et al. 2022, arXiv:2206.08307, and Mishchenko et al. 2022, arXiv:2206.07638, whose rules
know the smoothness of the objective; delay_compensation, Zheng et al. 2017, DC-ASGD,
arXiv:1609.08326; rescale_by_speed, Mahran, Maranjyan and Richtarik 2026, Rescaled Asynchronous SGD,
arXiv:2605.13434. lr / P and lr / sqrt(P), which do not depend on tau, are `lr_workers`.

Rules by staleness, and different speeds, give some workers a larger share of the result: a bias if
they train on different text, of which `mlxhog.training.supervisor.monitor` warns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxhog.config.components import Constraints
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import option
from mlxhog.config.rules import Forms, not_negative, positive, share
from mlxhog.optim import gradients, updates
from mlxhog.optim.gradients import Float32, Grads, Int32, Rows
from mlxhog.optim.rule import parameter
from mlxhog.strategies.strategy import IndependentSteps, Strategy

if TYPE_CHECKING:
    import numpy as np

    from mlxhog.strategies.context import Context

_STALENESS_FORMS = Forms(
    "none, linear:C with C >= 0, exp:D with 0 <= D <= 1, delay_adaptive, or drop:T with T >= 0",
    {"linear": 0.5, "exp": 0.9, "drop": None},
    none=(), linear=(not_negative,), exp=(share,), delay_adaptive=(), drop=(not_negative,),
)  # fmt: skip
_COMPENSATION_FORMS = Forms(
    "none, constant:F or adaptive:F with F > 0",
    {"constant": 0.04, "adaptive": 2.0},
    none=(), constant=(positive,), adaptive=(positive,),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StaleGradientOptions(IndependentSteps):
    """Options of strategies whose workers apply stale gradients."""

    staleness_lr: str = option(
        "none",
        "learning rate of a gradient with staleness tau: linear:C divides it by 1 + C tau, "
        "exp:D multiplies it by D^tau, delay_adaptive by (P - 1)/tau if that is less than 1, "
        "drop:T drops gradients staler than T",
        reads=_STALENESS_FORMS.read,
    )
    delay_compensation: str = option(
        "none",
        "correct a stale gradient g by F g g (w - w_read), as DC-ASGD: constant:F, or "
        "adaptive:F, which divides F by the root of the mean square of g",
        reads=_COMPENSATION_FORMS.read,
    )

    def run_constraints(self, config: TrainConfig) -> Constraints:
        return (
            (self.delay_compensation != "none" and config.read == "live", "delay_compensation",
             "live reads keep no copy of the gradient's parameters; leave read out"),
        )  # fmt: skip

    @property
    def is_adapted(self) -> bool:
        """Whether the update of a stale gradient is scaled or corrected."""
        return (self.staleness_lr, self.delay_compensation) != ("none", "none")


@dataclass(frozen=True, kw_only=True)
class SpeedRescaled(StaleGradientOptions):
    """Options of strategies whose workers differ in speed."""

    rescale_by_speed: bool = option(
        False,
        "multiply a worker's learning rate by its time for a gradient, so that slow and fast "
        "workers move the parameters equally far (Rescaled ASGD)",
    )

    @property
    def is_adapted(self) -> bool:
        return super().is_adapted or self.rescale_by_speed


@dataclass(frozen=True, kw_only=True)
class DelayFeedbackOptions(Strategy):
    """Options of strategies with error feedback on stale updates."""

    delay_feedback: bool = option(
        False,
        "to an update with staleness tau add tau/n of it in advance, and subtract that with the "
        "worker's next one; n updates come between the two (error feedback)",
    )

    def run_constraints(self, config: TrainConfig) -> Constraints:
        return (
            (self.delay_feedback and config.gpu_write != "cpu", "gpu_write",
             f"is {config.gpu_write}, and only updates that the CPU writes whole are corrected; "
             "leave it out, or delay_feedback"),
        )  # fmt: skip


def staleness_factor(rule: str, staleness: int, workers: int) -> float:
    """Return the factor of lr by a `staleness_lr`, for tau >= 0 and P >= 1; 0 drops a gradient.

    Raises:
        ValueError: it is no such rule.
    """
    kind, numbers = _STALENESS_FORMS.read(rule)
    factors: dict[str, Callable[..., float]] = {
        "linear": lambda c: 1.0 / (1.0 + c * staleness),
        "exp": lambda d: float(d**staleness),
        "delay_adaptive": lambda: min(1.0, max(1, workers - 1) / max(1, staleness)),
        "drop": lambda t: float(staleness <= (2 * workers if t is None else t)),
    }
    return factors[kind](*numbers) if kind in factors else 1.0


def speed_factor(own_s: float, all_s: Sequence[float]) -> float:
    """Return the factor of lr for a worker that takes `own_s` for a gradient.

    factor / seconds is the same for every worker (`all_s` includes it), and its sum is that of
    1 / seconds. It is 1 until the worker itself is measured.
    """
    if own_s <= 0.0:
        return 1.0
    return own_s * sum(1.0 / each for each in all_s) / len(all_s)


MEMORY = 0.95  # decay of the mean square of gradients, per gradient
EPS = 1e-7


class Delays:
    """One worker's stale gradients."""

    def __init__(self, context: Context, *, workers: int | None = None) -> None:
        """Use a number of simulated workers, or that of the run when a gradient lands."""
        self._context, self._strategy, self._simulated = context, context.strategy, workers
        compensation = _COMPENSATION_FORMS.read(self._strategy.delay_compensation)
        self._compensation, self._strengths = compensation
        self._mean_squares: dict[str, tuple[Float32, Float32]] = {}

    def factor(self, staleness: int) -> float:
        """Return the factor of lr by `staleness_lr`; a gradient with factor 0 is dropped."""
        workers = self._simulated
        if workers is None:  # with overlap a worker's own update lands between, too
            workers = self._context.live_workers + self._context.run.overlap
        return staleness_factor(self._strategy.staleness_lr, staleness, workers)

    def rate(self, lr: float, staleness: int) -> float:
        """Return the learning rate of a gradient with this staleness; summed if adapted."""
        entry = self._context.entry
        lr *= self.factor(staleness)
        if self._strategy.rescale_by_speed:
            from mlxhog.arena.workers import WorkerState

            working = (WorkerState.STARTING, WorkerState.RUNNING)
            every = [
                one.step_s
                for one in self._context.arena.workers.training()
                if one.state in working and one.steps
            ]
            lr *= speed_factor(entry.step_s, every)
        if getattr(self._strategy, "is_adapted", False):
            entry.rate_sum += lr
        return lr

    def feedback(self, staleness: int, since: int) -> float:
        """Return the share of a stale update that is added in advance, F = tau / n.

        `since` is n, the updates after the worker's previous one, this one included: tau + 1 for a
        worker that reads as soon as it has written.
        """
        return staleness / since if self._strategy.delay_feedback else 0.0

    def compensated(self, grads: Grads) -> Grads:
        """Approximate the gradient at the current parameters; it was taken at those of the buffer.

        One that is not finite stays as it is: it will be skipped, and would spoil the mean square.
        """
        import numpy as np

        arena = self._context.arena
        if self._compensation == "none" or not math.isfinite(self._context.norm(grads)):
            return grads
        moved = np.empty_like(arena.dense)
        updates.snapshot(moved, arena.dense)
        moved -= self._context.backend.param_buffer
        corrected: dict[str, Float32 | Rows] = dict(grads)
        for name, grad in gradients.without_tables(grads, arena.layout.slots).items():
            rows = grad.coalesced() if isinstance(grad, Rows) else grad
            at, g = (rows.index, rows.values) if isinstance(rows, Rows) else (slice(None), rows)
            square = g * g
            by = parameter(moved, arena.layout.slots[name])[at]
            g = g + self._strength(name, square, at) * square * by
            corrected[name] = Rows(rows.index, g) if isinstance(rows, Rows) else g
        return corrected

    def _strength(self, name: str, square: Float32, at: slice | Int32) -> Float32 | np.float32:
        """Return F, or F over the root of the mean square, which includes these squares."""
        import numpy as np

        factor = np.float32(self._strengths[0])
        if self._compensation == "constant":
            return factor
        if name not in self._mean_squares:
            shape = self._context.arena.layout.slots[name].shape
            of_rows = (*shape[:1], *[1] * (len(shape) - 1))  # 1 - .95^t, row by row
            zeros = np.zeros(shape, np.float32), np.zeros(of_rows, np.float32)
            self._mean_squares[name] = zeros
        mean, weight = self._mean_squares[name]
        decay, rate = np.float32(MEMORY), np.float32(1.0 - MEMORY)
        mean[at] = decay * mean[at] + rate * square
        weight[at] = decay * weight[at] + rate
        strength: Float32 = factor / np.sqrt(mean[at] / weight[at] + np.float32(EPS))
        return strength
