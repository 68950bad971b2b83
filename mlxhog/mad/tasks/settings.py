"""What every task lets one set: sizes of the vocabulary, the sequence and the data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mlxhog.config.options import option, options
from mlxhog.errors import ConfigError

VOCAB_HELP = "V, number of tokens; ids are 0 .. V-1"
LENGTH_HELP = "T, the sequence length of the benchmark"
QUERY_HELP = "score every value whose key was seen before, not the last one alone"
NOISE_VOCAB_HELP = "N, how many of the V tokens are noise"
FRAC_NOISE_HELP = "probability that what could be asked for is replaced by noise"


def vocab(default: int) -> Any:  # a dataclass field
    """Declare V."""
    return option(default, VOCAB_HELP, low=1, high=2**20, aliases=("vocab_size",))


def seq_len(default: int) -> Any:  # a dataclass field
    """Declare T."""
    return option(default, LENGTH_HELP, low=1, high=2**20)


def noise_vocab(default: int) -> Any:  # a dataclass field
    """Declare N."""
    return option(default, NOISE_VOCAB_HELP, low=0, aliases=("noise_vocab_size",))


def frac_noise(default: float) -> Any:  # a dataclass field
    """Declare the share of noise."""
    return option(default, FRAC_NOISE_HELP, low=0, below=1)


def rows(default: int, of: str, alias: str, *, low: int = 1) -> Any:  # a dataclass field
    """Declare the number of rows of a split."""
    return option(default, f"rows for {of}", low=low, aliases=(alias,))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one task; converted and checked when the object is made.

    Raises:
        ConfigError: naming every broken rule at once, and the values that keep it.
    """

    task: ClassVar[str]

    vocab: int = vocab(16)
    seq_len: int = seq_len(128)
    train_rows: int = rows(12_800, "training", "num_train")
    test_rows: int = rows(1_280, "scoring", "num_test")
    val_rows: int = rows(0, "validation, drawn after the others", "num_val", low=0)

    def __post_init__(self) -> None:
        """Convert every value, then hold them against the rules of the task."""
        problems = []
        for name, spec in options(type(self)).items():
            try:
                object.__setattr__(self, name, spec.convert(getattr(self, name)))
            except ValueError as error:
                problems.append(f"{name} {error}")
        problems = problems or list(self.broken_rules())
        if problems:
            raise ConfigError("\n".join(f"{self.task}: {problem}" for problem in problems))

    @property
    def length(self) -> int:
        """Tokens of a row of the arrays, which is not always T."""
        return self.seq_len

    def broken_rules(self) -> Iterator[str]:
        """Say which rules of the task the values break; each with what would be allowed."""
        yield from ()


def too_small(name: str, value: int, why: str, least: int) -> Iterator[str]:
    """Say that a number is too small, if it is."""
    if value < least:
        yield f"{name} is {value}; {why}: at least {least}"


def noise_problems(share: float, noise_vocab: int) -> Iterator[str]:
    """Noise needs tokens of its own."""
    if share > 0 and noise_vocab == 0:
        yield (
            f"frac_noise is {share:g} and noise_vocab 0; noise needs tokens of its own: "
            "noise_vocab at least 1, or frac_noise 0"
        )
