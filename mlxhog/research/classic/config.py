"""Options of `mlxhog research classic`, which of them a run has, and the plan of a run.

    strategy       promise
    hogwild      no worker waits; `write` decides whether simultaneous increments can be lost
    aig          an update locks its rows in ascending order; the gradient is computed without locks
    round_robin  worker p applies the updates p, p + P, p + 2P, ...; reads are ordered, so the
                 result is the same in every run
    sync         P gradients at the same x, their mean applied once; the same in every run
    cyclades     workers take examples without a common coordinate: the result of serial
    serial       one worker, plain sequential SGD

With one worker each of them is serial, bit for bit.
Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730, section 6.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mlxhog.config.options import MAX_SEED, is_set, option, options
from mlxhog.errors import ConfigError
from mlxhog.optim.schedules import FALLING

STRATEGIES = ("hogwild", "aig", "round_robin", "sync", "cyclades", "serial")
WRITES = ("auto", "racy", "lossless", "hot-cold")

_TEXT = {"problem": ("svm", "logistic", "least-squares")}
_COMPLETION = {"problem": ("matrix-completion",)}
_ITS_OWN = "the problem's"  # shown as the default of an option that is None

_problem, _strategy, _steps = (
    partial(option, group=group) for group in ("problem", "strategy", "steps")
)


@dataclass(frozen=True, kw_only=True)
class ClassicConfig:
    """One run of a classic problem. None stands for the problem's default."""

    data: str | None = _problem(
        None, "file of real data, in the problem's format", none="generated", is_path=True
    )
    terminals: str | None = _problem(
        None,
        "known labels of a graph's vertices, such as 0=0,33=1, or a file of VERTEX LABEL lines",
        requires={"problem": ("graph-cuts",), "data": ("file",)},
    )
    size: int | None = _problem(
        None,
        "size of generated data: examples, ratings, or the side of a grid",
        requires={"data": ("generated",)},
        low=2,
        none=_ITS_OWN,
    )
    lam: float | None = _problem(
        None, "L2 weight lambda of linear models", requires=_TEXT, low=0, none=_ITS_OWN
    )
    mu: float | None = _problem(
        None, "L2 weight mu of matrix completion", requires=_COMPLETION, low=0, none=_ITS_OWN
    )
    rank: int | None = _problem(
        None, "columns of the factors in matrix completion",
        requires=_COMPLETION, low=1, none=_ITS_OWN,
    )  # fmt: skip
    seed: int = _problem(
        0, "seed of the data, the initial values and the order of examples", low=0, high=MAX_SEED
    )
    workers: int | None = _strategy(
        None, "worker processes; auto is one per core", low=1, high=256, none="auto"
    )
    strategy: str = _strategy("hogwild", "how workers share the parameters", choices=STRATEGIES)
    write: str = _strategy(
        "auto",
        "how hogwild writes: racy may lose increments, lossless loses none, hot-cold keeps the "
        "most frequent coordinates private between merges; auto is the problem's recommendation",
        requires={"strategy": ("hogwild",)},
        choices=WRITES,
    )
    component_batch: int | None = _strategy(
        None,
        "cyclades: examples per conflict search; auto tries several sizes",
        requires={"strategy": ("cyclades",)},
        low=1,
        none="auto",
    )
    hot: int = _strategy(
        8192, "hot-cold: most frequent coordinates kept private",
        requires={"write": ("hot-cold",)}, low=1,
    )  # fmt: skip
    period: int = _strategy(
        256, "hot-cold: examples between two merges", requires={"write": ("hot-cold",)}, low=1
    )
    epochs: int | None = _steps(
        None, "epochs over the examples", low=1, high=100_000, none=_ITS_OWN
    )
    lr: float | None = _steps(None, "learning rate of the first epoch", above=0, none=_ITS_OWN)
    schedule: str = _steps(
        "geometric",
        "learning rate over the run: geometric multiplies it by beta after every epoch, backoff "
        "after stages that grow by 1/beta, and inverse is 1/k",
        choices=("geometric", *FALLING),
    )
    beta: float | None = _steps(
        None,
        "factor on the learning rate after every epoch, or after every stage of backoff (0.37)",
        requires={"schedule": ("geometric", "backoff")},
        above=0,
        high=1,
        none=_ITS_OWN,
    )
    backoff_epochs: int = _steps(
        1,
        "backoff: epochs at the first learning rate; inverse: epochs until it is halved",
        requires={"schedule": ("backoff", "inverse")},
        low=1,
    )
    batch_size: int | None = _steps(
        None, "examples whose mean gradient is one step", low=1, none=_ITS_OWN
    )
    sampling: str = _steps(
        "shuffle",
        "a fresh shuffle per epoch, or sampling with replacement",
        choices=("shuffle", "replacement"),
    )


def check(config: ClassicConfig, **facts: str) -> None:
    """Refuse options that have no effect in a run.

    Facts are the properties of the run that are known, such as `problem="svm"`.

    Raises:
        ConfigError: the message has the requirement that is not met.
    """
    for name, spec in options(ClassicConfig).items():
        for fact in spec.unmet(facts) if is_set(config, name) else ():
            raise ConfigError(
                f"{spec.flag} {getattr(config, name)} is for "
                f"{fact}={'|'.join(spec.requires[fact])}, and {fact} is {facts[fact]}; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class ClassicPlan:
    """One run that has passed every check, as the host and its workers have it."""

    strategy: str  # one of `STRATEGIES`
    kind: str  # of the native loop: "private", a write ("racy", "hot_cold", ...) or a strategy
    workers: int  # worker processes
    batch: int  # examples in a step
    epochs: int  # over the examples
    gamma: Callable[[int], float]  # learning rate of an epoch, counted from 1
    probe_every: int | None  # examples between two additions to the probe; None without a probe
    config: ClassicConfig  # the options
