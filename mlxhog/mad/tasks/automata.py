"""Tasks whose target is a state of an automaton: of a group, of nested brackets, of a grammar."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.mad.tasks.task import Bools, Fixed, Ints, LongerTest, Rng, Rows, Task

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
        if group == "A5":  # an even number of inversions
            every = every[[np.triu(one[:, None] > one).sum() % 2 == 0 for one in every]]
        digits = every.shape[1] ** np.arange(every.shape[1])
        number_of = np.zeros(every.shape[1] ** every.shape[1], np.int64)
        number_of[every @ digits] = np.arange(n)
        table = number_of[every[:, every] @ digits].T  # every[:, every] is [right, left]
    table = table.astype(np.int32)
    table.flags.writeable = False
    return table


@dataclass(frozen=True, kw_only=True)
class StateTracking(LongerTest):
    """State tracking: the word problem of a group, a product of elements at every position.

        inputs    x_1, x_2, ...                 elements of G, uniform and independent
        targets   y_t = x_1 x_2 ... x_t         the running product, at every position

    An element is a number below the order of G. Parity (Z2) and Z60 add modulo the order. S3, S5
    and A5 are the permutations in lexicographic order, and x y is y after x. A model with a fixed
    number of layers whose states evolve by positive diagonal matrices tracks none of them at any
    length; A5 and S5 are not solvable, which makes their word problem complete for NC1.

    Rows to train on have `seq_len` elements, scored rows `test_length`: a state that is tracked and
    not counted by position holds beyond the training length.

    Tokens are the elements of the group.

    Source: Merrill, Petty, Sabharwal 2024, The Illusion of State in State-Space Models,
    arXiv:2404.08819; Grazzi et al. 2024, arXiv:2411.12537, for lengths beyond those of training;
    Siems et al. 2025, DeltaProduct, arXiv:2502.10297.
    """

    name: ClassVar[str] = "state-tracking"
    short: ClassVar[str] = "ST"
    about: ClassVar[str] = "the running product in a group, held beyond the training length"
    phase_transition: ClassVar[bool] = True

    group: str = option("S3", "the group of the elements", choices=tuple(ORDERS))

    @property
    def tokens(self) -> int:
        """Elements of the group."""
        return ORDERS[self.group]

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
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


@dataclass(frozen=True, kw_only=True)
class Dyck(LongerTest):
    """Dyck: brackets of k kinds, nested at most m deep; predict the one bracket that may close.

        inputs    an opening bracket 0 .. k-1, or the closing one of the last open one, k .. 2k-1
        targets   the bracket that closes the last open one, or the end 2k where every one is closed

    A row is a prefix of a word without end: at depth 0 a bracket opens, at depth m one closes,
    between them either has probability 1/2; the kind is uniform. So the depth is a walk between two
    walls, and the target at every position is the top of a stack of at most m brackets, a finite
    state that has to be held over any distance.

    Rows to train on have `seq_len` brackets, scored rows `test_length`.

    Opening brackets are 0 .. k-1, closing ones k .. 2k-1, the end is 2k.

    Source: Hewitt et al. 2020, RNNs can generate bounded hierarchical languages with optimal
    memory, arXiv:2010.07515, for k and m; Suzgun et al. 2019, arXiv:1911.03329, for the prediction
    of the possible next brackets at every position.
    """

    name: ClassVar[str] = "dyck"
    short: ClassVar[str] = "Dyck"
    about: ClassVar[str] = "the bracket that may close, held beyond the training length"

    kinds: int = option(4, "k, kinds of brackets", low=1, high=2**19)
    depth: int = option(4, "m, maximum nesting depth", low=1, high=2**10)

    @property
    def tokens(self) -> int:
        """Two brackets of every kind, and the end."""
        return 2 * self.kinds + 1

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        length = self.seq_len if train else self.test_length
        m = self.depth
        walk = np.arange(m + 1, dtype=np.int32)[:, None] + np.array([-1, 1], np.int32)
        walk[0], walk[m] = 1, m - 1
        depth = states(walk, rng.integers(0, 2, (n, length), dtype=np.int8))
        opens = np.diff(depth, axis=1, prepend=0) > 0
        kind = rng.integers(0, self.kinds, (n, length), dtype=np.int32)
        # The target is the top of the row's stack, whose bottom is the end.
        stacks = np.full((m + 1) * n, 2 * self.kinds, np.int32)
        y = np.full((length + 1, n), 2 * self.kinds, np.int32)
        for at, top in enumerate(depth.T * n + np.arange(n)):
            closing = np.where(opens[:, at], self.kinds + kind[:, at], stacks[top])
            stacks[top] = y[at + 1] = closing
        return np.where(opens, kind, y[:-1].T), y[1:].T


MAX_DRAWS = 1000
"""Most draws for a grammar whose states all reach the end."""
NOT_ALLOWED = -1


@dataclass(frozen=True, kw_only=True)
class SelectiveGrammar(Task):
    """Selective grammar: the state of a random grammar after every token, among distractors.

    A letter belongs to D states, so it alone does not show the state. From each state a letter is
    allowed with probability `density`, and then leads to one of its D states; the end of a string,
    `density / D`. A string begins in one of a few states, takes each allowed letter alike, and ends
    with the end token; strings follow each other to the end of the row. After a token, a distractor
    may follow: a token that is not allowed there, maybe the end, which leaves the state as it is.
    So a model has to ignore what the grammar, which it learns from the rows, does not allow.

    Tokens are the end 0 and the letters 1 .. L, states the end 0 and 1 .. V-1. The states of letter
    l are (l - 1) D + 1 .. l D.

    Source: Bouhadjar et al. 2026, SelectivBench, arXiv:2601.12598, task 3;
    symseqbench/selectivbench. Differences: the defaults are smaller (8 letters of 4 states for 40
    of 40); the begins of strings differ in their letters, and no distractor is one of them after an
    end, so that the letters always determine the state; a row has T tokens with its distractors,
    and strings of any length; every position is scored.
    """

    name: ClassVar[str] = "selective-grammar"
    short: ClassVar[str] = "SG"
    about: ClassVar[str] = "the state of a random grammar, through tokens that it does not allow"

    vocab: int = 33
    seq_len: int = 64
    depth: int = option(4, "D, states of each letter", low=1, aliases=("ambiguity_depth",))
    density: float = option(0.4, "probability that a letter is allowed", above=0, below=1)
    starts: int = option(4, "states in which a string may begin", low=1)
    gap_prob: float = option(0.1, "probability of a distractor after a token", low=0, below=1)
    gap_start: int = option(0, "tokens at the start without distractors", unit="tokens", low=0)

    @property
    def letters(self) -> int:
        """L, the number of letters."""
        return (self.vocab - 1) // self.depth

    def broken_rules(self) -> Iterator[str]:
        why = f"an end, and letters of {self.depth} states each, {self.starts} to begin a string"
        yield from self.at_least("vocab", self.starts * self.depth + 1, why, step=self.depth)

    def draw_fixed(self, rng: Rng) -> Fixed:
        """Draw the state after each state and token (V, L + 1), `NOT_ALLOWED` for none.

        Raises:
            ConfigError: no grammar has a way to the end from every state.
        """
        V, L, D = self.vocab, self.letters, self.depth
        chance = np.full(L + 1, self.density)
        chance[0] = self.density / D
        poor: Bools = np.ones(V, bool)
        allowed = np.empty((V, L + 1), bool)
        for _ in range(MAX_DRAWS):
            allowed[poor] = rng.random((poor.sum(), L + 1)) < chance
            # Each state needs a next token and, so that a distractor is possible, another one.
            poor = np.all(allowed, axis=1) | ~np.any(allowed, axis=1)
            if poor.any():
                continue
            state = rng.integers(0, D, (V, L + 1)) + np.arange(-D, D * L, D) + 1
            state[:, 0] = 0
            begins = np.zeros(L + 1, bool)
            begins[1 + rng.permutation(L)[: self.starts]] = True
            grammar = np.where(np.vstack([begins, allowed[1:]]), state, NOT_ALLOWED)
            if _ends(grammar).all():
                return {"grammar": grammar}
            poor[:] = True
        raise ConfigError(
            f"{self.name}: density is {self.density:g}, depth {D} and vocab {V}; in {MAX_DRAWS} "
            "draws no grammar has a way to the end and a token that is not allowed in each state: "
            "another density, or a smaller depth"
        )

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        T, grammar = self.seq_len, fixed["grammar"]
        # The allowed tokens of each state in their order, then the others.
        tokens = np.argsort(grammar == NOT_ALLOWED, axis=1, kind="stable")
        counts = (grammar != NOT_ALLOWED).sum(1)
        states = _walk(grammar, tokens, counts, rng.random((T, n)))
        if not self.gap_prob:
            return self._letter(states), states
        gap = rng.random((n, T)) < self.gap_prob
        gap[:, : self.gap_start] = False
        place = np.arange(T) + np.cumsum(gap, 1, np.int32) - gap
        shown = np.zeros((n, 2 * T), bool)
        np.put_along_axis(shown, place, True, 1)
        shown = shown[:, :T]
        y = np.take_along_axis(states, np.cumsum(shown, 1, np.int32) - 1, 1)
        x, state = self._letter(y), y[~shown]
        n_other = grammar.shape[1] - counts[state]
        other = (rng.random(len(state)) * n_other).astype(np.intp)
        x[~shown] = tokens[state, counts[state] + other]
        return x, y

    def _letter(self, state: Ints) -> Ints:
        """Return the token that leads to each state."""
        return (state + self.depth - 1) // self.depth


def _walk(grammar: Ints, tokens: Ints, counts: Ints, uniform: NDArray[np.float64]) -> Ints:
    """Return the states of n walks from the end (n, T), for uniform numbers (T, n)."""
    width = grammar.shape[1]
    # Indices of rows of the flat table instead of states: a step is two look-ups.
    after = np.take_along_axis(grammar, tokens, 1).ravel() * width
    sizes = np.repeat(counts, width).astype(np.float64)
    rows = np.empty(uniform.shape, np.int32)
    row = np.zeros(uniform.shape[1], np.intp)
    for at, one in enumerate(uniform):
        rows[at] = row = after[row + (one * sizes[row]).astype(np.intp)]
    states: Ints = rows.T // width
    return states


def _ends(grammar: Ints) -> Bools:
    """Whether a string may end after each state (V,)."""
    ends = np.zeros(len(grammar) + 1, bool)  # the last one is for `NOT_ALLOWED`
    ends[0] = True
    while (more := ends[grammar].any(1) & ~ends[:-1]).any():
        ends[:-1] |= more
    return ends[:-1]
