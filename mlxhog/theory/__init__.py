"""Conditions of lock-free training: measured sparsity and conflict, and bounds.

    hypergraph  Omega, Delta, rho and conflict of a whole data set, exactly
    supports    the same quantities from sampled gradients, with intervals
    bounds      the theorems' bounds, and whether they apply
    rules       the one engine of rules, before and after a run
    target      the model that a command-line argument names
    short_runs  trainings of some seconds that measure

`analysis/` puts them together for a real model (`mlxhog analyze`). `simulator/` predicts speed and
staleness of strategies (`mlxhog simulate`); `advisor/` recommends one (`mlxhog advise`).

`mlxhog compare` finds the better of two trainings: `pairs` trains and keeps them, `paired_test`
decides.

Source of the quantities: Niu, Recht, Re, Wright 2011, arXiv:1106.5730, section 2.
"""

from dataclasses import dataclass

from mlxhog.base.quantities import format_duration
from mlxhog.config.options import option


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Options of `mlxhog compare`; a comparison has one of the three budgets."""

    pairs: int = option(
        6, "most pairs of runs; fewer if the answer is clear earlier", low=2, high=20
    )
    time: float | None = option(
        None, "training time of each run; 1m where neither side says another budget", unit="s",
        above=0, none="auto", excludes=("tokens", "steps"),
    )  # fmt: skip
    tokens: int | None = option(
        None, "tokens of each run, in place of time", unit="tokens", low=1, excludes=("steps",)
    )
    steps: int | None = option(None, "steps of each run, in place of time", unit="steps", low=1)
    eval_tokens: int = option(
        262_144, "held-out text that every run is scored on", unit="tokens", low=1
    )
    seed: int = option(1, "seed of the first pair; others follow", low=0, high=2**32 - 1)
    folder: str | None = option(
        None, "folder of this comparison; auto is one in comparisons/", none="auto"
    )
    out: str = option("runs", "folder that holds the runs A and B may name")

    @property
    def each(self) -> str:
        """The budget of a run, for people."""
        if self.time is not None:
            return format_duration(self.time)
        return f"{self.steps:,} steps" if self.steps is not None else f"{self.tokens:,} tokens"
