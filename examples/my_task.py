"""A task of one's own: read a few tokens and repeat them in reverse order.

    mlxhog mad train --plugin examples/my_task.py --task my_task --layers "mlstm swiglu"
    mlxhog mad data --plugin examples/my_task.py --task my_task --output rows.npz

With C tokens to repeat, a row is

    input      c1   ..  cC   | marker | blank  ..  blank        2 C + 1 tokens
    target    -100  .. -100  |  -100  |  cC    ..   c1          -100 is not scored

The file is executed wherever rows are drawn, here and in every worker process, so it only defines
things: the class is the task, an object of it the task with its settings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.mad.tasks import IGNORED
from mlxhog.mad.tasks.task import Fixed, Rng, Rows, Task


@dataclass(frozen=True, kw_only=True)
class Reverse(Task):
    """Content is 0 .. V-3, the blank V-2, the marker V-1; `--task-set vocab=8` changes a field."""

    name: ClassVar[str] = "my_task"
    short: ClassVar[str] = "MY"
    about: ClassVar[str] = "the first half in reverse order"

    seq_len: int = 17

    def broken_rules(self) -> Iterator[str]:
        """Yield what the settings must not be, with what they may be instead."""
        yield from self.at_least("vocab", 3, "content, a blank and a marker")
        yield from self.at_least("seq_len", 3, "it is 2 C + 1", step=2)

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows: inputs and targets, (n, seq_len) int32, from `rng` and nothing else."""
        C = self.seq_len // 2
        content = rng.integers(0, self.vocab - 2, (n, C), dtype=np.int32)
        x = np.full((n, self.seq_len), self.vocab - 2, np.int32)
        x[:, :C] = content
        x[:, C] = self.vocab - 1
        y = np.full((n, self.seq_len), IGNORED, np.int32)
        y[:, C + 1 :] = content[:, ::-1]
        return x, y
