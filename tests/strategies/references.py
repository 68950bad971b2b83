"""Each method as its paper has it: one step after the other, in float32.

A reference takes a strategy, the gradient of a ticket at a parameter, the number of steps, and the
one whose effect is to be left out; it returns the parameter in the end.
"""

import numpy as np

from mlxhog.strategies import DiLoCo, FedProx, Scaffold
from tests.strategies.runs import LR

f32 = np.float32


def mean(values):
    """As the strategies round it."""
    total = values[0]
    for value in values[1:]:
        total = f32(total + value)
    return f32(total * f32(1.0 / len(values))) if len(values) > 1 else total


def added(of, gradient, steps, without=None):
    """Lock-free steps, of gradients that do not depend on the parameter: in any order."""
    return f32(-LR * sum(gradient(ticket, 0.0) for ticket in range(steps) if ticket != without))


def in_order(of, gradient, steps, without=None):
    """w[t + 1] = w[t] - lr g(w[t - tau])."""
    history = [f32(0.0)]
    for t in range(steps):
        at = history[t - (of.trace.at(t).staleness if hasattr(of, "trace") else 0)]
        moved = f32(0.0 if t == without else f32(LR) * f32(gradient(t, float(at))))
        history.append(f32(history[-1] - moved))
    return history[-1]


def rounds(of, gradient, steps, without=None):
    """w <- w - lr mean over p of g_p(w)."""
    w = f32(0.0)
    for k in range(steps):
        tickets = range(k * of.workers, (k + 1) * of.workers)
        if k != without:
            w = f32(w - f32(f32(LR) * mean([f32(gradient(t, float(w))) for t in tickets])))
    return w


def local(of, gradient, steps, without=None):
    """Copies that meet."""
    return Local(of, gradient, steps, without).model


def torn(of, gradient, steps, without=None):
    """The same, where the skipped step is pulled (`decoupled`), or its gradient not summed up."""
    return Local(of, gradient, steps, without, torn=True).model


class Local:
    """A local method: the copies `own`, the number of meetings, and the model."""

    def __init__(self, of, gradient, steps, without=None, *, torn=False):
        self.of, self.gradient, workers = of, gradient, of.workers
        self.own = [f32(0.0)] * workers
        self.anchor = self.velocity = self.control = f32(0.0)
        self.controls = [f32(0.0)] * workers
        self.meetings = done = 0
        within = True
        while done < steps:
            length = min(of.interval(done), steps + 1)
            order = [(j, p) for j in range(length) for p in range(workers)]
            self._gradients = [[] for _ in range(workers)]
            for _, rank in order[: steps - done]:
                self._step(rank, done, skipped=done == without, torn=torn)
                done += 1
            within = sum(map(len, self._gradients)) < len(order)
            if not within:
                self._meet()
        self.model = mean(self.own) if within else self.own[0]

    def _step(self, rank, ticket, *, skipped, torn):
        at, chosen = self.own[rank], self.of
        direction = result = f32(self.gradient(ticket, float(at)))
        if isinstance(chosen, FedProx) and chosen.prox == "grad":
            direction = f32(result + f32(f32(chosen.mu) * f32(at - self.anchor)))
        elif isinstance(chosen, FedProx):
            at = f32(at - f32(f32(LR * chosen.mu) * f32(at - self.anchor)))
        elif isinstance(chosen, Scaffold):
            direction = f32(result + f32(self.control - self.controls[rank]))
        is_summed = not (skipped and torn and isinstance(chosen, Scaffold))
        self._gradients[rank].append(result if is_summed else f32(0.0))
        if skipped and torn:
            self.own[rank] = at
        elif not skipped:
            self.own[rank] = f32(at - f32(f32(LR) * direction))

    def _meet(self):
        chosen, average = self.of, mean(self.own)
        if isinstance(chosen, Scaffold):
            every = zip(self.controls, self._gradients, strict=True)
            self.controls = [mean(own) if own else control for control, own in every]
            self.control = mean(self.controls)
        if isinstance(chosen, DiLoCo):
            moved = mean([f32(self.anchor - own) for own in self.own])
            momentum = f32(chosen.outer_momentum)
            self.velocity = f32(f32(momentum * self.velocity) + moved)
            ahead = f32(moved + f32(momentum * self.velocity))
            average = f32(self.anchor - f32(f32(chosen.outer_lr) * ahead))
        self.anchor, self.own = average, [average] * self.of.workers
        self.meetings += 1
