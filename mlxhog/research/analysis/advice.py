"""The staleness of a run, the facts of a model that was measured, and the advice that follows.

With P workers that always have a gradient in flight the mean staleness is P - 1 at any speeds: each
update falls between the read and the write of the P - 1 others. Its largest value has no limit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from mlxhog.arena.layout import PROBE_FLOATS
from mlxhog.base import typed
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import TrainConfig
from mlxhog.display.views import Tell
from mlxhog.errors import ConfigError
from mlxhog.experiments.short_runs import PLAIN, run_shortly
from mlxhog.progress import Progress
from mlxhog.research.analysis.conflicts import BlockConflicts
from mlxhog.research.analysis.sampling import StaleGradient
from mlxhog.research.bounds import Bound
from mlxhog.research.rules import OFTEN, TRAINING_RULES, decide
from mlxhog.research.simulator import Staleness
from mlxhog.strategies import Hogwild

# -- staleness -----------------------------------------------------------------------------------

_MAX_STEPS = 1 << 48  # of a run; a stranger's run may say more
MIN_STEPS = 20  # of a worker of a command, below which its staleness says little of the run's
ObservedStaleness = dict[str, Any]
"""A run's `source` ("run" or "probe"), `workers` (their number) and `write` option; the
distribution over `all` steps and `by_worker`, as of `Staleness`; the `histogram`, staleness ->
steps; and the `lost_update_rate` of the counted `increments`, None if it was not measured."""


def probe_run(
    config: TrainConfig, *, workers: str, seconds: float, tell: Tell
) -> ObservedStaleness:
    """Train for a few seconds without locks in a temporary folder, and return the staleness.

    The run writes without locks (`write: racy`) and evaluates nothing. Stragglers are those of the
    configuration if the workers are.
    """
    own, most = config.strategy, config.max_workers
    chosen = {
        **PLAIN,
        "strategy": own.lock_free() if isinstance(own, Hogwild) else Hogwild(),
        "workers": workers,
        "overlap": config.overlap,
        "max_workers": None if most is None else max(2, most),
        "write": "racy",
        "gpu_write": "cpu",
        "inject_stragglers": config.inject_stragglers if workers == config.workers else None,
    }
    result, _ = run_shortly(config, tell, seconds=seconds, min_steps=1, flag="--time", **chosen)
    return _summary("probe", asdict(result), "racy")


def of_run(run: Run, write: str) -> ObservedStaleness | None:
    """Read the staleness of the newest command that trained a run.

    None if its workers took fewer than `MIN_STEPS` each on average.
    """
    lines = [line for line in run.read_metrics() if line.get("step")]
    if not lines:
        return None
    newest = _summary("run", asdict(typed.fill(Progress, lines[-1])), write)
    return newest if newest["all"]["steps"] >= MIN_STEPS * max(1, newest["workers"]) else None


def _summary(source: str, line: Mapping[str, Any], write: str) -> ObservedStaleness:
    def histogram(of: Mapping[str, Any]) -> dict[int, int]:
        counts = sorted(of["staleness"].items())
        return {tau: steps for tau, steps in counts if tau >= 0 and 0 <= steps < _MAX_STEPS}

    workers, overall = line["workers"], Staleness.of("all", histogram(line))
    named = {f"{one['slot']} {one['backend']}": histogram(one) for one in workers}
    most = max([overall.max, *(one["max_staleness"] for one in workers)])
    return {
        "source": source,
        "workers": len(workers),
        "write": write,
        "all": {**asdict(overall), "max": most},
        "histogram": histogram(line),
        "lost_update_rate": line["lost_update_rate"],
        "increments": overall.steps * PROBE_FLOATS,  # a step adds 1 to each
        "by_worker": [asdict(Staleness.of(name, of)) for name, of in named.items() if of],
    }


# -- advice --------------------------------------------------------------------------------------


class RunStaleness(NamedTuple):
    """The staleness that the bounds are evaluated at, in updates.

    Without a run it is that of P workers that are equal and never idle: P - 1.
    """

    mean: float
    largest: float
    measured: bool  # by a run


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The measurements of a model and its training that advice depends on."""

    config: TrainConfig  # of the training
    write: str  # as the option of that name
    cores: int  # of this machine
    trained: bool  # whether the parameters come from a checkpoint
    blocks: Sequence[BlockConflicts]  # measured conflicts
    staleness: RunStaleness
    observed: ObservedStaleness | None  # the staleness of a run; None without a run
    stale_gradients: Sequence[StaleGradient]  # by delay
    bounds: Sequence[Bound]  # the theorems, applied

    @property
    def dense_share(self) -> float:
        """The share of the parameters in blocks in which most pairs of updates overlap."""
        total = sum(one.parameters for one in self.blocks)
        return sum(one.parameters for one in self.blocks if one.p_conf > OFTEN) / total

    @cached_property
    def strictest(self) -> Bound:
        """The bound tau <= n / (2 Dbar) of the block where it is least."""
        each = (one for one in self.bounds if one["name"] == "perturbed iterate")
        return min(each, key=lambda one: float(one["values"]["largest_tau"]))

    @property
    def allowed(self) -> float:
        """The largest staleness at which conflicts cost nothing, in the strictest block."""
        return float(self.strictest["values"]["largest_tau"])

    @property
    def lock_free(self) -> Hogwild | None:
        """The strategy, if its workers are lock-free and their gradients stale."""
        strategy = self.config.strategy
        return strategy if isinstance(strategy, Hogwild) and self.staleness.mean > 0 else None

    @property
    def stale(self) -> StaleGradient | None:
        """The measurement at the typical staleness; None if there is none."""
        typical, measured = max(1.0, self.staleness.mean), self.stale_gradients
        last = measured[-1] if measured else None
        return next((one for one in measured if one.delay >= typical), last)

    @property
    def stale_cosine(self) -> float | None:
        """Cosine of a typically stale gradient and a fresh one; None if a sync start is no help."""
        begun = self.lock_free is not None and self.lock_free.async_after > 0
        return (
            None if self.stale is None or self.staleness.mean == 0 or begun else self.stale.cosine
        )


def advise(facts: Analysis) -> Iterator[dict[str, str]]:
    """Yield `topic`, `recommend`, `because` and `flags` of `mlxhog train` of each topic.

    The flags are "" for no change, and where the other options do not take them.
    """
    for rule in decide(TRAINING_RULES, facts):
        recommend, flags = rule.answer(facts)
        yield {
            "topic": rule.topic,
            "recommend": recommend,
            "because": rule.because(facts),
            "flags": flags if _fits(facts.config, flags) else "",
        }


def _fits(config: TrainConfig, flags: str) -> bool:
    """Whether the configuration takes these flags, too."""
    words = flags.replace("--", "").split()
    added: dict[str, Any] = {
        flag.replace("-", "_"): value for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    try:
        replace(config, **added)
    except ConfigError:
        return False
    return True
