"""Selective grammar: the state of a random grammar after every token, among distractors.

A letter belongs to D states, so it alone does not show the state. From each state a letter is
allowed with probability `density`, and then leads to one of its D states; the end of a string,
`density / D`. A string begins in one of a few states, takes each allowed letter alike, and ends
with the end token; strings follow each other to the end of the row. After a token, a distractor
may follow: a token that is not allowed there, maybe the end, which leaves the state as it is. So a
model has to ignore what the grammar, which it learns from the rows, does not allow.

Source: Bouhadjar et al. 2026, SelectivBench, arXiv:2601.12598, task 3;
symseqbench/selectivbench. Differences: the defaults are smaller (8 letters of 4 states for 40 of
40); the begins of strings differ in their letters, and no distractor is one of them after an end,
so that the letters always determine the state; a row has T tokens with its distractors, and strings
of any length; every position is scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.mad.tasks.task import Bools, Fixed, Ints, Rng, Rows, Task

TRIES = 1000
"""Most draws for a grammar whose states all reach the end."""
NOT_ALLOWED = -1


@dataclass(frozen=True, kw_only=True)
class SelectiveGrammar(Task):
    """The task; tokens are the end 0 and the letters 1 .. L, states the end 0 and 1 .. V-1.

    The states of letter l are (l - 1) D + 1 .. l D.
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
    gap_start: int = option(0, "tokens of a row without a distractor", unit="tokens", low=0)

    @property
    def letters(self) -> int:
        """L."""
        return (self.vocab - 1) // self.depth

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
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
        for _ in range(TRIES):
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
            f"{self.name}: density is {self.density:g}, depth {D} and vocab {V}; in {TRIES} draws "
            "no grammar has a way to the end and a token that is not allowed in each state: "
            "another density, or a smaller depth"
        )

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows; training and test rows are of one kind."""
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
