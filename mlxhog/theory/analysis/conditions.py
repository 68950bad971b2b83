"""The theorems' bounds for one model, block by block, at the observed staleness."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mlxhog.config.config import TrainConfig
from mlxhog.config.optimizers import SGD
from mlxhog.config.strategy import sparsify
from mlxhog.theory import bounds
from mlxhog.theory.analysis.conflicts import BlockConflicts
from mlxhog.theory.bounds import Bound, Facts

WHOLE = "model"


@dataclass(frozen=True)
class Condition:
    """A rule for one block, or for the whole model.

    Attributes:
        block: its name; "model" for a rule of the whole model.
        bound: the rule with its numbers.
    """

    block: str
    bound: Bound

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        bound = self.bound
        return {
            "block": self.block,
            "name": bound.name,
            "source": bound.source,
            "inputs": dict(bound.inputs),
            "values": dict(bound.values),
            "applies": bound.applies,
            "assumptions": [
                {"needs": one.needs, "holds": one.holds, "why": one.why}
                for one in bound.assumptions
            ],
            "words": bound.words,
        }


@dataclass(frozen=True, kw_only=True)
class Lag:
    """The staleness of the bounds.

    Attributes:
        mean: in updates; of workers that are never idle, their number - 1.
        largest: of any update.
        seen: whether it was observed in a run; else it is that of equal workers.
    """

    mean: float
    largest: float
    seen: bool


@dataclass(frozen=True, kw_only=True)
class Constants:
    """The theorems' constants of the problem, estimated from gradients.

    Attributes:
        largest_gradient: M, the length of the longest gradient in the sample; a lower bound.
        smoothness: L, the fastest change of a sampled gradient; a lower bound near the parameters.
    """

    largest_gradient: float
    smoothness: float


def facts(config: TrainConfig, write: str) -> Facts:
    """Return the facts on a language model and its training; `write` as the option of that name."""
    return Facts(
        strongly_convex=False,
        smooth=None,  # measured near the parameters, unknown far from them
        bounded_gradients=True if config.clip > 0 else None,
        lossless=write != "racy",
        sgd=config.optimizer == SGD(weight_decay=0.0) and sparsify(config) == "none",
    )


def conditions(
    blocks: tuple[BlockConflicts, ...],
    *,
    updates_per_epoch: int,
    lag: Lag,
    constants: Constants,
    known: Facts,
) -> Iterator[Condition]:
    """Yield the rules of every block, then those of the whole model.

    Args:
        blocks: measured conflicts.
        updates_per_epoch: |E|: an example of the theory is one update.
        lag: staleness.
        constants: estimates.
        known: facts on the model and its training, without `delta`.
    """
    for one in blocks:
        elements = one.elements
        # Every update touches something, so neither share is 0, even if it is in the sample.
        rho, delta = (
            max(estimate.value, 1 / updates_per_epoch)
            for estimate in (elements.rho, elements.delta)
        )
        here = replace(known, delta=delta)
        name, n = one.block.name, one.block.parameters
        sizes = {
            "omega": elements.omega.value,
            "rho": rho,
            "delta": delta,
        }
        yield Condition(name, _proposition_4_1(sizes, lag, constants, here))
        yield Condition(name, bounds.penalty(**sizes, tau=lag.largest, facts=here))
        yield Condition(name, bounds.near_serial(**sizes, tau=lag.largest, facts=here))
        yield Condition(
            name,
            bounds.quarter_power(n=n, rho=rho, delta=delta, tau=lag.largest, facts=here),
        )
        degree = elements.p_conf.value * (updates_per_epoch - 1)
        yield Condition(
            name,
            bounds.perturbed_iterate(
                n_examples=updates_per_epoch, mean_degree=degree, tau=lag.largest, facts=here
            ),
        )
    yield Condition(
        WHOLE,
        bounds.step_koloskova(
            tau_concurrency=lag.mean,
            tau_max=lag.largest,
            facts=known,
            smoothness=constants.smoothness or None,
        ),
    )


def _proposition_4_1(sizes: dict[str, float], lag: Lag, constants: Constants, here: Facts) -> Bound:
    """Return the proposition without its bound: it divides by c^2, and c of a network is 0."""
    return Bound(
        name="proposition 4.1",
        source=bounds.HOGWILD,
        inputs=sizes
        | {
            "tau": lag.largest,
            "c": 0.0,
            "L": constants.smoothness,
            "M": constants.largest_gradient,
        },
        values={},
        assumptions=bounds.assume_hogwild(here),
        words=(
            "no bound: the loss of a neural network is not strongly convex (c = 0), the step size "
            "would be 0 and the number of updates infinite"
        ),
    )
