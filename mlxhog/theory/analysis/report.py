"""The result of `mlxhog analyze`: as JSON, as tables, and as a figure for every block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlxhog.base.quantities import format_count
from mlxhog.report.charts import LIGHT, blank, png, style, title
from mlxhog.report.table import AnswerNote, Section
from mlxhog.theory.analysis.advice import Advice, Evidence, verdict
from mlxhog.theory.analysis.conflicts import BlockConflicts, ConflictMeasurement, RowConflicts
from mlxhog.theory.bounds import WHOLE, Bound


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All measurements, and the conclusions.

    Attributes:
        title: of the model.
        parameters: their number.
        backend: that computed the gradients.
        at: source of the parameters.
        updates_per_epoch: |E|.
        sequences: in one update.
        seq_len: tokens of each.
        measured: conflicts of the blocks, losses and norms.
        largest_gradient: M, of the theorems.
        smoothness: L.
        evidence: the other measurements, and the theorems' bounds.
        rows: that batches look up, of the embedding and then of tables of n-grams.
        advice: recommendations.
        notes: remarks for the user.
        seconds: that the analysis took.
    """

    title: str
    parameters: int
    backend: str
    at: str
    updates_per_epoch: int
    sequences: int
    seq_len: int
    measured: ConflictMeasurement
    largest_gradient: float
    smoothness: float
    evidence: Evidence
    rows: tuple[RowConflicts, ...]
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return what `analyze --json` prints."""
        evidence = self.evidence
        return {
            "subject": self.title,
            "parameters": self.parameters,
            "backend": self.backend,
            "at": self.at,
            "samples": self.measured.samples,
            "updates_per_epoch": self.updates_per_epoch,
            "sequences_per_update": self.sequences,
            "seq_len": self.seq_len,
            "blocks": [one.to_json(self.updates_per_epoch) for one in self.measured.blocks],
            "embedding": self.rows[0],
            "tables": list(self.rows[1:]),
            "gradients": {
                "mean_loss": float(self.measured.losses.mean()),
                "mean_norm": float(self.measured.norms.mean()),
                "largest_gradient": self.largest_gradient,
                "smoothness": self.smoothness,
                "ageing": [asdict(one) for one in evidence.stale_gradients],
            },
            "staleness": None if evidence.observed is None else evidence.observed.to_json(),
            "lag": asdict(evidence.lag),
            "bounds": [one.to_json() for one in evidence.bounds],
            "advice": [asdict(one) for one in self.advice],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


# -- tables ----------------------------------------------------------------------------------------


def sections(analysis: Analysis, *, everything: bool) -> Iterator[Section]:
    """Arrange an analysis for `mlxhog.report.table.show`.

    Args:
        analysis: the measurements.
        everything: whether all tables and reasons are shown, or the answer and the advice.
    """
    yield Section("", notes=[AnswerNote(verdict(analysis.evidence))])
    yield Section(
        f"{analysis.title}: {format_count(analysis.parameters)} parameters, {analysis.backend}, "
        f"{analysis.measured.samples} gradients at {analysis.at}",
        notes=[
            f"an update is one batch of {analysis.sequences} x {analysis.seq_len} tokens; an epoch "
            f"has {analysis.updates_per_epoch:,}",
            *analysis.notes,
        ],
    )
    advice = []
    for one in analysis.advice:
        advice.append(f"- {one.topic}: {one.recommend}{f'  [{one.flags}]' if one.flags else ''}")
        if everything:
            advice.append(f"    because {one.because}")
    if not everything:
        where = "--all shows the measurements, the theorems' bounds, and reasons"
        yield Section("advice", notes=[*advice, where])
        return
    yield _conflicts_section(analysis.measured.blocks)
    yield from _rows_sections(analysis.rows)
    yield _staleness_section(analysis.evidence)
    yield _theorems_section(analysis)
    yield Section("advice", notes=advice)


def _conflicts_section(blocks: Sequence[BlockConflicts]) -> Section:
    rows = [
        (
            f"{one.block.name} {one.block.cell or ''}".rstrip(),
            f"{one.block.parameters:,}",
            f"{one.omega:,}",
            f"{one.mean / one.block.parameters:.0%}",
            *(f"{each:.3g}" for each in (one.delta, one.rho, one.p_conf)),
            f"{one.low:.2f}-{one.high:.2f}",
            f"{one.untouched:,}",
        )
        for one in blocks
    ]
    header = (
        "block", "parameters", "Omega", "touched", "Delta", "rho", "p_conf", "95 % of it", "never",
    )  # fmt: skip
    notes = [
        "touched: of the elements, by an update on average; never: by no sampled update",
        "Delta = rho = p_conf = 1: any two updates met, so nothing about the block is sparse",
    ]
    return Section("do two updates meet? elements that updates touch", header, rows, notes)


def _rows_sections(counted: Sequence[RowConflicts]) -> Iterator[Section]:
    rows, *tables = counted
    yield Section(
        f"rows of the embedding that a batch looks up, counted over {rows['batches']:,} batches",
        ("hottest", "id", "in batches"),
        [(one["text"], str(one["id"]), f"{one['share']:.1%}") for one in rows["hottest"]],
    )
    names = ("rows", "omega", "delta", "rho", "p_conf", "without_hottest", "shared", "never")
    cells = [
        (str(one["name"]), *(f"{one[name]:.4g}" if isinstance(one[name], float)
                             else f"{one[name]:,}" for name in names))
        for one in counted
    ]  # fmt: skip
    yield Section(
        "do two updates meet? rows, of the embedding and of tables by the order of their n-grams",
        ("", "rows", "Omega", "Delta", "rho", "p_conf", "but hottest", "shared", "never"),
        cells,
        ["but hottest: p_conf without the hottest rows; shared: of a batch's rows with the next"],
    )


def _staleness_section(evidence: Evidence) -> Section:
    observed, notes = evidence.observed, [f"bounds are for a lag of {evidence.lag.largest:g}"]
    rows = []
    if observed is not None:
        rows = [
            (one.name, f"{one.steps:,}", f"{one.mean:.2f}", *map(str, (one.p50, one.p99, one.max)))
            for one in (observed.all, *observed.by_worker)
        ]
        lost = observed.lost_update_rate
        of = f"of {observed.increments:,} increments that were counted"
        notes.append(
            f"of {observed.workers} workers ({observed.source}, write {observed.write}); lost "
            f"updates: {'not measured' if lost is None else f'{lost:.3g} {of}'}"
        )
    for what, name in (("gradient", "cosine"), ("tables' gradient", "table_cosine")):
        cosines = [(one.lag, getattr(one, name)) for one in evidence.stale_gradients]
        if all(cosine is not None for _, cosine in cosines):
            each = ", ".join(f"{lag}: {cosine:.2f}" for lag, cosine in cosines)
            notes.append(f"cosine of a batch's {what} with its own some full steps later: {each}")
    header = ("worker", "steps", "mean", "median", "99 %", "largest")
    return Section("how late are updates? counted in updates by others", header, rows, notes)


def _theorems_section(analysis: Analysis) -> Section:
    by: dict[str, dict[str, Bound]] = {}
    for one in analysis.evidence.bounds:
        by.setdefault(one.block, {})[one.name] = one
    whole = by.pop(WHOLE)
    rows = []
    missing: dict[str, list[str]] = {}
    for block, rules in by.items():
        assumed = rules["penalty"].assumptions
        for each in assumed:
            if each.holds is not True:
                fails = f"does not hold, {each.why}" if each.holds is False else "is unknown"
                missing.setdefault(f"{each.needs}: {fails}", []).append(block)
        largest = (rules[name].values["largest_tau"] for name in ("n^(1/4)", "perturbed iterate"))
        holding = sum(each.holds is True for each in assumed)
        rows.append(
            (
                block,
                f"{rules['penalty'].values['penalty']:.3g}",
                *(f"{tau:.3g}" for tau in largest),
                f"{holding} of {len(assumed)}",
            )
        )
    header = (
        "block", f"penalty at {analysis.evidence.lag.largest:g}", "n^(1/4)",
        "n/(2 Dbar)", "assumptions that hold",
    )  # fmt: skip
    notes = [next(iter(by.values()))["proposition 4.1"].words]
    notes += [
        text + ("" if len(blocks) == len(by) else f" (in {', '.join(blocks)})")
        for text, blocks in missing.items()
    ]
    notes.append(
        f"M {analysis.largest_gradient:.3g} (longest gradient) and L {analysis.smoothness:.3g} "
        "(its fastest change) are those of the sample; true values may be larger"
    )
    notes += [f"{bound.name}, with that L: {bound.words}" for bound in whole.values()]
    return Section("bounds of the theorems", header, rows, notes)


def plots(analysis: Analysis) -> Iterator[tuple[str, bytes]]:
    """Yield (name, PNG file) of every block: its shares, with their intervals.

    Raises:
        EnvironmentLacks: see `charts.require`, to be called before.
    """
    for one in analysis.measured.blocks:
        figure = blank(LIGHT, 6.0, 3.6)
        axes = figure.subplots()
        style(axes, LIGHT)
        axes.plot(range(3), (one.p_conf, one.delta, one.rho), "o", color=LIGHT.inks[0])
        axes.vlines(0, one.low, one.high, color=LIGHT.inks[0])
        touched = one.mean / one.block.parameters
        axes.bar([3], [touched], color=LIGHT.inks[2], width=0.4)
        axes.set_xticks(range(4), ("p_conf", "Delta", "rho", "elements of an update"))
        axes.set_ylim(-0.03, 1.05)
        axes.set_ylabel("share, p_conf with its 95 % interval")
        title(axes, LIGHT, f"{one.block.name}: {one.block.parameters:,} parameters")
        yield f"block-{one.block.name.replace(' ', '-')}", png(figure)
