"""`mlxhog advise`: which strategy for this model on this machine, and why.

profile     the workload: times, a round's cost, conflict, noise, heterogeneity
rules       strategies and their schemes in the simulator; the table of rules that chooses one, with
            reasons; a prediction of every strategy
advise      the command: a profile in half a minute, a choice, a trial in pairs
"""

from dataclasses import dataclass

from mlxhog.config.options import option


@dataclass(frozen=True, kw_only=True)
class AdviseConfig:
    """Options of `mlxhog advise` beside those of training."""

    measure: float = option(
        4.0,
        "training time of each of the three short runs that are measured; up to 16 times as long "
        "if a worker takes fewer than eight steps in it",
        unit="s",
        above=0,
    )
    samples: int = option(24, "gradients whose conflicts and noise are measured", low=12)
    try_time: float = option(
        60.0,
        "training time of each of the two best, in pairs of runs",
        unit="s",
        above=0,
        aliases=("try",),
    )
    reproducible: bool = option(False, "only strategies that repeat bit for bit")
    heterogeneity: float | None = option(
        None,
        "if workers have data of their own: variance of the workers' mean gradients over that of a "
        "batch's gradient",
        low=0,
    )
