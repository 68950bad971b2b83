"""The theorems on lock-free SGD as rows: numbers and assumptions.

No bound limits the number of workers: Proposition 4.1 orders problems, but predicts a penalty of
467 for Netflix at a staleness of 9, where ten cores were measured to be about five times as fast as
one. Without strong convexity, as in neural networks, it sets no bound at all.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

Facts = Mapping[str, bool | None]
"""Name of an assumption -> whether it holds; None, or no entry, if that is unknown."""

ASSUMPTIONS = {
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
        "the update is the gradient times a learning rate",
        "momentum and Adam remember earlier gradients, which the proof does not cover",
    ),
    "sparse": (
        "sparse gradients",
        "even the busiest coordinate is not touched by every gradient",
        "some coordinate is touched by every gradient, so any two of them conflict: Delta = rho = "
        "1",
    ),
}
"""By name: the assumption, why it holds, why it fails."""

K_QUADRATIC, K_LINEAR = 6, 6
"""Factors of tau^2 Omega sqrt(Delta) and of rho tau in the updates of Proposition 4.1."""

ORDER_ONE = 100
"""Largest constant in "rho and Delta are of order 1/n": n rho and n Delta are at most this."""

HOGWILD = "Niu, Recht, Re, Wright 2011, arXiv:1106.5730, Proposition 4.1"
PERTURBED = "Mania et al. 2015, arXiv:1507.06970, Theorem 3.4"

Values = dict[str, float]
Bound = dict[str, Any]  # of `apply`


def _penalty(tau: float, omega: float, rho: float, delta: float) -> Values:
    """Updates of Proposition 4.1 at staleness tau, over those of serial SGD.

    pen(tau) = 1 + 6 rho tau + 6 tau^2 Omega sqrt(Delta)

    The proof is for updates that change one coordinate of an example at a time, drawn with
    replacement; the program changes all of them.
    """
    return {
        "penalty": 1 + K_LINEAR * rho * tau + K_QUADRATIC * tau * (tau * omega * math.sqrt(delta))
    }


def _root(tau: float, n: float, rho: float, delta: float) -> Values:
    return {"largest_tau": n**0.25, "holds": float(tau <= n**0.25)}


def _perturbed_iterate(tau: float, n_examples: float, mean_degree: float) -> Values:
    """Largest staleness at which conflicts cost nothing, tau <= n / (2 Dbar).

    The theorem's second limit, M^2 / (eps m^2), is for solutions of high accuracy.
    """
    largest = n_examples / (2 * mean_degree) if mean_degree > 0 else math.inf
    return {"largest_tau": largest, "holds": float(tau <= largest)}


THEOREMS: dict[str, tuple[str, tuple[str, ...], Callable[..., Values]]] = {
    "proposition 4.1": (HOGWILD, tuple(ASSUMPTIONS), _penalty),
    "n^(1/4)": (HOGWILD, tuple(ASSUMPTIONS), _root),
    "perturbed iterate": (
        PERTURBED,
        ("strongly_convex", "bounded_gradients", "lossless", "sgd", "sparse"),
        _perturbed_iterate,
    ),
}
"""By name: paper and number, names of the assumptions, and the values from a problem's numbers."""


def apply(name: str, facts: Facts, block: str = "model", /, **inputs: float) -> Bound:
    """Return a theorem of `THEOREMS` at the numbers of a problem, none of which is negative.

    Returns:
        `block`, `name`, `source` and `inputs`; the `values`, infinite if the rule sets no limit;
        the `assumptions`: what each `needs`, whether it `holds` (None if unknown) and `why`; and
        whether the theorem `applies`: None if some assumptions are unknown and the others hold.
    """
    (source, needed, values), assumptions = THEOREMS[name], []
    for one in needed:
        (needs, true, false), holds = ASSUMPTIONS[one], facts.get(one)
        why = "not known" if holds is None else true if holds else false
        assumptions.append({"needs": needs, "holds": holds, "why": why})
    if name == "n^(1/4)":
        order = inputs["n"] * max(inputs["rho"], inputs["delta"])
        why = f"n times the larger of them is {order:.3g}, a constant up to {ORDER_ONE}"
        needs, holds = "rho and Delta of order 1/n", order <= ORDER_ONE
        assumptions.append({"needs": needs, "holds": holds, "why": why})
    hold = [one["holds"] for one in assumptions]
    return {
        "block": block,
        "name": name,
        "source": source,
        "inputs": inputs,
        "values": values(**inputs),
        "assumptions": assumptions,
        "applies": False if False in hold else None if None in hold else True,
    }
