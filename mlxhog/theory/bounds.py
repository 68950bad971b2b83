"""The theorems on lock-free SGD as rows: numbers, assumptions, and words for people.

No bound limits the number of workers: Proposition 4.1 orders problems, and is wrong by orders of
magnitude as a prediction. For the Netflix problem its penalty at a lag of 9 is 467, but ten cores
were measured to be about five times as fast as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

# -- facts, and the theorems' assumptions ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Properties of a problem and of its training; None for unknown ones.

    Attributes:
        strongly_convex: the objective curves upwards everywhere, so it has one minimum.
        smooth: its gradient is Lipschitz continuous.
        bounded_gradients: no gradient of an example is larger than some M.
        lossless: no increment is lost when two workers write at once.
        sgd: updates are the gradient times a step size (no momentum, no Adam).
        sparse: no coordinate is touched by every example.
    """

    strongly_convex: bool | None = None
    smooth: bool | None = None
    bounded_gradients: bool | None = None
    lossless: bool | None = None
    sgd: bool | None = None
    sparse: bool | None = None


@dataclass(frozen=True)
class Assumption:
    """One assumption of a theorem, whether it holds here (None if unknown), and why."""

    needs: str
    holds: bool | None
    why: str


_ASSUMPTIONS = {
    "strongly_convex": (
        "a strongly convex objective",
        "the objective is strongly convex",
        "it has many minima and flat directions, as neural networks do, or no curvature at all",
    ),
    "smooth": (
        "a Lipschitz continuous gradient",
        "the objective is smooth",
        "the objective has kinks",
    ),
    "bounded_gradients": (
        "gradients of bounded size",
        "gradients are clipped, or bounded by the data",
        "nothing bounds the gradient of an example",
    ),
    "lossless": (
        "no increment is lost",
        "writes are lossless",
        "racy writes lose increments now and then, and no theorem here covers that",
    ),
    "sgd": (
        "updates of plain SGD",
        "the update is the gradient times a step size",
        "momentum and Adam remember earlier gradients, which the proof does not cover",
    ),
    "sparse": (
        "sparse gradients",
        "even the busiest coordinate is not touched by every gradient",
        "some coordinate is touched by every gradient, so any two of them conflict: Delta = rho = "
        "1",
    ),
}
"""Field of `Facts` -> the assumption, why it holds, why it fails."""

EVERY = tuple(_ASSUMPTIONS)


def _assume(facts: Facts, name: str) -> Assumption:
    needs, true, false = _ASSUMPTIONS[name]
    holds: bool | None = getattr(facts, name)
    return Assumption(needs, holds, "not known" if holds is None else true if holds else false)


# -- the rows --------------------------------------------------------------------------------------

K_LAG_SQUARED, LAG = 6, 6
"""Factors of tau^2 Omega sqrt(Delta) and of rho tau in the updates of Proposition 4.1."""

ORDER_ONE = 100
"""Largest constant in "rho and Delta are of order 1/n": n rho and n Delta are at most this."""

HOGWILD = "Niu, Recht, Re, Wright 2011, arXiv:1106.5730, Proposition 4.1"
PERTURBED = "Mania et al. 2015, arXiv:1507.06970, Theorem 3.4"

Values = dict[str, float]


class Theorem(NamedTuple):
    """One rule.

    Attributes:
        source: paper and number.
        needs: its assumptions, some of `EVERY`.
        values: its numbers, from those of the problem; infinite if it sets no limit.
        words: the meaning of both, in a sentence.
    """

    source: str
    needs: tuple[str, ...]
    values: Callable[..., Values]
    words: Callable[..., str]


def _penalty(tau: float, omega: float, rho: float, delta: float) -> Values:
    """Updates of Proposition 4.1 at lag tau, over those of serial SGD.

    pen(tau) = 1 + 6 rho tau + 6 tau^2 Omega sqrt(Delta)

    The proof is for updates that change one coordinate of an example at a time, drawn with
    replacement; the program changes all of them.
    """
    return {"penalty": 1 + LAG * rho * tau + K_LAG_SQUARED * tau * (tau * omega * math.sqrt(delta))}


def _perturbed_iterate(tau: float, n_examples: float, mean_degree: float) -> Values:
    """Largest lag for which conflicts cost nothing, tau <= n / (2 Dbar).

    The theorem's second limit, M^2 / (eps m^2), is for solutions of high accuracy.
    """
    largest = n_examples / (2 * mean_degree) if mean_degree > 0 else math.inf
    return {"largest_tau": largest, "met": float(tau <= largest)}


THEOREMS = {
    "proposition 4.1": Theorem(
        HOGWILD, EVERY, _penalty,
        lambda v, tau, **_: f"the theorem asks for {v['penalty']:.3g} times the updates of serial "
        f"SGD at a lag of {tau:g}; it orders problems and predicts no speed, and where the "
        "objective is not strongly convex it sets no bound at all",
    ),
    "n^(1/4)": Theorem(
        HOGWILD, EVERY,
        lambda tau, n, rho, delta: {"largest_tau": n**0.25, "met": float(tau <= n**0.25)},
        lambda v, n, **_: f"the rule keeps lags well below {v['largest_tau']:.3g} for {n:,} "
        "coordinates",
    ),
    "perturbed iterate": Theorem(
        PERTURBED, ("strongly_convex", "bounded_gradients", "lossless", "sgd", "sparse"),
        _perturbed_iterate,
        lambda v, tau, n_examples, mean_degree: f"an update meets {mean_degree / n_examples:.3g} "
        f"of the others, so lags up to {v['largest_tau']:.3g} cost nothing; a lag of {tau:g} is "
        f"{'within' if v['met'] else 'beyond'} that",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One theorem, applied.

    Attributes:
        block: of the model, to which it is applied; "model" for all of it.
        name: of the theorem.
        source: paper and number.
        inputs: the numbers of the problem.
        values: the resulting numbers; infinite if the rule sets no limit.
        assumptions: of the theorem.
        words: the meaning of the numbers, in a sentence.
    """

    block: str
    name: str
    source: str
    inputs: Mapping[str, float]
    values: Mapping[str, float]
    assumptions: tuple[Assumption, ...]
    words: str

    @property
    def applies(self) -> bool | None:
        """Whether every assumption holds; None if some are unknown and the others hold."""
        holds = [one.holds for one in self.assumptions]
        return False if False in holds else None if None in holds else True

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "applies": self.applies}


def apply(name: str, facts: Facts, block: str = "model", /, **inputs: float) -> Bound:
    """Return a theorem of `THEOREMS` at the numbers of a problem, none of which is negative."""
    theorem = THEOREMS[name]
    values = theorem.values(**inputs)
    assumptions = tuple(_assume(facts, one) for one in theorem.needs)
    if name == "n^(1/4)":
        order = inputs["n"] * max(inputs["rho"], inputs["delta"])
        why = f"n times the larger of them is {order:.3g}, a constant up to {ORDER_ONE}"
        assumptions += (Assumption("rho and Delta of order 1/n", order <= ORDER_ONE, why),)
    return Bound(
        block=block,
        name=name,
        source=theorem.source,
        inputs=inputs,
        values=values,
        assumptions=assumptions,
        words=theorem.words(values, **inputs),
    )
