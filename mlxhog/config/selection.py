"""The share of a sparsified step that is written, as `--sparsify` names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlxhog.config.quantities import parse_number

WANTED = "none, topk:F with a share 0 < F <= 1, or threshold:F with F > 0"


@dataclass(frozen=True)
class Selection:
    """A rule for one parameter at a time; of a row-sparse step the touched rows are chosen from.

    kind "topk": the ceil(share * elements) of largest magnitude, at least one; among equals the
    first. Source: Stich, Cordonnier and Jaggi 2018, arXiv:1809.07599.
    kind "threshold": every element of magnitude >= share * lr. In units of the step size, so that
    the schedule does not change how much leaves; AdamW's steps are about 1 of them, SGD's are the
    gradient. Related: Strom 2015, Interspeech (there a fixed number).

    Zeros are never written.
    """

    kind: Literal["topk", "threshold"]
    share: float

    @classmethod
    def parse(cls, text: str) -> Selection | None:
        """Read "none", "topk:0.01" or "threshold:2".

        Raises:
            ValueError: none of these.
        """
        if text == "none":
            return None
        kind, _, number = text.partition(":")
        try:
            share = parse_number(number)
        except ValueError:
            share = 0.0
        if kind == "topk" and 0 < share <= 1:
            return cls("topk", share)
        if kind == "threshold" and share > 0:
            return cls("threshold", share)
        raise ValueError(f"wanted {WANTED}; got {text!r}")
