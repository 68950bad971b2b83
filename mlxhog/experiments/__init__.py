"""Comparing ways to train: pairs of short runs, decided by a sequential test."""

from dataclasses import dataclass

from mlxhog.base.quantities import format_duration
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import MAX_SEED, option, options

ENDS = ("budget", "epochs and early stopping")
"""Groups of options of train that end a run; a comparison sets them by its terms."""

BUDGETS = {one.name: one.default for one in options(TrainConfig).values() if one.group in ENDS}


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Options of `mlxhog compare`; a comparison has one of the three budgets."""

    pairs: int = option(
        6, "maximum pairs of runs; fewer if the answer is clear earlier", low=2, high=20
    )
    time: float | None = option(
        None, "training time of each run; auto: 1m, unless both sides set a budget", unit="s",
        above=0, none="auto", excludes=("tokens", "steps"),
    )  # fmt: skip
    tokens: int | None = option(
        None, "tokens of each run, instead of time", unit="tokens", low=1, excludes=("steps",)
    )
    steps: int | None = option(None, "steps of each run, instead of time", unit="steps", low=1)
    val_subset_tokens: int = option(
        262_144, "validation tokens that every run is scored on", unit="tokens", low=1
    )
    seed: int = option(1, "seed of the first pair; others follow", low=0, high=MAX_SEED)
    folder: str | None = option(
        None, "folder of this comparison; auto: one in comparisons/", none="auto", is_path=True
    )
    runs_dir: str = option("runs", "folder that holds the runs A and B may name", is_path=True)

    @property
    def each(self) -> str:
        """The budget of a run, for people."""
        if self.time is not None:
            return format_duration(self.time)
        return f"{self.steps:,} steps" if self.steps is not None else f"{self.tokens:,} tokens"
