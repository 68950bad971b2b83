"""What the theorems assume, judged against what is known of a problem and its run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a problem and of how it is trained; None where it is not.

    Attributes:
        strongly_convex: the objective curves upwards everywhere, so it has one minimum.
        smooth: its gradient is Lipschitz continuous.
        bounded_gradients: no gradient of an example is larger than some M.
        lossless: no increment is lost when two workers write at once.
        sgd: updates are the gradient times a step size (no momentum, no Adam).
        delta: share of the examples that touch the busiest coordinate.
    """

    strongly_convex: bool | None = None
    smooth: bool | None = None
    bounded_gradients: bool | None = None
    lossless: bool | None = None
    sgd: bool | None = None
    delta: float | None = None


@dataclass(frozen=True)
class Assumption:
    """One thing that a theorem needs.

    Attributes:
        needs: in a few words.
        holds: whether it does here; None where that is not known.
        why: the reason, in plain words.
    """

    needs: str
    holds: bool | None
    why: str


def together(assumptions: Iterable[Assumption]) -> bool | None:
    """Return whether all hold: False if one fails, None if none fails and one is unknown."""
    found = [assumption.holds for assumption in assumptions]
    return False if False in found else None if None in found else True


def strongly_convex(facts: Facts) -> Assumption:
    """One minimum, and a gradient that grows with the distance from it."""
    return Assumption(
        "a strongly convex objective",
        facts.strongly_convex,
        _told(
            facts.strongly_convex,
            "the objective is strongly convex",
            "it has many minima and flat directions, as neural networks do, or no curvature at all",
        ),
    )


def smooth(facts: Facts) -> Assumption:
    """A gradient that changes at most in proportion to the step."""
    return Assumption(
        "a Lipschitz continuous gradient",
        facts.smooth,
        _told(facts.smooth, "the objective is smooth", "the objective has kinks"),
    )


def bounded_gradients(facts: Facts) -> Assumption:
    """A largest gradient."""
    return Assumption(
        "gradients of bounded size",
        facts.bounded_gradients,
        _told(
            facts.bounded_gradients,
            "gradients are clipped, or bounded by the data",
            "nothing bounds the gradient of an example",
        ),
    )


def lossless(facts: Facts) -> Assumption:
    """Additions that are atomic per element."""
    return Assumption(
        "no increment is lost",
        facts.lossless,
        _told(
            facts.lossless,
            "writes are lossless",
            "racy writes lose increments now and then, which no theorem here allows for",
        ),
    )


def plain_sgd(facts: Facts) -> Assumption:
    """Updates that are gradients times a step size."""
    return Assumption(
        "updates of plain SGD",
        facts.sgd,
        _told(
            facts.sgd,
            "the update is the gradient times a step size",
            "momentum and Adam remember earlier gradients, which the proof does not cover",
        ),
    )


def sparse(facts: Facts) -> Assumption:
    """Examples that mostly do not touch the same coordinates."""
    if facts.delta is None:
        return Assumption("sparse gradients", None, "supports were not measured")
    if facts.delta >= 1.0:
        return Assumption(
            "sparse gradients",
            False,
            "some coordinate is touched by every gradient, so any two of them conflict: "
            "Delta = rho = 1",
        )
    return Assumption(
        "sparse gradients",
        True,
        f"the busiest coordinate is touched by {facts.delta:.3g} of the gradients",
    )


def _told(holds: bool | None, true: str, false: str) -> str:
    return "not known" if holds is None else true if holds else false
