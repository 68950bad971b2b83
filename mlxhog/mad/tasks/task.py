"""The interface of a task: its settings, and the drawing of its rows."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config import components as choices
from mlxhog.config.options import convert_fields, option
from mlxhog.errors import ConfigError

GENERATOR_VERSION = 1
"""Version of the package's generators; it changes with the rows of a seed."""

MAX_LENGTH = 2**20
"""Largest T, and largest V."""

Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]
Rows = tuple[Ints, Ints]
"""Inputs and targets, (n, length) each; a target is at the position of its prediction."""

Fixed = Mapping[str, Ints]
"""The common part of all rows of a data set, such as memorization's map."""

Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task with its settings; a task of the package or of a user's file is a class of this base.

    A field is a setting: an `option`, or a plain one such as `depth: int = 3`, without limits and
    help; of a setting of a base, such as `vocab: int = 32`, it is another default. The defaults are
    the baseline. Values are converted and checked at the creation.

    Raises:
        ConfigError: naming every broken rule, and the possible values.
    """

    registry: ClassVar[choices.Registry[Any]] = choices.TASKS
    takes_plain_fields: ClassVar[bool] = True
    name: ClassVar[str]  # full name
    short: ClassVar[str]  # name in tables
    about: ClassVar[str] = ""  # the tested skill, in a line
    backbone: ClassVar[str] = "language-model"  # of the model, one of `models.mad.config.BACKBONES`
    # learned in a sudden jump, late in a run; early steps do not rank candidates
    phase_transition: ClassVar[bool] = False

    vocab: int = option(
        16, "V, the size of the vocabulary", low=1, high=MAX_LENGTH, aliases=("vocab_size",)
    )
    seq_len: int = option(128, "T, the sequence length of the benchmark", low=1, high=MAX_LENGTH)
    train_rows: int = option(12_800, "training examples", low=1, aliases=("num_train",))
    test_rows: int = option(1_280, "test examples", low=1, aliases=("num_test",))
    val_rows: int = option(
        0, "validation examples, generated after the others", low=0, aliases=("num_val",)
    )

    def __post_init__(self) -> None:
        """Convert every value, then check the rules of the task."""
        problems = convert_fields(self) or [*self.broken_rules()]
        if problems:
            raise ConfigError("\n".join(f"{self.name}: {problem}" for problem in problems))

    @property
    def length(self) -> int:
        """Tokens of a row to train on; not always T."""
        return self.seq_len

    @property
    def test_length(self) -> int:
        """Tokens of a scored row."""
        return self.length

    def broken_rules(self) -> Iterator[str]:
        """Yield every broken rule of the task, with the possible values."""
        yield from ()

    def at_least(self, name: str, least: int, why: str, *, step: int = 1) -> Iterator[str]:
        """Yield a message if a setting is not `least`, or a multiple of `step` more."""
        value = getattr(self, name)
        if value < least or (value - least) % step:
            steps = f", in steps of {step}" if step > 1 else ""
            yield f"{name} is {value}; {why}: at least {least}{steps}"

    def draw_fixed(self, rng: Rng) -> Fixed:
        """Draw the common part of all rows; {} for none."""
        return {}

    @abstractmethod
    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows.

        Args:
            rng: of a block of rows.
            n: number of rows.
            train: training rows; test rows differ in some tasks.
            dense: every position of a next-token task has a target; else only the predictable
                ones. Inputs are the same in both cases.
            fixed: the common part of all rows.
        """


@dataclass(frozen=True, kw_only=True)
class Divided(Task):
    """A task whose V tokens are, in this order, R ordinary ones, N for noise, and special ones.

    The first K ordinary ones may be keys.
    """

    noise_vocab, frac_noise = 0, 0.0  # settings of a `NoisyTask` only

    @property
    def special(self) -> int:
        """Tokens at the end of the vocabulary, such as markers."""
        return 1

    @property
    def ordinary(self) -> int:
        """R, the number of ordinary tokens."""
        return self.vocab - self.noise_vocab - self.special

    @property
    def keys(self) -> int:
        """K, half of the ordinary tokens."""
        return self.ordinary // 2


@dataclass(frozen=True, kw_only=True)
class NoisyTask(Divided):
    """A task in which noise may replace a token or a pair."""

    noise_vocab: int = option(
        0, "N, the number of noise tokens among the V tokens", low=0, aliases=("noise_vocab_size",)
    )
    frac_noise: float = option(
        0.0, "probability of noise in place of a token or a pair", low=0, below=1
    )

    def broken_rules(self) -> Iterator[str]:
        if self.frac_noise > 0:
            yield from self.at_least("noise_vocab", 1, "noise needs tokens of its own")


@dataclass(frozen=True, kw_only=True)
class LongerTest(Task):
    """A task whose scored rows are longer than those to train on.

    V follows from other settings, see `tokens`.
    """

    vocab: int = option(
        0, "V, derived from the task; 0, or that number", low=0, aliases=("vocab_size",)
    )
    seq_len: int = 40
    test_length: int = option(
        2048, "tokens of a test sequence; accuracy is reported by length", low=1, high=MAX_LENGTH
    )
    test_rows: int = 64

    def __post_init__(self) -> None:
        """Convert and check every value, and set V."""
        super().__post_init__()
        object.__setattr__(self, "vocab", self.tokens)

    @property
    @abstractmethod
    def tokens(self) -> int:
        """V, the size of the vocabulary."""

    def broken_rules(self) -> Iterator[str]:
        if self.vocab not in (0, self.tokens):
            yield f"vocab is {self.vocab}, but the task has {self.tokens} tokens; leave it out"
        yield from self.at_least("test_length", self.seq_len, "the rows to train on are as long")
