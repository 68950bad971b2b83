"""Options of `mlxhog classic`, and which of them a run has.

    scheme       promise
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

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mlxhog.config.options import option, to_flag
from mlxhog.config.schedules import FALLING
from mlxhog.errors import ConfigError

SCHEMES = ("hogwild", "aig", "round_robin", "sync", "cyclades", "serial")
WRITES = ("auto", "racy", "lossless", "hot-cold")
FILE, GENERATED = "--data FILE", "generated data"
TEXT = ("svm", "logistic", "least-squares")
LINEAR = (*TEXT, "linear-regression", "image-svm", "synthetic-svm")
COMPLETION, CUTS = "matrix-completion", "graph-cuts"

_ONLY = "mlxhog.classic.only"
_ITS_OWN = "the problem's"  # shown as the default of an option that is None


def _only(field: Any, **facts: tuple[str, ...] | str) -> Any:
    """An option that exists only in runs with these facts; see `check`."""
    return dataclasses.field(default=field.default, metadata={**field.metadata, _ONLY: facts})


@dataclass(frozen=True, kw_only=True)
class ClassicConfig:
    """One run of a classic problem. None stands for the problem's default."""

    data: str | None = _only(
        option(
            None, "file of real data, in the problem's format", group="problem", none="generated"
        ),
        problem=(*TEXT, "image-svm", COMPLETION, CUTS),
    )
    test_data: str | None = _only(
        option(
            None,
            "file of test data in the same format; the default is to hold out a part of --data",
            group="problem",
        ),
        problem=(*TEXT, "image-svm", COMPLETION),
        data=FILE,
    )
    labels: str | None = _only(
        option(
            None,
            "new label for each label in the files, such as 0=-1,1=+1",
            group="problem",
            none="unchanged",
        ),
        problem=TEXT,
        data=FILE,
    )
    terminals: str | None = _only(
        option(
            None,
            "known labels of a graph's vertices, such as 0=0,33=1, or a file of VERTEX LABEL lines",
            group="problem",
        ),
        problem=CUTS,
        data=FILE,
    )
    rating_range: str = _only(
        option("1,5", "lowest and highest legal rating", group="problem"),
        problem=COMPLETION,
        data=FILE,
    )
    size: int | None = _only(
        option(
            None,
            "size of generated data: examples, ratings, or the side of a grid",
            group="problem",
            low=2,
            none=_ITS_OWN,
        ),
        data=GENERATED,
    )
    lam: float | None = _only(
        option(None, "L2 weight lambda of linear models", group="problem", low=0, none=_ITS_OWN),
        problem=LINEAR,
    )
    mu: float | None = _only(
        option(None, "L2 weight mu of matrix completion", group="problem", low=0, none=_ITS_OWN),
        problem=COMPLETION,
    )
    rank: int | None = _only(
        option(
            None,
            "columns of the factors in matrix completion",
            group="problem",
            low=1,
            none=_ITS_OWN,
        ),
        problem=COMPLETION,
    )
    max_norm: float | None = _only(
        option(
            None,
            "limit on the norm of a factor's row in matrix completion; longer rows are scaled down "
            "after each step",
            group="problem",
            above=0,
            none="no limit",
        ),
        problem=COMPLETION,
    )
    active_rows: bool = _only(
        option(
            False,
            "apply weight decay only in examples that violate their margin, in proportion (svm)",
            group="problem",
        ),
        problem="svm",
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
    write: str = _only(
        option(
            "auto",
            "how hogwild adds: racy may lose increments, lossless loses none, hot-cold keeps the "
            "most frequent coordinates private between merges; auto is the problem's "
            "recommendation",
            group="scheme",
            choices=WRITES,
        ),
        scheme="hogwild",
    )
    component_batch: int | None = _only(
        option(
            None,
            "cyclades: examples per conflict search; auto tries several sizes",
            group="scheme",
            low=1,
            none="auto",
        ),
        scheme="cyclades",
    )
    hot: int = _only(
        option(8192, "hot-cold: most frequent coordinates kept private", group="scheme", low=1),
        write="hot-cold",
    )
    period: int = _only(
        option(256, "hot-cold: examples between two merges", group="scheme", low=1),
        write="hot-cold",
    )
    epochs: int | None = option(
        None, "passes over the examples", group="steps", low=1, high=100_000, none=_ITS_OWN
    )
    lr: float | None = option(
        None, "step size of the first epoch", group="steps", above=0, none=_ITS_OWN
    )
    schedule: str = option(
        "geometric",
        "step size over the run: geometric multiplies it by beta after every epoch, backoff after "
        "stages that grow by 1/beta, and inverse is 1/k",
        group="steps",
        choices=("geometric", *FALLING),
    )
    beta: float | None = _only(
        option(
            None,
            "factor on the step size after every epoch, or after every stage of backoff (0.37)",
            group="steps",
            above=0,
            high=1,
            none=_ITS_OWN,
        ),
        schedule=("geometric", "backoff"),
    )
    backoff_epochs: int = _only(
        option(
            1,
            "backoff: epochs with the first step size; inverse: epochs until the step size is "
            "halved",
            group="steps",
            low=1,
        ),
        schedule=FALLING,
    )
    batch_size: int | None = option(
        None, "examples whose mean gradient is one step", group="steps", low=1, none=_ITS_OWN
    )
    sampling: str = option(
        "shuffle",
        "a fresh shuffle per epoch, or draws with replacement",
        group="steps",
        choices=("shuffle", "replacement"),
    )


def check(config: ClassicConfig, **facts: str) -> None:
    """Refuse options that have no effect in a run.

    Args:
        config: the options.
        facts: properties of the run, such as `problem="svm"` or `write="racy"`. An option that is
            declared for other values of one of them must have its default.

    Raises:
        ConfigError: it has not; the message names the values that the option is for.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        for name, wanted in field.metadata.get(_ONLY, {}).items():
            legal = (wanted,) if isinstance(wanted, str) else wanted
            if name not in facts or facts[name] in legal:
                continue
            flag = f"{to_flag(name)} " if name in ("scheme", "write", "schedule") else ""
            raise ConfigError(
                f"{to_flag(field.name)} {value} is for {flag}{' or '.join(legal)}, "
                f"not {facts[name]}; leave it out"
            )
