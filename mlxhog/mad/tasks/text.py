"""Language modeling: the task of suite `lm`, whose rows are a user's text.

The score of a run is the share of a byte's 8 bits that its model saves:

    score = 1 - bits per byte / 8        of validation text, 0 at least
"""

import math
from dataclasses import dataclass

from mlxhog.base.quantities import format_duration
from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.mad.tasks.task import Fixed, Rng, Rows, Task
from mlxhog.models.mad.config import VOCABULARY

TEXT_TASK = "language-modeling"
WORST_BITS = 8.0


@dataclass(frozen=True, kw_only=True)
class LanguageModeling(Task):
    """A short training on text, with a budget of time or tokens; it draws no rows."""

    name = TEXT_TASK
    short = "LM"
    about = "bits per byte of validation text after a short training"

    vocab: int = VOCABULARY
    seq_len: int = 256
    data: str = "sotu"  # as in `mlxhog train`
    time: float | None = option(None, "seconds of training", above=0)
    tokens: int | None = option(None, "tokens of training, instead of time", low=1)
    rung: int = 0  # of the study's rungs, from 0 on
    like: str = ""  # layers whose time per step the candidate's width should give it
    machine: str = ""  # description of the machine whose numbers count

    @property
    def budget(self) -> str:
        """The budget, for people."""
        return f"{self.tokens:,} tokens" if self.time is None else format_duration(self.time)

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Refuse: `mad.training.text` reads the text."""
        raise ConfigError("language-modeling has text and no rows; choose it by --suite lm:60s")


def score_of(bits_per_byte: float) -> float:
    """Return the score for bits per byte."""
    return max(0.0, 1.0 - bits_per_byte / WORST_BITS) if math.isfinite(bits_per_byte) else 0.0
