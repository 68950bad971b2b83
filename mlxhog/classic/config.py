"""Options of `mlxhog classic`, its schemes by name, and the settings of one run.

    scheme       promise
    hogwild      nobody waits; `write` says what becomes of two increments at once
    aig          all touched rows are locked in ascending order, the gradient is computed outside
    round_robin  worker p applies the updates p, p + P, p + 2P, ...; reads are ordered, so the
                 result is the same in every run
    sync         P gradients at the same x, their mean applied once; the same in every run
    cyclades     examples without a coordinate in common, side by side: the result of serial
    avg_runs     every worker on a copy of its own; copies are averaged (MapReduce)
    serial       one worker, plain sequential SGD

With one worker each of them is serial, bit for bit.
Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxhog.config.contradictions import FALLING_SCHEDULES
from mlxhog.config.options import option, to_flag
from mlxhog.errors import ConfigError

if TYPE_CHECKING:  # NumPy, which reading options need not load
    from mlxhog.classic.problem import Defaults

SCHEMES = ("hogwild", "aig", "round_robin", "sync", "cyclades", "avg_runs", "serial")
WRITES = ("auto", "racy", "lossless", "hot-cold")

HANDOUTS = ("once", "epoch", "queue")
SAMPLINGS = ("shuffle", "replacement")
CLAIM_EXAMPLES = 256  # one claim costs about as much as ten examples
ITS_OWN = "the problem's"
"""Word for "as the problem has it", where an option is None."""


@dataclass(frozen=True, kw_only=True)
class ClassicConfig:
    """One run of a classic problem. None is the problem's own default."""

    data: str | None = option(
        None, "file of real data, in the problem's format", group="problem", none="generated"
    )
    test_data: str | None = option(
        None,
        "file of test data in the same format; without one a part of --data is held out",
        group="problem",
    )
    labels: str | None = option(
        None,
        "what the labels in the files become, such as 0=-1,1=+1",
        group="problem",
        none="as they are",
    )
    terminals: str | None = option(
        None,
        "known labels of a graph's vertices, such as 0=0,33=1, or a file of VERTEX LABEL lines",
        group="problem",
    )
    rating_range: str = option("1,5", "lowest and highest legal rating", group="problem")
    size: int | None = option(
        None,
        "how much to generate: examples, ratings, or the side of a grid",
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
        "longest row of a factor in matrix completion; longer ones are scaled down after each step",
        group="problem",
        above=0,
        none="any",
    )
    active_rows: bool = option(
        False,
        "shrink only in examples that violate their margin, in proportion (svm)",
        group="problem",
    )
    seed: int = option(
        0, "of data, initial values and order of examples", group="problem", low=0, high=2**32 - 1
    )
    workers: int | None = option(
        None, "processes; auto is one per core", group="scheme", low=1, high=256, none="auto"
    )
    scheme: str = option("hogwild", "who may write when", group="scheme", choices=SCHEMES)
    write: str = option(
        "auto",
        "how hogwild adds: racy may lose increments, lossless never, hot-cold keeps busy "
        "coordinates private for a while; auto is what suits the problem",
        group="scheme",
        choices=WRITES,
    )
    handout: str = option(
        "once",
        "how work is handed out: workers spawned once, for every epoch anew, or a shared queue of "
        "mini-batches",
        group="scheme",
        choices=HANDOUTS,
    )
    component_batch: int | None = option(
        None,
        "cyclades: examples whose conflicts are looked at together; auto tries some",
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
        "step size over the run: times beta after every epoch; times beta after stages that grow "
        "by 1/beta; or 1/k",
        group="steps",
        choices=("geometric", *FALLING_SCHEDULES),
    )
    beta: float | None = option(
        None,
        "factor on the step size after every epoch, or stage of backoff (0.37)",
        group="steps",
        above=0,
        high=1,
        none=ITS_OWN,
    )
    backoff_epochs: int = option(
        1,
        "backoff: epochs with the first step size; inverse: epochs until it is half",
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
        """Refuse options about files where there is no file.

        Raises:
            ConfigError: one of them has a value.
        """
        for name in names:
            if getattr(self, name) is not None:
                raise ConfigError(f"{to_flag(name)} is about files; name one with --data")

    def refuse_size(self) -> None:
        """Refuse a size where the data come from a file.

        Raises:
            ConfigError: `size` has a value.
        """
        if self.size is not None:
            raise ConfigError(f"--size {self.size} is for generated data; leave it out with --data")

    def refuse_data(self, problem: str, instead: str) -> None:
        """Refuse a file where a problem is its generator.

        Raises:
            ConfigError: `data` has a value.
        """
        if self.data is not None:
            raise ConfigError(f"{problem} has generated data only, no --data; {instead}")


@dataclass(frozen=True)
class Scheme:
    """A scheme as the session runs it.

    Attributes:
        name: of `SCHEMES`.
        kind: of the native loop: "private", "racy", "lossless", "hot_cold", "aig", "round_robin" or
            "sync".
        copies: whether every worker has its own copy of the parameters.
        needs_all: whether a worker that dies ends the run: the others wait for it, or the result
            would not be the scheme's.
        one_worker: whether it runs with one worker only.
    """

    name: str
    kind: str
    copies: bool = False
    needs_all: bool = True
    one_worker: bool = False


SERIAL = Scheme("serial", "private", one_worker=True)
_OTHERS = {
    "aig": Scheme("aig", "aig", needs_all=False),
    "round_robin": Scheme("round_robin", "round_robin"),
    "sync": Scheme("sync", "sync"),
    "cyclades": Scheme("cyclades", "private"),
    "avg_runs": Scheme("avg_runs", "private", copies=True),
    "serial": SERIAL,
}


def choose_scheme(name: str, write: str, defaults: Defaults) -> Scheme:
    """Return the scheme of that name.

    Args:
        name: of `SCHEMES`.
        write: of `WRITES`; "auto" is what the problem recommends.
        defaults: the problem's.

    Raises:
        ConfigError: the problem cannot be written like that, or the scheme leaves no choice.
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
    return Scheme("hogwild", write.replace("-", "_"), needs_all=False)


def check_options(config: ClassicConfig, scheme: Scheme) -> None:
    """Refuse options that have nothing to say about the scheme, or contradict it.

    Raises:
        ConfigError: there are such.
    """
    default = ClassicConfig()
    if config.handout == "queue" and scheme.kind in ("round_robin", "sync"):
        raise ConfigError(
            f"--handout queue is for schemes in which no worker waits for a turn; {scheme.name} "
            "deals turns in advance: leave --handout out"
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
        raise ConfigError("--beta 1 never backs off; give --schedule backoff one below 1")


def check_components(config: ClassicConfig, scheme: Scheme, batch: int) -> None:
    """Refuse what does not go with scheme cyclades.

    Args:
        config: of the run.
        scheme: that it names.
        batch: examples in a step.

    Raises:
        ConfigError: there is such.
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
            f"--handout {config.handout}, but cyclades deals out whole components; leave it out"
        )
    if batch != 1:
        raise ConfigError(
            f"steps of {batch} examples, but cyclades deals out single ones by their conflicts; "
            "add --batch-size 1"
        )


@dataclass(frozen=True)
class RunSettings:
    """What is decided of one run before it begins.

    Attributes:
        scheme: who may write when.
        workers: processes.
        handout: of `HANDOUTS`.
        average_at_end: schemes with copies: average once, not after every epoch.
        epochs: passes over the examples.
        lr: step size of the first epoch.
        batch: examples in a step.
        sampling: of `SAMPLINGS`.
        seed: of the order of examples.
        probe_every: examples between two additions to the probe that counts lost updates; None
            where nobody can lose one.
        hot: coordinates that hot-cold keeps private.
        period: examples between two merges of hot-cold.
        component_batch: examples whose conflicts cyclades looks at together; None tries some.
    """

    scheme: Scheme
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
        """Examples that a worker claims from the queue at a time; 0 where shares are dealt."""
        return claim_size(self.batch) if self.handout == "queue" else 0


def claim_size(batch: int) -> int:
    """Whole mini-batches of about `CLAIM_EXAMPLES` examples."""
    return batch * max(1, CLAIM_EXAMPLES // batch)
