"""Selective copying: repeat the first tokens in order, without the blanks between them.

    head: C content tokens, B = T - 2C - 1 blanks before them | marker | C blanks

Every blank is directly before a random one of the C tokens, so the head ends with content. The
reference draws the blanks from a generator shared with other draws; here they come from the task's
stream.

Source: Poli et al. 2024, arXiv:2403.17844.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.config.options import option
from mlxhog.mad.tasks.task import IGNORED, Fixed, Rng, Rows, Task


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """The task; content is 0 .. V-3, the blank V-2, the copy marker V-1."""

    name: ClassVar[str] = "selective-copying"
    short: ClassVar[str] = "SC"
    about: ClassVar[str] = "the first tokens in order, without the blanks between them"

    seq_len: int = 256
    tokens_to_copy: int = option(
        16, "C, tokens to copy", low=1, aliases=("num_tokens_to_copy", "copy")
    )

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
        yield from self.at_least("vocab", 3, "content, a blank and the copy marker")
        why = f"{self.tokens_to_copy} tokens, as many answers, the marker and a blank"
        yield from self.at_least("seq_len", 2 * self.tokens_to_copy + 2, why)

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows; training and test rows are of one kind."""
        T, C = self.seq_len, self.tokens_to_copy
        content = rng.integers(0, self.vocab - 2, (n, C), dtype=np.int32)
        before = rng.multinomial(T - 2 * C - 1, np.full(C, 1 / C), size=n)
        x = np.full((n, T), self.vocab - 2, np.int32)
        x[np.arange(n)[:, None], np.cumsum(before, axis=1) + np.arange(C)] = content
        x[:, T - C - 1] = self.vocab - 1
        y = np.full((n, T), IGNORED, np.int32)
        y[:, T - C :] = content
        return x, y
