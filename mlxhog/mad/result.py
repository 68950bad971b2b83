"""What became of one training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

STATUSES = ("done", "diverged", "pruned", "failed", "interrupted")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation on the way."""

    step: int
    seconds: float
    loss: float
    acc_token: float
    acc_macro: float


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The end of a run.

    Attributes:
        status: one of `STATUSES`; a diverged run scores 0.
        steps: taken.
        seconds: from the first step to the last evaluation.
        loss: mean training loss in nats since the evaluation before the last.
        acc_token: share of the scored test positions that are right.
        acc_macro: mean recall over classes, see `mad/scores/accuracy.py`; the score is made of it.
        val_token: as acc_token, of the validation rows; None where there are none.
        val_macro: likewise.
        ceiling: the best accuracy that is possible on these rows, where it is below 1.
        curve: every evaluation.
        reason: why it failed, else "".
    """

    status: str
    steps: int
    seconds: float
    loss: float
    acc_token: float
    acc_macro: float
    val_token: float | None = None
    val_macro: float | None = None
    ceiling: float = 1.0
    curve: tuple[Point, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON takes, the curve included."""
        return asdict(self)
