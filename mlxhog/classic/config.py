"""Options of `mlxhog classic`, its schemes by name, and the settings of one run.

    scheme       promise
    hogwild      no worker waits; `write` decides whether simultaneous increments can be lost
    aig          an update locks its rows in ascending order; the gradient is computed without locks
    round_robin  worker p applies the updates p, p + P, p + 2P, ...; reads are ordered, so the
                 result is the same in every run
    sync         P gradients at the same x, their mean applied once; the same in every run
    cyclades     workers take examples without a common coordinate: the result of serial
    avg_runs     every worker trains its own copy; the copies are averaged (MapReduce)
    serial       one worker, plain sequential SGD

With one worker each of them is serial, bit for bit.
Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxhog.config.options import option, to_flag
from mlxhog.config.schedules import FALLING
from mlxhog.errors import ConfigError

if TYPE_CHECKING:  # NumPy, which reading options need not load
    from mlxhog.classic.problem import Defaults

SCHEMES = ("hogwild", "aig", "round_robin", "sync", "cyclades", "avg_runs", "serial")
WRITES = ("auto", "racy", "lossless", "hot-cold")

HANDOUTS = ("once", "epoch", "queue")
SAMPLINGS = ("shuffle", "replacement")
CLAIM_EXAMPLES = 256  # one claim costs about as much as ten examples
ITS_OWN = "the problem's"
"""Shown as the default of an option that is None: the problem's default applies."""


@dataclass(frozen=True, kw_only=True)
class ClassicConfig:
    """One run of a classic problem. None stands for the problem's default."""

    data: str | None = option(
        None, "file of real data, in the problem's format", group="problem", none="generated"
    )
    test_data: str | None = option(
        None,
        "file of test data in the same format; the default is to hold out a part of --data",
        group="problem",
    )
    labels: str | None = option(
        None,
        "new label for each label in the files, such as 0=-1,1=+1",
        group="problem",
        none="unchanged",
    )
    terminals: str | None = option(
        None,
        "known labels of a graph's vertices, such as 0=0,33=1, or a file of VERTEX LABEL lines",
        group="problem",
    )
    rating_range: str = option("1,5", "lowest and highest legal rating", group="problem")
    size: int | None = option(
        None,
        "size of generated data: examples, ratings, or the side of a grid",
        group="problem",
        low=2,
        none=ITS_OWN,
    )
    lam: float | None = option(
        None, "L2 weight lambda of linear models", group="problem", low=0, none=ITS_OWN
    )
    mu: float | None = option(
        None, "L2 weight mu of matrix completion", group="problem", low=0, none=ITS_OWN
    )
    rank: int | None = option(
        None, "columns of the factors in matrix completion", group="problem", low=1, none=ITS_OWN
    )
    max_norm: float | None = option(
        None,
        "limit on the norm of a factor's row in matrix completion; longer rows are scaled down "
        "after each step",
        group="problem",
        above=0,
        none="no limit",
    )
    active_rows: bool = option(
        False,
        "apply weight decay only in examples that violate their margin, in proportion (svm)",
        group="problem",
    )
    seed: int = option(
        0,
        "seed of the data, the initial values and the order of examples",
        group="problem",
        low=0,
        high=2**32 - 1,
    )
    workers: int | None = option(
        None, "worker processes; auto is one per core", group="scheme", low=1, high=256, none="auto"
    )
    scheme: str = option(
        "hogwild", "how workers share the parameters", group="scheme", choices=SCHEMES
    )
    write: str = option(
        "auto",
        "how hogwild adds: racy may lose increments, lossless loses none, hot-cold keeps the most "
        "frequent coordinates private between merges; auto is the problem's recommendation",
        group="scheme",
        choices=WRITES,
    )
    handout: str = option(
        "once",
        "how work is assigned: to workers spawned once, to workers spawned for every epoch, or "
        "from a shared queue of mini-batches",
        group="scheme",
        choices=HANDOUTS,
    )
    component_batch: int | None = option(
        None,
        "cyclades: examples per conflict search; auto tries several sizes",
        group="scheme",
        low=1,
        none="auto",
    )
    average: str = option(
        "epoch",
        "avg_runs: when the copies are averaged",
        group="scheme",
        choices=("epoch", "end"),
    )
    hot: int = option(
        8192, "hot-cold: most frequent coordinates kept private", group="scheme", low=1
    )
    period: int = option(256, "hot-cold: examples between two merges", group="scheme", low=1)
    epochs: int | None = option(
        None, "passes over the examples", group="steps", low=1, high=100_000, none=ITS_OWN
    )
    lr: float | None = option(
        None, "step size of the first epoch", group="steps", above=0, none=ITS_OWN
    )
    schedule: str = option(
        "geometric",
        "step size over the run: geometric multiplies it by beta after every epoch, backoff after "
        "stages that grow by 1/beta, and inverse is 1/k",
        group="steps",
        choices=("geometric", *FALLING),
    )
    beta: float | None = option(
        None,
        "factor on the step size after every epoch, or after every stage of backoff (0.37)",
        group="steps",
        above=0,
        high=1,
        none=ITS_OWN,
    )
    backoff_epochs: int = option(
        1,
        "backoff: epochs with the first step size; inverse: epochs until the step size is halved",
        group="steps",
        low=1,
    )
    batch_size: int | None = option(
        None, "examples whose mean gradient is one step", group="steps", low=1, none=ITS_OWN
    )
    sampling: str = option(
        "shuffle",
        "a fresh shuffle per epoch, or draws with replacement",
        group="steps",
        choices=SAMPLINGS,
    )

    def refuse_file_options(self, *names: str) -> None:
        """Refuse options about files if the run has no file.

        Raises:
            ConfigError: one of these options has a value.
        """
        for name in names:
            if getattr(self, name) is not None:
                raise ConfigError(f"{to_flag(name)} is about files; name one with --data")

    def refuse_size(self) -> None:
        """Refuse a size if the data come from a file.

        Raises:
            ConfigError: `size` has a value.
        """
        if self.size is not None:
            raise ConfigError(f"--size {self.size} is for generated data; leave it out with --data")

    def refuse_data(self, problem: str, instead: str) -> None:
        """Refuse a file for a problem that has generated data only.

        Raises:
            ConfigError: `data` has a value.
        """
        if self.data is not None:
            raise ConfigError(f"{problem} has generated data only, no --data; {instead}")


@dataclass(frozen=True)
class RunScheme:
    """How a session runs a scheme.

    Attributes:
        name: one of `SCHEMES`.
        kind: the native loop: "private", "racy", "lossless", "hot_cold", "aig", "round_robin" or
            "sync".
        copies: whether every worker has its own copy of the parameters.
        needs_all: whether the death of a worker ends the run: either the others wait for it, or the
            result would not be the scheme's.
        one_worker: whether the scheme runs with one worker only.
    """

    name: str
    kind: str
    copies: bool = False
    needs_all: bool = True
    one_worker: bool = False


SERIAL = RunScheme("serial", "private", one_worker=True)
_OTHERS = {
    "aig": RunScheme("aig", "aig", needs_all=False),
    "round_robin": RunScheme("round_robin", "round_robin"),
    "sync": RunScheme("sync", "sync"),
    "cyclades": RunScheme("cyclades", "private"),
    "avg_runs": RunScheme("avg_runs", "private", copies=True),
    "serial": SERIAL,
}


def choose_scheme(name: str, write: str, defaults: Defaults) -> RunScheme:
    """Return the scheme with this name.

    Args:
        name: one of `SCHEMES`.
        write: one of `WRITES`; "auto" is the problem's recommendation.
        defaults: the problem's defaults.

    Raises:
        ConfigError: the problem does not support `write`, or the scheme has one way to write only.
    """
    if name != "hogwild":
        if write != "auto":
            raise ConfigError(
                f"--write {write} is for --scheme hogwild; {name} has one way to write, so leave "
                "--write out"
            )
        return _OTHERS[name]
    write = defaults.writes[0] if write == "auto" else write
    if write not in defaults.writes:
        raise ConfigError(
            f"this problem has no --write {write}; it has {' and '.join(defaults.writes)}"
        )
    return RunScheme("hogwild", write.replace("-", "_"), needs_all=False)


def check_options(config: ClassicConfig, scheme: RunScheme) -> None:
    """Refuse options that have no effect on the scheme, or contradict it.

    Raises:
        ConfigError: an option has no effect, or contradicts the scheme.
    """
    default = ClassicConfig()
    if config.handout == "queue" and scheme.kind in ("round_robin", "sync"):
        raise ConfigError(
            f"--handout queue is for schemes in which no worker waits for its turn; {scheme.name} "
            "assigns turns in advance: leave --handout out"
        )
    if config.average != default.average and not scheme.copies:
        raise ConfigError(f"--average {config.average} is for --scheme avg_runs, not {scheme.name}")
    for flag, value, usual in (
        ("--hot", config.hot, default.hot),
        ("--period", config.period, default.period),
    ):
        if value != usual and scheme.kind != "hot_cold":
            raise ConfigError(f"{flag} {value} is for --write hot-cold; leave it out")
    if config.schedule == "geometric" and config.backoff_epochs != default.backoff_epochs:
        raise ConfigError(
            f"--backoff-epochs {config.backoff_epochs} is for --schedule backoff or inverse; leave "
            "it out"
        )
    if config.schedule == "inverse" and config.beta is not None:
        raise ConfigError(f"--schedule inverse has no --beta {config.beta:g}; leave it out")
    if config.schedule == "backoff" and config.beta == 1:
        raise ConfigError("--schedule backoff with --beta 1 never backs off; give a --beta below 1")


def check_components(config: ClassicConfig, scheme: RunScheme, batch: int) -> None:
    """Refuse options that contradict scheme cyclades, or are for it alone.

    Args:
        config: the options of the run.
        scheme: the scheme that they choose.
        batch: examples in a step.

    Raises:
        ConfigError: an option does not fit the scheme.
    """
    if scheme.name != "cyclades":
        if config.component_batch is not None:
            raise ConfigError(
                f"--component-batch {config.component_batch} is for --scheme cyclades, not "
                f"{scheme.name}; leave it out"
            )
        return
    if config.handout != "once":
        raise ConfigError(
            f"--handout {config.handout}, but cyclades assigns whole components; leave it out"
        )
    if batch != 1:
        raise ConfigError(
            f"steps of {batch} examples, but cyclades assigns single examples by their conflicts; "
            "add --batch-size 1"
        )


@dataclass(frozen=True)
class RunSettings:
    """The settings of one run, fixed before it begins.

    Attributes:
        scheme: how workers share the parameters.
        workers: worker processes.
        handout: one of `HANDOUTS`.
        average_at_end: schemes with copies: average once, not after every epoch.
        epochs: passes over the examples.
        lr: step size of the first epoch.
        batch: examples in a step.
        sampling: one of `SAMPLINGS`.
        seed: seed of the order of examples.
        probe_every: examples between two additions to the probe that counts lost updates; None
            if the scheme cannot lose any.
        hot: coordinates that hot-cold keeps private.
        period: examples between two merges of hot-cold.
        component_batch: examples per conflict search of cyclades; None tries several sizes.
    """

    scheme: RunScheme
    workers: int
    handout: str
    average_at_end: bool
    epochs: int
    lr: float
    batch: int
    sampling: str
    seed: int
    probe_every: int | None
    hot: int
    period: int
    component_batch: int | None = None

    @property
    def claim(self) -> int:
        """Examples that a worker claims from the queue at a time; 0 without a queue."""
        return claim_size(self.batch) if self.handout == "queue" else 0


def claim_size(batch: int) -> int:
    """Size of a claim: whole mini-batches, about `CLAIM_EXAMPLES` examples together."""
    return batch * max(1, CLAIM_EXAMPLES // batch)
