"""Lock-free training judged: `mlxhog research analyze`, `advise` and `simulate`.

Here are their options. `hypergraph` has the quantities of the theory (Niu, Recht, Re, Wright 2011,
arXiv:1106.5730, section 2), `bounds` its theorems, `rules` the advice.
"""

from dataclasses import dataclass

from mlxhog.config.options import option

FEWEST = 12  # sampled gradients below which intervals are as wide as the range of their quantity
PROBE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """Options of `mlxhog research analyze` beside those of training: amounts of measurement."""

    samples: int = option(
        256, "gradients to sample, each of one batch", unit="gradients", low=FEWEST
    )
    batches: int = option(
        4096, "batches whose tokens are counted, without gradients", unit="batches", low=FEWEST
    )
    backend: str = option("auto", "computes the gradients; such as torch:cpu or mlx:cpu")
    time: float | None = option(
        None,
        f"length of the short lock-free run that shows staleness; auto is {PROBE_S:g} s, and 0 (no "
        "run) for a run of several workers, which has recorded its staleness",
        unit="s",
        low=0,
        none="auto",
    )


@dataclass(frozen=True, kw_only=True)
class AdviseConfig:
    """Options of `mlxhog research advise` beside those of training."""

    measure: float = option(
        4.0,
        "training time of each of the three short runs that are measured; up to 16 times as long "
        "if a worker takes fewer than eight steps in it",
        unit="s",
        above=0,
    )
    samples: int = option(24, "gradients whose conflicts and noise are measured", low=12)
    reproducible: bool = option(False, "only strategies that repeat bit for bit")
    heterogeneity: float | None = option(
        None,
        "if workers have data of their own: variance of the workers' mean gradients over that of a "
        "batch's gradient",
        low=0,
    )
