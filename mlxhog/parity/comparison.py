"""Compute a subject by every side, and compare every number."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.parity import compare, tolerances
from mlxhog.parity.compare import ComparedTensor
from mlxhog.parity.compute import Perturbation, computed_results
from mlxhog.parity.subject import ParitySide, ParitySubject, Results, perturbed
from mlxhog.report.views import TellStep


@dataclass(frozen=True)
class ParityReport:
    """The result of a comparison.

    Attributes:
        subject: of the computation.
        sides: that computed it, the reference first.
        rows: all compared tensors.
        first_bad: the first disagreement in the computation; None if all agree.
        perturbation: an input that one side got another value of.
        seconds: duration.
    """

    subject: ParitySubject
    sides: Sequence[ParitySide]
    rows: Sequence[ComparedTensor]
    first_bad: ComparedTensor | None
    perturbation: Perturbation | None
    seconds: float

    @property
    def missed(self) -> bool:
        """Whether a parameter was perturbed and no comparison failed."""
        return self.perturbation is not None and self.first_bad is None

    @property
    def ok(self) -> bool:
        """Whether everything agrees and no perturbation was missed."""
        return self.first_bad is None and not self.missed

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints, without notes."""
        perturbation = None
        if self.perturbation is not None:
            perturbation = {"name": self.perturbation.name, "side": self.perturbation.side}
        kinds = sorted({row.kind for row in self.rows})
        return {
            "ok": self.ok,
            "subject": self.subject.title,
            "backends": [side.name for side in self.sides],
            "perturbed": perturbation,
            "first_bad": None if self.first_bad is None else self.first_bad.to_json(),
            "seconds": round(self.seconds, 3),
            "reasons": {kind: tolerances.FLOAT32[kind].reason for kind in kinds},
            "rows": [row.to_json() for row in self.rows],
        }


def compare_sides(
    subject: ParitySubject,
    sides: Sequence[ParitySide],
    tell: TellStep,
    *,
    perturb: str | None = None,
    seed: int = 0,
    save: Path | None = None,
) -> ParityReport:
    """Compute a subject by every side and compare every number.

    Args:
        subject: checked.
        sides: that compute it, the reference first.
        tell: called with (side, "") when a side begins.
        perturb: an input whose value is changed for the first side after the reference.
        seed: of that value.
        save: .npz file for all arrays, as SIDE/NAME.

    Raises:
        ConfigError: there is nothing to compare, or no such input to perturb.
        WorkerFailed: a side could not compute it.
        EnvironmentLacks: `save` cannot be written.
    """
    if len(sides) < 2:
        raise ConfigError(f"{sides[0].name} is the only side; give --backends two names")
    begin = time.perf_counter()
    perturbation = None
    if perturb is not None:
        value = perturbed(subject.inputs, perturb, seed)
        perturbation = Perturbation(sides[1].name, perturb, value)
    with computed_results(subject, sides, perturbation, tell) as results:
        rows, computed = compare_all(subject, sides, results)
        bad = compare.first_bad(rows, computed)
        if save is not None:
            arrays: dict[str, Any] = {
                f"{side}/{name}": x for side, mine in computed.items() for name, x in mine.items()
            }
            try:
                with save.open("wb") as file:
                    np.savez(file, **arrays)
            except OSError as error:
                save.unlink(missing_ok=True)
                raise EnvironmentLacks(
                    f"--save {save}: {error.strerror or error}; choose another place"
                ) from error
    return ParityReport(subject, sides, rows, bad, perturbation, time.perf_counter() - begin)


def compare_all(
    subject: ParitySubject, sides: Sequence[ParitySide], results: Mapping[str, Results]
) -> tuple[list[ComparedTensor], dict[str, Results]]:
    """Compare all that can be compared.

    Args:
        subject: of the computation.
        sides: that computed it, the reference first.
        results: of every side by its name, as `computed_results` yields them.

    Returns:
        The compared tensors, and the results without the conditions among them.
    """
    computed: dict[str, Results] = {}
    conditions: dict[str, float] = {}
    for name, mine in results.items():
        computed[name], known = tolerances.split(mine)
        conditions |= known
    return list(compare.rows(subject, sides, computed, conditions)), computed
