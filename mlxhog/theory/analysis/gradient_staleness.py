"""The worth of a late gradient: the same batch, before and after other updates.

Theorems bound this by curvature in the worst direction. Here it is measured: take the gradient of a
batch, let k updates of other batches go by, and take it again. Runs in the child of `sampling.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.child import Lane
from mlxhog.config.config import TrainConfig
from mlxhog.theory.analysis.sampling import Subject, Ticket, source

Float32 = NDArray[np.float32]

LAGS = (1, 2, 4, 8)


@dataclass(frozen=True)
class StaleGradient:
    """How gradients differ that are some updates old.

    Attributes:
        lag: updates by others since the parameters were read.
        cosine: between the old and the fresh gradient of the same batch, mean over batches.
        change: length of their difference over that of the fresh one, likewise.
    """

    lag: int
    cosine: float
    change: float


class OptimizerMovement:
    """The movement of an optimizer's updates, without weight decay; one call per update.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; momentum as torch.optim.SGD has it.
    """

    def __init__(self, config: TrainConfig, size: int) -> None:
        """Begin without memory.

        Args:
            config: the optimizer's settings.
            size: elements of a gradient.
        """
        self.config, self._steps = config, 0
        memory = config.optimizer != "sgd"
        self._first = np.zeros(size if memory else 0, np.float32)
        self._second = np.zeros(size if config.optimizer == "adamw" else 0, np.float32)

    def learn(self, grad: Float32) -> Float32:
        """Take in a gradient, and return the direction of its update, for a step of `-lr`."""
        config = self.config
        norm = float(np.linalg.norm(grad))
        if config.clip and norm > config.clip:
            grad = grad * np.float32(config.clip / norm)
        if config.optimizer == "sgd":
            return grad.copy()
        self._steps += 1
        if config.optimizer == "momentum":
            self._first = np.float32(config.momentum) * self._first + grad
            return self._first.copy()
        self._first += np.float32(1 - config.beta1) * (grad - self._first)
        self._second += np.float32(1 - config.beta2) * (grad * grad - self._second)
        first = self._first / np.float32(1 - config.beta1**self._steps)
        second = self._second / np.float32(1 - config.beta2**self._steps)
        direction: Float32 = first / (np.sqrt(second) + np.float32(config.eps))
        return direction


def compare_stale_gradients(
    lane: Lane,
    subject: Subject,
    watched: Sequence[Ticket],
    others: Sequence[Ticket],
    before: Sequence[Ticket],
    config: TrainConfig,
) -> tuple[StaleGradient, ...]:
    """Compare old gradients with fresh ones; the parameters are put back afterwards.

    Args:
        lane: of the child.
        subject: which gradients.
        watched: batches whose gradients are compared.
        others: batches of the updates in between, at least the largest of `LAGS`.
        before: batches that the optimizer remembers; none at the beginning of training.
        config: the optimizer, whose step size is taken in full.
    """
    ours = source(lane, subject)
    params_before = ours.backend.inbox.copy()
    movement = OptimizerMovement(config, ours.flat.size)
    for ticket in before:
        ours.gradient(ticket)
        movement.learn(ours.flat)
    old = []
    for ticket in watched:
        ours.gradient(ticket)
        old.append(ours.flat.copy())
    results = []
    for done, ticket in enumerate(others[: LAGS[-1]], start=1):
        ours.gradient(ticket)
        ours.move(movement.learn(ours.flat), -config.lr)
        if done in LAGS:
            pairs = []
            for one, first in zip(watched, old, strict=True):
                ours.gradient(one)
                pairs.append(cosine_and_change(first, ours.flat))
            cosine, change = np.mean(pairs, axis=0)
            results.append(StaleGradient(done, float(cosine), float(change)))
    ours.backend.inbox[:] = params_before
    ours.backend.refresh()
    return tuple(results)


def cosine_and_change(old: Float32, fresh: Float32) -> tuple[float, float]:
    """Return the cosine of two gradients, and the length of their difference over the second's."""
    lengths = float(np.linalg.norm(old)), float(np.linalg.norm(fresh))
    if not all(lengths):
        same = lengths[0] == lengths[1]
        return float(same), float(not same)
    cosine = float(np.dot(old / lengths[0], fresh / lengths[1]))
    return min(1.0, cosine), float(np.linalg.norm(fresh - old)) / lengths[1]
