"""The result of `mlxhog analyze`: as JSON, as tables, and as a figure for every block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlxhog.files.quantities import format_count
from mlxhog.report.charts import LIGHT, blank, png, style, title
from mlxhog.report.table import AnswerNote, Section
from mlxhog.theory.analysis.advice import Advice, Evidence, verdict
from mlxhog.theory.analysis.conditions import WHOLE, Constants
from mlxhog.theory.analysis.conflicts import BlockConflicts, ConflictMeasurement, RowStatistics
from mlxhog.theory.analysis.sampling import (
    ELEMENT,
    EXACT,
    GRAINS,
    LARGE,
    LINE,
    NEGLIGIBLE,
    ROW,
    STRIPE,
    WRITTEN,
)
from mlxhog.theory.analysis.tables import TableConflicts
from mlxhog.theory.bounds import Bound
from mlxhog.theory.supports import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# -- the result ------------------------------------------------------------------------------------


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
        constants: M and L.
        evidence: the other measurements, and the theorems' rules.
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
    constants: Constants
    evidence: Evidence
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
            "blocks": [_block_json(one, self.updates_per_epoch) for one in self.measured.blocks],
            "embedding": asdict(evidence.embedding),
            "tables": [asdict(one) for one in evidence.tables],
            "gradients": {
                "mean_loss": float(self.measured.losses.mean()),
                "mean_norm": float(self.measured.norms.mean()),
                **asdict(self.constants),
                "ageing": [asdict(one) for one in evidence.stale_gradients],
            },
            "staleness": None if evidence.observed is None else evidence.observed.to_json(),
            "lag": asdict(evidence.lag),
            "bounds": [one.to_json() for one in evidence.conditions],
            "advice": [asdict(one) for one in self.advice],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def _block_json(one: BlockConflicts, updates: int) -> dict[str, Any]:
    """Return one block: the paper's numbers first, those of coarser grains below `grains`."""
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
    if not everything:
        where = "--all shows the measurements, the theorems' bounds, and reasons"
        yield Section("advice", notes=[*_short_advice(analysis), where])
        return
    yield _conflicts_section(analysis)
    yield _embedding_section(analysis.evidence.embedding)
    if analysis.evidence.tables:
        yield _tables_section(analysis.evidence.tables)
    yield _staleness_section(analysis.evidence)
    yield _theorems_section(analysis)
    yield Section("advice", notes=list(_advice_lines(analysis)))


def _conflicts_section(analysis: Analysis) -> Section:
    rows = []
    for one in analysis.measured.blocks:
        elements = one.elements
        rows.append(
            (
                f"{one.block.name} {one.block.cell or ''}".rstrip(),
                f"{one.block.parameters:,}",
                f"{elements.omega.value:,.0f} ({elements.omega.value / elements.groups:.0%})",
                _format_estimate(elements.delta),
                _format_estimate(elements.rho),
                _format_estimate(elements.p_conf),
                f"{elements.p_conf.low:.2f}-{elements.p_conf.high:.2f}",
                *(
                    f"{one.by[one.counted, grain].p_conf.value:.3g}"
                    for grain in (LINE, STRIPE, ROW)
                ),
            )
        )
    header = (
        "block", "parameters", "Omega", "Delta", "rho", "p_conf", "95 % of it", "in lines",
        "in stripes", "in rows",
    )  # fmt: skip
    written = any(one.counted == WRITTEN for one in analysis.measured.blocks)
    counted = "written elements of each step" if written else "non-zero elements of the gradient"
    return Section(
        f"do two updates meet? {counted}", header, rows,
        [*_dense_notes(analysis.measured.blocks), *_negligible_notes(analysis.measured.blocks)],
    )  # fmt: skip


def _dense_notes(blocks: Sequence[BlockConflicts]) -> Iterator[str]:
    full = [one for one in blocks if one.elements.mean_groups > 0.5 * one.elements.groups]
    names = [one.block.name for one in full if one.elements.dense]
    if names:
        yield (
            f"dense: in {_list_names(names)} any two updates meet (Delta = rho = p_conf = 1 in "
            "every sample), so nothing about these blocks is sparse"
        )
    for one in blocks:
        if one.elements.dense and one not in full:
            share = one.elements.mean_groups / one.elements.groups
            yield (
                f"{one.block.name}: an update touches {share:.1%} of its elements, yet any two "
                "meet, in elements that all of them touch"
            )
    for one in blocks:
        untouched = one.by[EXACT, ELEMENT].untouched
        if untouched:
            yield (
                f"{one.block.name}: {untouched:,} of {one.block.parameters:,} elements were zero "
                "in every sampled gradient"
            )


def _negligible_notes(blocks: Sequence[BlockConflicts]) -> Iterator[str]:
    changed = [
        one
        for one in blocks
        if one.by[LARGE, ELEMENT].p_conf.value != one.by[EXACT, ELEMENT].p_conf.value
        or one.by[LARGE, ELEMENT].delta.value != one.by[EXACT, ELEMENT].delta.value
    ]
    shares = [
        one.by[LARGE, ELEMENT].mean_groups / one.by[EXACT, ELEMENT].mean_groups
        for one in blocks
        if one.by[EXACT, ELEMENT].mean_groups
    ]
    if not changed:
        yield (
            f"leaving out elements below {NEGLIGIBLE:g} of the block's largest changes none of "
            f"these (at least {min(shares, default=1.0):.2%} of the elements stay)"
        )
    for one in changed:
        large = one.by[LARGE, ELEMENT]
        yield (
            f"{one.block.name} without elements below {NEGLIGIBLE:g} of its largest: Delta "
            f"{large.delta.value:.3g}, rho {large.rho.value:.3g}, p_conf {large.p_conf.value:.3g}"
        )


def _embedding_section(rows: RowStatistics) -> Section:
    counted = "all batches of an epoch" if rows.whole_epoch else f"{rows.batches:,} batches"
    table = [
        (token.text, str(token.id), f"{token.share:.1%}")
        for token in rows.hottest
    ]  # fmt: skip
    return Section(
        f"rows of the embedding that a batch looks up, counted over {counted}",
        ("hottest", "id", "in batches"),
        table,
        [
            f"Omega {rows.omega} of {rows.rows} rows ({rows.mean_rows:.1f} on average), Delta "
            f"{rows.delta:.4g}, rho {rows.rho:.4g}, p_conf {rows.p_conf:.4g}; without these "
            f"{len(rows.hottest)} rows p_conf {rows.without_hottest:.4g}; {rows.never} rows were "
            "never touched",
        ],
    )


def _tables_section(tables: Sequence[TableConflicts]) -> Section:
    rows = [
        (
            str(one.order),
            f"{one.rows:,}",
            f"{one.omega:,}",
            f"{one.delta:.4g}",
            f"{one.rho:.4g}",
            f"{one.p_conf:.4g}",
            f"{one.shared:.1%}",
            f"{one.never:,}",
        )
        for one in tables
    ]
    header = ("order", "rows", "Omega", "Delta", "rho", "p_conf", "shared", "never touched")
    note = (
        f"counted in rows, over {tables[0].batches:,} batches; shared: the part of its rows that a "
        "batch has in common with the next"
    )
    return Section("tables of n-grams: do two updates meet?", header, rows, [note])


def _staleness_section(evidence: Evidence) -> Section:
    notes = []
    observed = evidence.observed
    if observed is None:
        notes.append(
            f"no run was measured; bounds are for a lag of {evidence.lag.largest:g}, that of "
            "equal workers"
        )
    else:
        quantiles = "".join(
            f", {share:.0%} of steps at most {lag}"
            for share in (0.5, 0.99)
            if (lag := observed.quantile(share)) is not None
        )
        notes.append(
            f"{observed.steps} steps of {observed.workers} workers ({observed.source}, write "
            f"{observed.write}): "
            f"{observed.mean:.2f} updates by others between read and write on average{quantiles}, "
            f"{observed.largest} at most"
        )
        if not evidence.lag.seen:
            notes.append(
                f"one worker is never stale; bounds are for a lag of {evidence.lag.largest:g}"
            )
        lost = observed.lost_update_rate
        notes.append(
            "lost updates: not measured"
            if lost is None
            else f"lost updates: {lost:.3g} of {observed.increments:,} increments that were counted"
        )
    cosines = ", ".join(f"{one.lag}: {one.cosine:.2f}" for one in evidence.stale_gradients)
    notes.append(
        "cosine of a batch's gradient with that of the same batch some updates later (steps of "
        f"full lr): {cosines}"
    )
    if evidence.tables:
        of_tables = ", ".join(
            f"{one.lag}: {one.table_cosine:.2f}" for one in evidence.stale_gradients
        )
        notes.append(f"the same of the gradients of tables: {of_tables}")
    rows = [
        (one.name, f"{one.steps:,}", f"{one.mean:.2f}", *map(str, (one.p50, one.p99, one.max)))
        for one in (() if observed is None else observed.by_worker)
        if one.steps
    ]
    header = ("worker", "steps", "mean", "median", "99 %", "largest")
    return Section("how late are updates? counted in updates by others", header, rows, notes)


def _theorems_section(analysis: Analysis) -> Section:
    by: dict[str, dict[str, Bound]] = {}
    for rule in analysis.evidence.conditions:
        by.setdefault(rule.block, {})[rule.bound.name] = rule.bound
    whole = by.pop(WHOLE)
    rows = []
    missing: dict[tuple[str, bool | None, str], list[str]] = {}
    for block, rules in by.items():
        assumed = rules["proposition 4.1"].assumptions
        for one in assumed:
            if one.holds is not True:
                missing.setdefault((one.needs, one.holds, one.why), []).append(block)
        rows.append(
            (
                block,
                "none",
                f"{rules['penalty'].values['penalty']:.3g}",
                f"{rules['near-serial'].values['largest_tau']:.2g}",
                f"{rules['n^(1/4)'].values['largest_tau']:.3g}",
                f"{rules['perturbed iterate'].values['largest_tau']:.3g}",
                f"{sum(one.holds is True for one in assumed)} of {len(assumed)}",
            )
        )
    header = (
        "block", "step by 4.1", f"penalty at {analysis.evidence.lag.largest:g}", "near-serial to",
        "n^(1/4)", "n/(2 Dbar)", "assumptions that hold",
    )  # fmt: skip
    notes = [next(iter(by.values()))["proposition 4.1"].words]
    for (needs, holds, why), blocks in missing.items():
        of = "" if len(blocks) == len(by) else f" (in {_list_names(blocks)})"
        fails = "does not hold" if holds is False else "is unknown"
        notes.append(f"{needs}: {fails}{of}" + (f", {why}" if holds is False else ""))
    constants = analysis.constants
    notes.append(
        "estimates at these parameters, so true values may be larger: M "
        f"{constants.largest_gradient:.3g} (longest gradient), "
        f"L {constants.smoothness:.3g} (its fastest change)"
    )
    notes += [f"{bound.name}, with that L: {bound.words}" for bound in whole.values()]
    notes.append("lags are in updates; they order problems and limit no number of workers")
    return Section("bounds of the theorems", header, rows, notes)


def _short_advice(analysis: Analysis) -> Iterator[str]:
    for one in analysis.advice:
        yield f"- {one.topic}: {one.recommend}{f'  [{one.flags}]' if one.flags else ''}"


def _advice_lines(analysis: Analysis) -> Iterator[str]:
    for one, line in zip(analysis.advice, _short_advice(analysis), strict=True):
        yield line
        yield f"    because {one.because}"


def _format_estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.3g}"


def _list_names(names: Sequence[str]) -> str:
    """Join names; of a long list only its ends.

    >>> _list_names(["a", "b"])
    'a, b'
    """
    if len(names) <= 4:
        return ", ".join(names)
    return f"{names[0]}, {names[1]}, .. {names[-1]} ({len(names)} blocks)"


# -- figures: share of a block that updates touch, and conflicts -----------------------------------

QUANTITIES = (("p_conf", "p_conf"), ("delta", "Delta"), ("rho", "rho"))


def plots(analysis: Analysis) -> Iterator[tuple[str, bytes]]:
    """Yield (name, PNG file) of every block.

    Raises:
        EnvironmentLacks: see `charts.require`, to be called before.
    """
    for one in analysis.measured.blocks:
        yield f"block-{one.block.name.replace(' ', '-')}", png(_draw_block(analysis, one))


def _draw_block(analysis: Analysis, one: BlockConflicts) -> Figure:
    """Left: shares with their intervals, per grain. Right: shares that a gradient touches."""
    figure = blank(LIGHT, 9.0, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for axes in (left, right):
        style(axes, LIGHT)
    positions = range(len(GRAINS))
    by_grain = [one.by[one.counted, grain] for grain in GRAINS]
    for number, (name, label) in enumerate(QUANTITIES):
        estimates = [getattr(here, name) for here in by_grain]
        values = [estimate.value for estimate in estimates]
        below = [max(0.0, estimate.value - estimate.low) for estimate in estimates]
        above = [max(0.0, estimate.high - estimate.value) for estimate in estimates]
        left.errorbar(
            [position + 0.2 * (number - 1) for position in positions],
            values,
            yerr=[below, above],
            fmt="os^"[number],
            color=LIGHT.inks[number],
            capsize=3,
            label=label,
        )
    left.set_xticks(list(positions), GRAINS)
    left.set_ylim(-0.03, 1.05)
    left.set_ylabel("share of updates, with 95 % intervals")
    left.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    title(left, LIGHT, f"{one.block.name}: {one.block.parameters:,} parameters")
    touched = [here.mean_groups / here.groups for here in by_grain]
    right.bar(list(positions), touched, color=LIGHT.inks[2], width=0.6)
    right.set_xticks(list(positions), GRAINS)
    right.set_ylim(0, 1.05)
    right.set_ylabel("share of the block that an update touches")
    title(right, LIGHT, f"{analysis.measured.samples} gradients")
    return figure
