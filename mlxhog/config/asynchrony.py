"""Options of strategies whose gradients are late, and the rules that some of them name.

What a rule makes of a step that comes tau updates late, beside P - 1 other workers:

    staleness_lr      step size
    none              lr
    linear:C          lr / (1 + C tau); C is 0.5 where it is left out
    exp:D             lr D^tau; D is 0.9 where it is left out
    delay_adaptive    lr min(1, (P - 1) / tau): that of a gradient of usual age, and less for others
    drop:T            lr up to tau = T, and nothing beyond; T is 2 P where it is left out

Sources: linear, Zhang et al. 2015, arXiv:1511.05950 (there lr / tau); delay_adaptive and drop,
Koloskova et al. 2022, arXiv:2206.08307, and Mishchenko et al. 2022, arXiv:2206.07638, whose rules
know the smoothness of the objective. lr / P and lr / sqrt(P), which do not depend on tau, are
`lr_workers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mlxhog.config.options import option
from mlxhog.config.quantities import parse_number
from mlxhog.config.simulated_staleness import SimulatedStaleness

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig

LATE = ("hogwild", "async_ps", "ssp", "locked", "aig", "sim")
"""Strategies that `staleness_lr` and what goes with it are for."""
FED_BACK = ("hogwild", "round_robin", "sim")
"""Strategies that `delay_feedback` is for."""
SLACK = 3
"""Of ssp, where nothing is said."""

_asynchrony = partial(option, group="asynchrony")
_LIMITS = {"linear": (0.0, None), "exp": (0.0, 1.0), "drop": (0.0, None)}
_DEFAULTS = {"linear": 0.5, "exp": 0.9, "drop": None}


@dataclass(frozen=True, kw_only=True)
class Asynchrony:
    """Options of strategies whose gradients are late."""

    staleness_lr: str = _asynchrony(
        "none",
        "step size of a gradient that comes tau updates late: linear:C divides it by 1 + C tau, "
        "exp:D multiplies it by D^tau, delay_adaptive by (P - 1)/tau where that is less than 1, "
        "drop:T leaves out what is later than T",
    )
    delay_compensation: str = _asynchrony(
        "none",
        "correct a late gradient g by F g g (w - w_read), as DC-ASGD: constant:F, or adaptive:F, "
        "which divides F by the root of the mean square of g",
    )
    delay_feedback: bool = _asynchrony(
        False,
        "add a step that comes tau updates late with tau/n of it in advance, and take that back "
        "with the next one; n updates come between two steps of a worker (error feedback)",
    )
    rescale_by_speed: bool = _asynchrony(
        False,
        "multiply a worker's step size by its time for a gradient, so that slow and fast workers "
        "move the parameters equally far (Rescaled ASGD)",
    )
    lock_scope: str = _asynchrony(
        "step",
        "locked: what a worker holds the lock for, the whole step or only adding it",
        choices=("step", "apply"),
    )
    slack: int | None = _asynchrony(
        None,
        "ssp: steps that a worker may be ahead of the slowest when it begins one; auto is 3",
        unit="steps",
        low=0,
        none="auto",
    )
    slack_notice: float = _asynchrony(
        30.0, "ssp: say who is slow when workers have waited for it so long", unit="s", above=0
    )
    backup_workers: int = _asynchrony(
        0,
        "sync: workers that a round does not wait for; a gradient that comes after the others' is "
        "thrown away, so text that takes long to compute counts less",
        low=0,
    )
    sim_staleness: str | None = _asynchrony(
        None,
        "sim: age of each gradient in steps: fixed:N, uniform:LOW:HIGH, geometric:MEAN, "
        "histogram:0=10,1=80 (age=weight), or speed:1,1,4 (seconds for a gradient of each "
        "simulated worker); auto is fixed:1",
        none="auto",
    )
    sim_workers: int | None = _asynchrony(
        None,
        "sim: simulated workers, each with an optimizer state of its own; auto is N + 1 for "
        "fixed:N, those of speed, else 1",
        low=1,
        high=4096,
        none="auto",
    )

    @property
    def is_adapted(self) -> bool:
        """Whether a late gradient's step is another than a fresh one's."""
        rules = (self.staleness_lr, self.delay_compensation)
        return rules != ("none", "none") or self.rescale_by_speed

    @property
    def simulated_staleness(self) -> SimulatedStaleness:
        """What `sim_staleness` and `sim_workers` say."""
        return SimulatedStaleness.parse(self.sim_staleness or "fixed:1", self.sim_workers)


@dataclass(frozen=True)
class StalenessRule:
    """A rule of `staleness_lr`.

    Attributes:
        kind: none, linear, exp, delay_adaptive or drop.
        number: its C, D or T; None where it has none, and for drop where T is 2 P.
    """

    kind: str
    number: float | None = None

    @classmethod
    def parse(cls, text: str) -> StalenessRule:
        """Read "none", "linear:0.5", "exp", "delay_adaptive" or "drop:8".

        Raises:
            ValueError: none of these.
        """
        kind, colon, number = text.partition(":")
        try:
            if kind in ("none", "delay_adaptive") and not colon:
                return cls(kind)
            low, high = _LIMITS[kind]
            value = parse_number(number) if colon else _DEFAULTS[kind]
            if value is not None and not (low <= value and (high is None or value <= high)):
                raise ValueError
        except (KeyError, ValueError):
            raise ValueError(
                "wanted none, linear:C with C >= 0, exp:D with 0 <= D <= 1, delay_adaptive, or "
                f"drop:T with T >= 0; got {text!r}"
            ) from None
        return cls(kind, value)

    def factor(self, staleness: int, workers: int) -> float:
        """Factor of lr, in [0, 1]; 0 leaves the gradient out.

        Args:
            staleness: updates by others between the read and the write, >= 0.
            workers: P, >= 1.
        """
        if self.kind == "linear":
            assert self.number is not None
            return 1.0 / (1.0 + self.number * staleness)
        if self.kind == "exp":
            assert self.number is not None
            return float(self.number**staleness)
        if self.kind == "delay_adaptive":
            usual = max(1, workers - 1)
            return min(1.0, usual / staleness) if staleness else 1.0
        if self.kind == "drop":
            return float(staleness <= (2 * workers if self.number is None else self.number))
        return 1.0


@dataclass(frozen=True)
class Compensation:
    """A rule of `delay_compensation`.

    Source: Zheng et al. 2017, DC-ASGD, arXiv:1609.08326.

    Attributes:
        factor: lambda.
        adaptive: whether it is divided by the root of the gradient's mean square.
    """

    factor: float
    adaptive: bool

    @classmethod
    def parse(cls, text: str) -> Compensation | None:
        """Read "none", "constant:0.04" or "adaptive:2"; the numbers may be left out.

        Raises:
            ValueError: none of these.
        """
        if text == "none":
            return None
        kind, colon, number = text.partition(":")
        try:
            factor = parse_number(number) if colon else {"constant": 0.04, "adaptive": 2.0}[kind]
            if kind not in ("constant", "adaptive") or factor <= 0:
                raise ValueError
        except (KeyError, ValueError):
            raise ValueError(
                f"wanted none, constant:F or adaptive:F with F > 0; got {text!r}"
            ) from None
        return cls(factor, kind == "adaptive")


def implied_strategy(config: TrainConfig) -> str | None:
    """The strategy that has what is asked for, where only one has."""
    if config.backup_workers:
        return "sync"
    if config.slack is not None:
        return "ssp"
    if config.sim_staleness is not None or config.sim_workers is not None:
        return "sim"
    if config.lock_scope != "step":
        return "locked"
    return "hogwild" if config.is_adapted or config.delay_feedback else None


def contradictions(config: TrainConfig) -> list[tuple[str, str]]:
    """Pairs (option, what it contradicts and the way out)."""
    found = _unreadable(config)
    if found:
        return found
    strategy = config.strategy
    if strategy == "cyclades":
        problem = (
            "is cyclades, but every gradient of a network moves all its dense parameters, so all "
            "batches conflict: one component, at the speed of serial; set strategy=serial, or "
            "round_robin, which repeats bit for bit, too; sparse problems have it: mlxhog classic "
            "svm --scheme cyclades"
        )
        return [("strategy", problem)]
    of_one = (
        ("lock_scope", config.lock_scope != "step", "locked"),
        ("slack", config.slack is not None, "ssp"),
        ("backup_workers", config.backup_workers > 0, "sync"),
        ("sim_staleness", config.sim_staleness is not None, "sim"),
        ("sim_workers", config.sim_workers is not None, "sim"),
    )
    for name, asked, owner in of_one:
        if asked and strategy != owner:
            found.append((name, f"is for strategy {owner}, not {strategy}; leave it out"))
    if config.is_adapted and strategy not in LATE:
        name = next(
            name
            for name in ("staleness_lr", "delay_compensation", "rescale_by_speed")
            if getattr(config, name) not in ("none", False)
        )
        problem = f"is for strategies {', '.join(LATE)}, and in {strategy} no gradient is late"
        if strategy == "round_robin":
            problem = f"is for strategies {', '.join(LATE)}; every gradient is P - 1 updates old"
        found.append((name, f"{problem}; leave it out"))
    if config.is_adapted and config.blocks == "disjoint":
        problem = "disjoint writes no parameter beside others, whose updates would count as delay"
        found.append(("blocks", f"{problem}; leave it out, or the rule for late gradients"))
    if config.delay_compensation != "none" and config.read == "live":
        problem = "live reads keep no copy of what the gradient was taken at"
        found.append(("delay_compensation", f"{problem}; leave read out"))
    found += _of_feedback(config)
    if config.rescale_by_speed and strategy == "sim":
        found.append(("rescale_by_speed", "sim has one process, and one speed; leave it out"))
    if config.backup_workers and config.sync_shares == "speed":
        problem = "shares by speed already let slow workers compute less; use one of the two"
        found.append(("backup_workers", problem))
    return found + _of_reads_and_writes(config)


def _of_feedback(config: TrainConfig) -> list[tuple[str, str]]:
    """What error feedback on delay does not go together with."""
    name, found = "delay_feedback", []
    if not config.delay_feedback:
        return []
    if config.strategy not in FED_BACK or config.async_after > 0:
        problem = f"is for strategies {', '.join(FED_BACK)}, in which a worker writes its own late"
        found.append((name, f"{problem} steps, without async_after; leave it out"))
    if config.predict not in ("auto", "none"):
        problem = f"{config.predict} already counts on the steps that are on their way"
        found.append(("predict", f"{problem}; leave it out, or delay_feedback"))
    for other, asked in (
        ("sparsify", config.sparsify != "none"),
        ("blocks", config.blocks != "all"),
        ("gpu_write", config.gpu_write != "cpu"),
    ):
        if asked:
            problem = f"is {getattr(config, other)}, and only steps that the CPU writes whole are"
            found.append((other, f"{problem} corrected; leave it out, or delay_feedback"))
    return found


def _unreadable(config: TrainConfig) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    parsers: dict[str, Callable[[], object]] = {
        "staleness_lr": lambda: StalenessRule.parse(config.staleness_lr),
        "delay_compensation": lambda: Compensation.parse(config.delay_compensation),
        "sim_staleness": lambda: config.simulated_staleness,
    }
    for name, parse in parsers.items():
        try:
            parse()
        except ValueError as error:
            found.append((name, str(error)))
    return found


def _of_reads_and_writes(config: TrainConfig) -> list[tuple[str, str]]:
    """What strategies cannot do in which workers take a lock, or a turn."""
    strategy, found = config.strategy, []
    if strategy not in LATE or strategy == "hogwild":
        return []
    if config.predict not in ("auto", "none"):
        problem = f"{config.predict} is for hogwild; {strategy} takes gradients at the parameters"
        found.append(("predict", f"{problem} as they are: leave it out"))
    if config.read == "live" and strategy in ("async_ps", "ssp", "sim"):
        found.append(("read", f"live, but {strategy} computes with copies; leave read out"))
    if config.write == "racy":
        problem = f"racy, but in {strategy} nobody writes beside a worker; leave it out"
        found.append(("write", problem))
    if strategy == "aig" and (config.write == "cas" or config.gpu_write != "cpu"):
        name = "write" if config.write == "cas" else "gpu_write"
        problem = f"{getattr(config, name)}, but aig writes under the locks of what it touches"
        found.append((name, f"{problem}; leave it out"))
    if strategy in ("async_ps", "ssp") and config.moments == "shared":
        problem = f"shared, but {strategy} has one optimizer state anyway; leave it out"
        found.append(("moments", problem))
    return found
