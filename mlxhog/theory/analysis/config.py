"""The options of `mlxhog analyze` beside those of training."""

from dataclasses import dataclass

from mlxhog.config.options import option

FEWEST = 12
"""Samples below which intervals are as wide as what they are about."""

PROBE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """How much to look at."""

    samples: int = option(
        256, "gradients to sample, each of one batch", unit="gradients", low=FEWEST
    )
    batches: int = option(
        4096, "batches whose tokens are counted, without gradients", unit="batches", low=FEWEST
    )
    backend: str = option("auto", "who computes the gradients, such as torch:cpu or mlx:cpu")
    seconds: float | None = option(
        None,
        f"length of the short lock-free run that shows staleness; auto is {PROBE_S:g} s, and 0 (no "
        "run) where a run of several workers is analyzed, which recorded its own",
        unit="s",
        low=0,
        none="auto",
    )
