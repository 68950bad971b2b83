"""Compute a subject by every side, compare, and say what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.parity import conditioning, judge, report, run, tolerances
from mlxhog.parity.compare import Row
from mlxhog.parity.faults import Fault
from mlxhog.parity.run import Spoilt, Tell
from mlxhog.parity.sides import Side
from mlxhog.parity.subject import Results, Subject, perturbed


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        subject: what was computed.
        sides: who computed it, the reference first.
        rows: every two tensors that were compared.
        first_bad: the disagreement that comes first in the computation; None where all agree.
        spoilt: what one side got another value of.
        seconds: how long it took.
    """

    subject: Subject
    sides: Sequence[Side]
    rows: Sequence[Row]
    first_bad: Row | None
    spoilt: Spoilt | None
    seconds: float

    @property
    def blind(self) -> bool:
        """Whether a parameter was spoilt and nobody noticed."""
        return self.spoilt is not None and self.first_bad is None

    @property
    def unmet(self) -> list[str]:
        """Recorded results that no side computed, and which are therefore not compared."""
        met = {(row.b, row.against) for row in self.rows}
        return [
            f"not compared: {side} {name}, which nobody computed"
            for side, results in self.subject.recorded.items()
            for name in results
            if (side, name) not in met
        ]

    @property
    def ok(self) -> bool:
        """Whether everything agrees, and a spoilt parameter was not overlooked."""
        return self.first_bad is None and not self.blind

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints, without notes."""
        spoilt = self.spoilt
        kinds = sorted({row.kind for row in self.rows})
        return {
            "ok": self.ok,
            "subject": self.subject.title,
            "backends": [side.name for side in self.sides],
            "recorded": list(self.subject.recorded),
            "perturbed": None if spoilt is None else {"name": spoilt.name, "side": spoilt.side},
            "first_bad": None if self.first_bad is None else self.first_bad.to_json(),
            "seconds": round(self.seconds, 3),
            "reasons": {kind: tolerances.of(kind, "float32").reason for kind in kinds},
            "rows": [row.to_json() for row in self.rows],
        }


def compare(
    subject: Subject,
    sides: Sequence[Side],
    tell: Tell,
    *,
    perturb: str | None = None,
    seed: int = 0,
    save: Path | None = None,
    fault: Fault | None = None,
) -> Comparison:
    """Compute a subject by every side and compare every number.

    Args:
        subject: what to compute, checked.
        sides: who computes it, the reference first.
        tell: called with (side, "") when a side begins.
        perturb: an input that the first side after the reference gets another value of.
        seed: of that value.
        save: .npz file for all arrays.
        fault: what the first side after the reference computes with.

    Raises:
        ConfigError: there is nothing to compare, or no such input to perturb.
        WorkerFailed: a side could not compute it.
        EnvironmentLacks: `save` cannot be written.
    """
    if len(sides) + len(subject.recorded) < 2:
        raise ConfigError(
            f"{sides[0].name} alone has nothing to be compared with; give --backends two names, or "
            "a recorded case"
        )
    begin = time.perf_counter()
    victim = sides[min(1, len(sides) - 1)].name
    spoilt = None
    if perturb is not None:
        value = perturbed(subject.inputs, perturb, seed)
        spoilt = Spoilt(victim, perturb, value)
    faults = {} if fault is None else {victim: fault}
    with run.computed(subject, sides, spoilt, tell, faults) as results:
        rows, computed = judged(subject, sides, results)
        bad = judge.first_bad(rows, computed)
        if save is not None:
            try:
                report.save(save, computed, subject.recorded)
            except OSError as error:
                raise EnvironmentLacks(
                    f"--save {save}: {error.strerror or error}; choose another place"
                ) from error
    return Comparison(subject, sides, rows, bad, spoilt, time.perf_counter() - begin)


def judged(
    subject: Subject, sides: Sequence[Side], results: Mapping[str, Results]
) -> tuple[list[Row], dict[str, Results]]:
    """Compare all that can be compared.

    Args:
        subject: what was computed.
        sides: who computed it, the reference first.
        results: of every side by its name, as `work.results` yields them.

    Returns:
        A row for every two tensors, and the results without the conditions among them.
    """
    computed: dict[str, Results] = {}
    conditions: dict[str, float] = {}
    for name, mine in results.items():
        computed[name], known = conditioning.split(mine)
        conditions |= known
    return list(judge.rows(subject, sides, computed, conditions)), computed
