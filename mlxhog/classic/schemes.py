"""The schemes by name: who may write when, and the native loop that does it.

    scheme       promise
    hogwild      nobody waits; `write` says what becomes of two increments at once
    aig          all touched rows are locked in ascending order, the gradient is computed outside
    round_robin  worker p applies the updates p, p + P, p + 2P, ...; reads are ordered, so the
                 result is the same in every run
    sync         P gradients at the same x, their mean applied once; the same in every run
    avg_runs     every worker on a copy of its own; copies are averaged (MapReduce)
    serial       one worker, plain sequential SGD

With one worker each of them is serial, bit for bit.
Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxhog.errors import ConfigError

if TYPE_CHECKING:  # NumPy, which reading options need not load
    from mlxhog.classic.problem import Defaults

NAMES = ("hogwild", "aig", "round_robin", "sync", "avg_runs", "serial")
WRITES = ("auto", "racy", "lossless", "hot-cold")


@dataclass(frozen=True)
class Scheme:
    """A scheme as the session runs it.

    Attributes:
        name: of `NAMES`.
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
    "avg_runs": Scheme("avg_runs", "private", copies=True),
    "serial": SERIAL,
}


def choose(name: str, write: str, defaults: Defaults) -> Scheme:
    """Return the scheme of that name.

    Args:
        name: of `NAMES`.
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
