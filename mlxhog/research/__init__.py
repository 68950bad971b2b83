"""Lock-free training judged: `mlxhog research analyze`, `advise` and `simulate`.

Here are their options. `hypergraph` has the quantities of the theory (Niu, Recht, Re, Wright 2011,
arXiv:1106.5730, section 2), `bounds` its theorems, `rules` the advice.
"""

from dataclasses import dataclass

from mlxhog.config.options import option

MIN_SAMPLES = 12  # sampled gradients: below it, intervals span the range of their quantity
PROBE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """Options of `mlxhog research analyze` beside those of training: amounts of measurement."""

    samples: int = option(
        256, "gradients to sample, one per batch", unit="gradients", low=MIN_SAMPLES
    )
    batches: int = option(
        4096, "batches whose tokens are counted, without gradients", unit="batches", low=MIN_SAMPLES
    )
    backend: str = option("auto", "backend that computes gradients, such as torch:cpu or mlx:cpu")
    time: float | None = option(
        None,
        f"length of the short lock-free run that measures staleness; auto: {PROBE_S:g} s, or 0 (no "
        "run) if the run has recorded it",
        unit="s",
        low=0,
        none="auto",
    )


@dataclass(frozen=True, kw_only=True)
class AdviseConfig:
    """Options of `mlxhog research advise` beside those of training."""

    measure: float = option(
        4.0,
        "training time of each of the three measured runs; up to 16 times as long if a worker "
        "takes fewer than eight steps in it",
        unit="s",
        above=0,
    )
    samples: int = option(24, "gradients whose conflicts and noise are measured", low=12)
    reproducible: bool = option(False, "only strategies whose runs repeat bit for bit")
    heterogeneity: float | None = option(
        None,
        "for non-IID data: variance between the workers' mean gradients over that of a batch",
        low=0,
    )
