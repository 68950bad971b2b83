"""What `mlxhog analyze` found, as people's tables and programs' JSON take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlxhog.theory.analysis.advice import Advice
from mlxhog.theory.analysis.ageing import Age
from mlxhog.theory.analysis.blocks import GRAINS
from mlxhog.theory.analysis.conditions import Condition, Constants, Lag
from mlxhog.theory.analysis.conflicts import BlockConflicts, Measured
from mlxhog.theory.analysis.embedding_rows import RowStatistics
from mlxhog.theory.analysis.observed import Observed


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that was found.

    Attributes:
        title: what was analyzed.
        parameters: of the model.
        backend: what computed the gradients.
        at: where the parameters came from.
        updates_per_epoch: |E|.
        sequences: in one update.
        seq_len: tokens of each.
        measured: conflicts of the blocks, losses and norms.
        embedding: rows of the embedding, counted.
        ages: what late gradients are worth.
        constants: M and L.
        lag: the staleness that rules were taken at.
        seen: the run it comes from.
        conditions: the theorems' rules.
        advice: what to do.
        notes: what the user should know about all this.
        seconds: that the analysis took.
    """

    title: str
    parameters: int
    backend: str
    at: str
    updates_per_epoch: int
    sequences: int
    seq_len: int
    measured: Measured
    embedding: RowStatistics
    ages: tuple[Age, ...]
    constants: Constants
    lag: Lag
    seen: Observed | None
    conditions: tuple[Condition, ...]
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return what `analyze --json` prints."""
        return {
            "subject": self.title,
            "parameters": self.parameters,
            "backend": self.backend,
            "at": self.at,
            "samples": self.measured.samples,
            "updates_per_epoch": self.updates_per_epoch,
            "sequences_per_update": self.sequences,
            "seq_len": self.seq_len,
            "blocks": [_block(one, self.updates_per_epoch) for one in self.measured.blocks],
            "embedding": self.embedding.to_json(),
            "gradients": {
                "mean_loss": float(self.measured.losses.mean()),
                "mean_norm": float(self.measured.norms.mean()),
                **asdict(self.constants),
                "ageing": [age.to_json() for age in self.ages],
            },
            "staleness": None if self.seen is None else self.seen.to_json(),
            "lag": asdict(self.lag),
            "bounds": [one.to_json() for one in self.conditions],
            "advice": [one.to_json() for one in self.advice],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def _block(one: BlockConflicts, updates: int) -> dict[str, Any]:
    """One block: the paper's numbers first, those of coarser grains below `grains`."""
    elements = one.elements.to_json()
    kinds: dict[str, Mapping[str, Any]] = {
        kind: {grain: one.by[kind, grain].to_json() for grain in GRAINS}
        for kind in dict.fromkeys(kind for kind, _ in one.by)
    }
    return {
        "name": one.block.name,
        "parameters": one.block.parameters,
        **{name: elements[name] for name in ("omega", "rho", "delta", "p_conf")},
        "mean_conflict_degree": elements["p_conf"] * (updates - 1),
        "updates_per_epoch": updates,
        "untouched": elements["untouched"],
        "row_sparse": one.block.row_sparse,
        "cell": one.block.cell,
        "counted": one.counted,
        "intervals": elements["intervals"],
        "grains": kinds,
    }
