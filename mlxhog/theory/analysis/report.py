"""The result of `mlxhog analyze`: as JSON, and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from mlxhog.base.quantities import format_count
from mlxhog.report.table import AnswerNote, Section
from mlxhog.theory.analysis.advice import Analysis, advise, verdict
from mlxhog.theory.analysis.conflicts import BlockConflicts, RowConflicts
from mlxhog.theory.bounds import WHOLE, Bound


def to_json(of: Analysis) -> dict[str, Any]:
    """Return what `analyze --json` prints."""
    return {
        **of.about,
        "blocks": [one.to_json(of.about["updates_per_epoch"]) for one in of.blocks],
        "embedding": of.rows[0],
        "tables": list(of.rows[1:]),
        "gradients": {**of.gradients, "ageing": [one._asdict() for one in of.stale_gradients]},
        "staleness": None if of.observed is None else of.observed.to_json(),
        "lag": of.lag._asdict(),
        "bounds": [one.to_json() for one in of.bounds],
        "advice": [asdict(one) for one in advise(of)],
        "notes": list(of.notes),
        "seconds": of.seconds,
    }


# -- tables ----------------------------------------------------------------------------------------


def sections(of: Analysis, *, everything: bool) -> Iterator[Section]:
    """Arrange an analysis for `mlxhog.report.table.show`.

    Args:
        of: the measurements.
        everything: whether all tables and reasons are shown, or the answer and the advice.
    """
    about = of.about
    yield Section("", notes=[AnswerNote(verdict(of))])
    yield Section(
        f"{about['subject']}: {format_count(about['parameters'])} parameters, {about['backend']}, "
        f"{about['samples']} gradients at {about['at']}",
        notes=[
            f"an update is one batch of {about['sequences_per_update']} x {about['seq_len']} "
            f"tokens; an epoch has {about['updates_per_epoch']:,}",
            *of.notes,
        ],
    )
    advice = []
    for one in advise(of):
        advice.append(f"- {one.topic}: {one.recommend}{f'  [{one.flags}]' if one.flags else ''}")
        if everything:
            advice.append(f"    because {one.because}")
    if not everything:
        where = "--all shows the measurements, the theorems' bounds, and reasons"
        yield Section("advice", notes=[*advice, where])
        return
    yield _conflicts_section(of.blocks)
    yield from _rows_sections(of.rows)
    yield _staleness_section(of)
    yield _theorems_section(of)
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


def _staleness_section(of: Analysis) -> Section:
    observed, notes = of.observed, [f"bounds are for a lag of {of.lag.largest:g}"]
    rows = []
    if observed is not None:
        rows = [
            (one.name, f"{one.steps:,}", f"{one.mean:.2f}", *map(str, (one.p50, one.p99, one.max)))
            for one in (observed.all, *observed.by_worker)
        ]
        lost = "not measured"
        if observed.lost_update_rate is not None:
            lost = f"{observed.lost_update_rate:.3g} of {observed.increments:,} counted increments"
        notes.append(
            f"of {observed.workers} workers ({observed.source}, write {observed.write}); lost "
            f"updates: {lost}"
        )
    each = ", ".join(f"{one.lag}: {one.cosine:.2f}" for one in of.stale_gradients)
    notes.append(f"cosine of a batch's gradient with its own some full steps later: {each}")
    header = ("worker", "steps", "mean", "median", "99 %", "largest")
    return Section("how late are updates? counted in updates by others", header, rows, notes)


def _theorems_section(of: Analysis) -> Section:
    by: dict[str, dict[str, Bound]] = {}
    for one in of.bounds:
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
    penalty = f"penalty at {of.lag.largest:g}"
    header = ("block", penalty, "n^(1/4)", "n/(2 Dbar)", "assumptions that hold")
    notes = [next(iter(by.values()))["proposition 4.1"].words]
    notes += [
        text + ("" if len(blocks) == len(by) else f" (in {', '.join(blocks)})")
        for text, blocks in missing.items()
    ]
    longest, fastest = of.gradients["largest_gradient"], of.gradients["smoothness"]
    notes.append(
        f"M {longest:.3g} (longest gradient) and L {fastest:.3g} (its fastest change) are those of "
        "the sample; true values may be larger"
    )
    notes += [f"{bound.name}, with that L: {bound.words}" for bound in whole.values()]
    return Section("bounds of the theorems", header, rows, notes)
