"""The settings of one pass through a model: operators, resets, masks and a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from mlxhog.models.ops.operators import Ops

T = TypeVar("T")

CLOSED_GATE = -25.0
"""Forget pre-activation at the first token of a document: the old memory has the weight exp(-25).

Source: NX-AI/xlstm-jax, reset_at_document_boundaries.
"""


@dataclass(frozen=True)
class Pass(Generic[T]):
    """The settings of one forward pass, in arrays of one framework.

    Attributes:
        ops: the operators.
        starts: (B, S) bool, true at the first token of each document, where the memory is reset;
            None for no resets.
        masks: (B, S, width) by dropout site, 0 or 1 / (1 - rate); None outside of training.
        hidden: receives x after the embedding, after every block, and after the final norm.
        site: where dropout is now.
    """

    ops: Ops
    starts: T | None = None
    masks: Mapping[str, T] | None = None
    hidden: list[T] | None = None
    site: str = ""

    def linears(self, x: T, params: Mapping[str, T], *names: str) -> tuple[T, ...]:
        """Return x W^T + b of linear maps by their names: of "q", `q.weight` and any `q.bias`."""
        weights = [params[f"{name}.weight"] for name in names]
        return self.ops.linears(x, weights, [params.get(f"{name}.bias") for name in names])

    def linear(self, x: T, params: Mapping[str, T], name: str) -> T:
        """Return x W^T + b of one linear map."""
        (y,) = self.linears(x, params, name)
        return y

    def halves(self, x: T, params: Mapping[str, T], name: str) -> tuple[T, T]:
        """Return the first and the second half of the linear map `name`, as two arrays."""
        w, b = params[f"{name}.weight"], params.get(f"{name}.bias")
        halves = self.ops.xp.halves
        first, second = self.ops.linears(x, halves(w), None if b is None else halves(b))
        return first, second

    def forget(self, f: T) -> T:
        """Return forget pre-activations f (B, S, NH), closed where documents start."""
        if self.starts is None:
            return f
        closed: T = self.ops.xp.where(self.starts[..., None], CLOSED_GATE, f)  # type: ignore[index]
        return closed

    def at(self, site: str) -> Pass[T]:
        """Return the pass with dropout at `site`."""
        return self if self.masks is None else replace(self, site=site)

    def drop(self, x: T) -> T:
        """Return x (B, S, ...) without the units that are dropped at this site."""
        mask = None if self.masks is None else self.masks.get(self.site)
        return x if mask is None else x * mask.reshape(x.shape)  # type: ignore

    def note(self, x: T) -> None:
        """Add x to the trace, if there is one."""
        if self.hidden is not None:
            self.hidden.append(x)
