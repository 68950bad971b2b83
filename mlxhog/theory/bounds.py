"""The theorems on lock-free SGD as numbers, and whether the assumptions of each hold here.

No bound limits the number of workers: Proposition 4.1 orders problems, and is wrong by orders of
magnitude as a prediction. For the Netflix problem its penalty at a lag of 9 is 467, but ten cores
were measured to be about five times as fast as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlxhog.errors import DataError

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
    """One assumption of a theorem.

    Attributes:
        needs: the assumption, in a few words.
        holds: whether it holds here; None if unknown.
        why: the reason, in plain words.
    """

    needs: str
    holds: bool | None
    why: str


def all_hold(assumptions: Iterable[Assumption]) -> bool | None:
    """Return whether all hold: False if one fails, None if none fails and one is unknown."""
    holds = [assumption.holds for assumption in assumptions]
    return False if False in holds else None if None in holds else True


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
}
"""Field of `Facts` -> the assumption, why it holds, why it fails."""


def assume(facts: Facts, *names: str) -> tuple[Assumption, ...]:
    """Return the assumptions on some fields of `Facts`."""
    assumptions = []
    for name in names:
        needs, true, false = _ASSUMPTIONS[name]
        holds: bool | None = getattr(facts, name)
        why = "not known" if holds is None else true if holds else false
        assumptions.append(Assumption(needs, holds, why))
    return tuple(assumptions)


def assume_sparse(facts: Facts) -> Assumption:
    """Return the assumption that most examples share no coordinate."""
    needs = "sparse gradients"
    if facts.delta is None:
        return Assumption(needs, None, "supports were not measured")
    if facts.delta >= 1.0:
        why = "some coordinate is touched by every gradient, so any two of them conflict: "
        return Assumption(needs, False, why + "Delta = rho = 1")
    why = f"the busiest coordinate is touched by {facts.delta:.3g} of the gradients"
    return Assumption(needs, True, why)


def assume_hogwild(facts: Facts) -> tuple[Assumption, ...]:
    """Return the assumptions of Proposition 4.1 and of the rules that follow from it."""
    return (*assume(facts, *_ASSUMPTIONS), assume_sparse(facts))


# -- the rules -------------------------------------------------------------------------------------

K_LAG_SQUARED = 6
"""Factor of tau^2 Omega sqrt(Delta) in the number of updates of Proposition 4.1."""

LAG = 6
"""Factor of rho tau in both."""

ORDER_ONE = 100
"""Largest constant in "rho and Delta are of order 1/n": n rho and n Delta are at most this."""

HOGWILD = "Niu, Recht, Re, Wright 2011, arXiv:1106.5730, Proposition 4.1"
PERTURBED = "Mania et al. 2015, arXiv:1507.06970, Theorem 3.4"
KOLOSKOVA = "Koloskova, Stich, Jaggi 2022, arXiv:2206.08307"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One rule, applied.

    Attributes:
        name: of the rule.
        source: paper and number.
        inputs: the numbers of the problem.
        values: the resulting numbers; infinite if the rule sets no limit.
        assumptions: of the rule.
        words: the meaning of the numbers, in a sentence.
    """

    name: str
    source: str
    inputs: Mapping[str, float]
    values: Mapping[str, float]
    assumptions: tuple[Assumption, ...]
    words: str

    @property
    def applies(self) -> bool | None:
        """Whether every assumption holds; None if some are unknown and the others hold."""
        return all_hold(self.assumptions)


def penalty(*, tau: float, omega: float, rho: float, delta: float, facts: Facts) -> Bound:
    """Return the updates of Proposition 4.1 at lag tau, over those of serial SGD.

    pen(tau) = 1 + 6 rho tau + 6 tau^2 Omega sqrt(Delta)

    The proof is for updates that change one coordinate of an example at a time, drawn with
    replacement; the program changes all of them.
    """
    _check_conflict(tau, rho, delta)
    value = 1 + LAG * rho * tau + K_LAG_SQUARED * tau * (tau * omega * math.sqrt(delta))
    return Bound(
        name="penalty",
        source=HOGWILD,
        inputs=dict(tau=tau, omega=omega, rho=rho, delta=delta),
        values={"penalty": value},
        assumptions=assume_hogwild(facts),
        words=(
            f"the theorem asks for {value:.3g} times the updates of serial SGD at a lag of "
            f"{tau:g}; it orders problems and predicts no speed"
        ),
    )


def near_serial(
    *, omega: float, rho: float, delta: float, tau: float, facts: Facts, slack: float = 0.1
) -> Bound:
    """Return whether pen(tau) - 1 <= slack, and the largest lag at which it is.

    "Near serial" is pen - 1 = o(1) in the paper; `slack` is the number for o(1).
    """
    _check_conflict(tau, rho, delta)
    a, b = K_LAG_SQUARED * omega * math.sqrt(delta), LAG * rho
    if a > 0:
        # The positive root of a t^2 + b t = slack, written so that nothing cancels.
        largest = 2 * slack / (b + math.sqrt(b * b + 4 * a * slack))
    else:
        largest = slack / b if b > 0 else math.inf
    within = tau <= largest
    return Bound(
        name="near-serial",
        source=HOGWILD,
        inputs=dict(omega=omega, rho=rho, delta=delta, tau=tau, slack=slack),
        values={"largest_tau": largest, "met": float(within)},
        assumptions=assume_hogwild(facts),
        words=(
            f"the theorem promises at most {slack:.0%} more updates than serial SGD up to a lag of "
            f"{largest:.3g}; a lag of {tau:g} is {'within' if within else 'beyond'} that"
        ),
    )


def quarter_power(*, n: int, rho: float, delta: float, tau: float, facts: Facts) -> Bound:
    """Return n^(1/4), the largest lag at serial speed if rho and Delta are of order 1/n.

    The paper's statement is asymptotic, tau = o(n^(1/4)) with n the number of coordinates.
    """
    _check_conflict(tau, rho, delta)
    _check_positive(n=n)
    limit, order = n**0.25, n * max(rho, delta)
    return Bound(
        name="n^(1/4)",
        source=HOGWILD,
        inputs=dict(n=n, rho=rho, delta=delta, tau=tau),
        values={"largest_tau": limit, "met": float(tau <= limit)},
        assumptions=(
            *assume_hogwild(facts),
            Assumption(
                "rho and Delta of order 1/n",
                order <= ORDER_ONE,
                f"n times the larger of them is {order:.3g}, "
                + ("a constant" if order <= ORDER_ONE else f"not a constant (above {ORDER_ONE})"),
            ),
        ),
        words=f"the rule keeps lags well below {limit:.3g} for {n:,} coordinates",
    )


def perturbed_iterate(
    *,
    n_examples: float,
    mean_degree: float,
    tau: float,
    facts: Facts,
    M: float | None = None,  # noqa: N803
    m: float | None = None,
    eps: float | None = None,
) -> Bound:
    """Return the largest lag without a cost by asynchrony's noise: min(n/(2 Dbar), M^2/(eps m^2)).

    Dbar is the mean conflict degree, so the first term is p_conf * tau <= 1/2. It is a far weaker
    condition than Proposition 4.1, which needs the largest conflict. The second is an order,
    without the constant of the proof; it limits only the accuracy eps, and is left out without M, m
    and eps.

    Args:
        n_examples: |E|.
        mean_degree: mean number of other examples that an example meets.
        tau: lag in updates.
        facts: for the assumptions.
        M: largest gradient of an example.
        m: strong convexity.
        eps: |x - x*|^2 to reach.

    Raises:
        DataError: a number is negative, there are no examples, or only some of M, m, eps are given.
    """
    _check_positive(n_examples=n_examples)
    constants = {"M": M, "m": m, "eps": eps}
    known = {name: value for name, value in constants.items() if value is not None}
    if known and len(known) < len(constants):
        raise DataError(f"the second term needs M, m and eps; got {', '.join(known)}")
    _check_positive(**known)
    if tau < 0 or mean_degree < 0:
        raise DataError(
            f"tau = {tau}, mean_degree = {mean_degree}: wanted counts of updates and of examples, "
            "at least 0"
        )
    sparse = n_examples / (2 * mean_degree) if mean_degree > 0 else math.inf
    exact = known["M"] ** 2 / (known["eps"] * known["m"] ** 2) if known else math.inf
    largest = min(sparse, exact)
    within = tau <= largest
    return Bound(
        name="perturbed iterate",
        source=PERTURBED,
        inputs=dict(n_examples=n_examples, mean_degree=mean_degree, tau=tau) | known,
        values={"largest_tau": largest, "met": float(within)}
        | ({"sparsity_tau": sparse, "accuracy_tau": exact} if known else {}),
        assumptions=(
            *assume(facts, "strongly_convex", "bounded_gradients", "lossless", "sgd"),
            assume_sparse(facts),
        ),
        words=(
            f"an update meets {mean_degree / n_examples:.3g} of the others, so lags up to "
            f"{largest:.3g} cost nothing; a lag of {tau:g} is "
            f"{'within' if within else 'beyond'} that"
        ),
    )


def step_koloskova(
    *, tau_concurrency: float, tau_max: float, facts: Facts, smoothness: float | None = None
) -> Bound:
    """Return step sizes for dense, non-convex problems, which need small steps and no sparsity.

    A constant step must be of the order of 1 / (L sqrt(tau_max tau_C)); 1 / (L tau_C) is enough if
    gradients older than 2 tau_C are left out or scaled down. These are orders: the constant factors
    of the proofs are left out. If L is unknown, the values are in multiples of 1/L, the largest
    step of serial SGD; lags below 1 count as 1.

    Args:
        tau_concurrency: mean number of gradients in flight beside one's own: workers - 1.
        tau_max: largest observed lag.
        facts: for the assumptions.
        smoothness: L, if known.

    Raises:
        DataError: a lag is negative.
    """
    if min(tau_concurrency, tau_max) < 0:
        raise DataError(f"lags of {tau_concurrency} and {tau_max} updates; wanted at least 0")
    concurrency, largest = max(1.0, tau_concurrency), max(1.0, tau_max)
    unit = 1.0 if smoothness is None else 1.0 / smoothness
    constant, adaptive = unit / math.sqrt(largest * concurrency), unit / concurrency
    of = " of serial SGD's largest step" if smoothness is None else ""
    return Bound(
        name="step for dense problems",
        source=KOLOSKOVA,
        inputs=dict(tau_concurrency=tau_concurrency, tau_max=tau_max)
        | ({} if smoothness is None else {"smoothness": smoothness}),
        values={
            "constant_step": constant,
            "step_without_old_gradients": adaptive,
            "drop_above": 2 * concurrency,
        },
        assumptions=assume(facts, "smooth", "lossless", "sgd"),
        words=(
            f"a constant step of the order of {constant:.3g}{of} converges at any density; "
            f"{adaptive:.3g} if gradients older than {2 * concurrency:g} updates are left out"
        ),
    )


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise DataError(f"{name} = {value}: wanted a number above 0")


def _check_conflict(tau: float, rho: float, delta: float) -> None:
    if tau < 0:
        raise DataError(f"tau = {tau}: a lag counts updates, wanted at least 0")
    for name, share in (("rho", rho), ("delta", delta)):
        if not 0 <= share <= 1:
            raise DataError(f"{name} = {share}: wanted a share of the examples, 0 to 1")
