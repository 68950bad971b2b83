"""State tracking: the word problem of a group, a product of elements at every position.

    inputs    x_1, x_2, ...                 elements of G, uniform and independent
    targets   y_t = x_1 x_2 ... x_t         the running product, at every position

An element is a number below the order of G. Parity (Z2) and Z60 add modulo the order. S3, S5 and
A5 are the permutations in lexicographic order, and x y is y after x. A model with a fixed number of
layers whose states evolve by positive diagonal matrices tracks none of them at any length; A5 and
S5 are not solvable, which makes their word problem complete for NC1.

Rows to train on have `seq_len` elements, scored rows `test_length`: a state that is tracked and not
counted by position holds beyond the training length.

Source: Merrill, Petty, Sabharwal 2024, The Illusion of State in State-Space Models,
arXiv:2404.08819; Grazzi et al. 2024, arXiv:2411.12537, for lengths beyond those of training;
Siems et al. 2025, DeltaProduct, arXiv:2502.10297.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import option
from mlxhog.mad.tasks.task import Fixed, Ints, LongerTest, Rng, Rows

ORDERS = {"parity": 2, "Z60": 60, "S3": 6, "A5": 60, "S5": 120}
"""Group -> number of its elements."""


@cache
def product_table(group: str) -> NDArray[np.int32]:
    """Return the product of every two elements, (n, n) int32, [left, right]."""
    n = ORDERS[group]
    if group in ("parity", "Z60"):
        table = np.add.outer(np.arange(n), np.arange(n)) % n
    else:
        every = np.array(list(permutations(range(int(group[1])))))
        if group == "A5":
            every = every[[_is_even(one) for one in every]]
        digits = every.shape[1] ** np.arange(every.shape[1])
        number_of = np.zeros(every.shape[1] ** every.shape[1], np.int64)
        number_of[every @ digits] = np.arange(n)
        table = number_of[every[:, every] @ digits].T  # every[:, every] is [right, left]
    table = table.astype(np.int32)
    table.flags.writeable = False
    return table


def _is_even(permutation: Ints) -> bool:
    """Whether a permutation has an even number of inversions."""
    return int(np.triu(permutation[:, None] > permutation).sum()) % 2 == 0


@dataclass(frozen=True, kw_only=True)
class StateTracking(LongerTest):
    """The task; tokens are the elements of the group."""

    name: ClassVar[str] = "state-tracking"
    short: ClassVar[str] = "ST"
    about: ClassVar[str] = "the running product in a group, held beyond the training length"
    sudden: ClassVar[bool] = True

    group: str = option("S3", "the group of the elements", choices=tuple(ORDERS))

    @property
    def tokens(self) -> int:
        """Elements of the group."""
        return ORDERS[self.group]

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows; scored rows are longer."""
        length = self.seq_len if train else self.test_length
        x = rng.integers(0, self.tokens, (n, length), dtype=np.int32)
        return x, states(product_table(self.group), x)


def states(table: NDArray[np.int32], x: Ints) -> NDArray[np.int32]:
    """Return the states of an automaton after each token of rows (n, length).

    It begins at state 0, the identity of a group, and table[state, token] is its next state.
    """
    y = np.empty((x.shape[1], len(x)), np.int32)
    state = np.zeros(len(x), np.int32)
    for at, tokens in enumerate(np.ascontiguousarray(x.T)):
        state = y[at] = table[state, tokens]
    return y.T
