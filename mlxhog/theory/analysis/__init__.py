"""`mlxhog analyze`: a real model's conflicts and staleness, the theorems' bounds, advice.

In this order:

sampling    blocks of a model; gradients of sampled batches, in a process of their own
written     the steps that an optimizer writes for them
conflicts   Omega, rho, Delta, p_conf of every block; rows of the embedding and of tables
staleness   updates by others between read and write, of a run or a short one
advice      a table of rules that recommends from the measurements
analyze     makes the measurements, with a short lock-free run
"""

from dataclasses import dataclass

from mlxhog.config.options import option

FEWEST = 12
"""Samples below which intervals are as wide as the range of their quantity."""

PROBE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """Options of `mlxhog analyze` beside those of training: amounts of measurement."""

    samples: int = option(
        256, "gradients to sample, each of one batch", unit="gradients", low=FEWEST
    )
    batches: int = option(
        4096, "batches whose tokens are counted, without gradients", unit="batches", low=FEWEST
    )
    backend: str = option("auto", "computes the gradients; such as torch:cpu or mlx:cpu")
    seconds: float | None = option(
        None,
        f"length of the short lock-free run that shows staleness; auto is {PROBE_S:g} s, and 0 (no "
        "run) for a run of several workers, which has recorded its staleness",
        unit="s",
        low=0,
        none="auto",
    )
