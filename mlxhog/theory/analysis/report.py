"""The result of `mlxhog analyze`: as JSON, and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from mlxhog.base.quantities import format_count
from mlxhog.report.table import AnswerNote, Section
from mlxhog.theory.analysis.advice import Analysis, advise, verdict
from mlxhog.theory.bounds import WHOLE, Bound


def to_json(of: Analysis) -> dict[str, Any]:
    """Return what `analyze --json` prints."""
    return {
        "answer": verdict(of),
        **of.about,
        "blocks": [one.to_json() for one in of.blocks],
        "embedding": of.rows[0],
        "tables": list(of.rows[1:]),
        "gradients": {**of.gradients, "ageing": [one._asdict() for one in of.stale_gradients]},
        "staleness": None if of.observed is None else asdict(of.observed),
        "lag": of.lag._asdict(),
        "bounds": [one.to_json() for one in of.bounds],
        "advice": [asdict(one) for one in advise(of)],
        "notes": list(of.notes),
        "seconds": of.seconds,
    }


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
    if everything:
        yield from _tables(of)
    else:
        advice.append("--all shows the measurements, the theorems' bounds, and reasons")
    yield Section("advice", notes=advice)


def _table(title: str, rows: Iterable[Mapping[str, str]], notes: Iterable[str] = ()) -> Section:
    rows = list(rows)
    header = [*rows[0]] if rows else []
    return Section(title, header, [[*row.values()] for row in rows], [*notes])


def _tables(of: Analysis) -> Iterator[Section]:
    yield _table(
        "do two updates meet? elements that updates touch",
        (
            {
                "block": f"{one.block.name} {one.block.cell or ''}".rstrip(),
                "parameters": f"{one.block.parameters:,}",
                "Omega": f"{one.omega:,}",
                "touched": f"{one.mean / one.block.parameters:.0%}",
                **{k: f"{v:.3g}" for k, v in (("Delta", one.delta), ("rho", one.rho))},
                "p_conf": f"{one.p_conf:.3g}",
                "95 % of it": "{:.2f}-{:.2f}".format(*one.interval),
                "never": f"{one.untouched:,}",
            }
            for one in of.blocks
        ),
        [
            "touched: of the elements, by an update on average; never: by no sampled update",
            "Delta = rho = p_conf = 1: any two updates met, so nothing about the block is sparse",
        ],
    )
    yield _table(
        f"rows of the embedding that a batch looks up, in {of.rows[0]['batches']:,} batches",
        (
            {"hottest": one["text"], "id": str(one["id"]), "in batches": f"{one['share']:.1%}"}
            for one in of.rows[0]["hottest"]
        ),
    )
    yield _table(
        "do two updates meet? rows, of the embedding and of tables by the order of their n-grams",
        (
            {
                "": one["name"],
                **{k: f"{one[k.lower()]:,}" for k in ("rows", "Omega", "never")},
                **{k: f"{one[k.lower()]:.4g}" for k in ("Delta", "rho", "p_conf")},
                "but hottest": f"{one['without_hottest']:.4g}",
            }
            for one in of.rows
        ),
        ["but hottest: p_conf without the hottest rows"],
    )
    notes = [f"bounds are for a lag of {of.lag.largest:g}"]
    seen, workers = of.observed, []
    if seen is not None:
        workers = [seen.all, *seen.by_worker]
        lost = "not measured"
        if seen.lost_update_rate is not None:
            lost = f"{seen.lost_update_rate:.3g} of {seen.increments:,} counted increments"
        notes.append(
            f"of {seen.workers} workers ({seen.source}, write {seen.write}); lost updates: {lost}"
        )
    each = ", ".join(f"{one.lag}: {one.cosine:.2f}" for one in of.stale_gradients)
    notes.append(f"cosine of a batch's gradient with its own some full steps later: {each}")
    yield _table(
        "how late are updates? counted in updates by others",
        (
            {"worker": one.name, "steps": f"{one.steps:,}", "mean": f"{one.mean:.2f}",
             "median": str(one.p50), "99 %": str(one.p99), "largest": str(one.max)}
            for one in workers
        ),
        notes,
    )  # fmt: skip
    yield _theorems(of)


def _theorems(of: Analysis) -> Section:
    by: dict[str, dict[str, Bound]] = {}
    for one in of.bounds:
        by.setdefault(one.block, {})[one.name] = one
    whole, rows = by.pop(WHOLE), []
    missing: dict[str, list[str]] = {}
    for block, rules in by.items():
        assumed = rules["penalty"].assumptions
        for each in assumed:
            if each.holds is not True:
                fails = f"does not hold, {each.why}" if each.holds is False else "is unknown"
                missing.setdefault(f"{each.needs}: {fails}", []).append(block)
        rows.append(
            {
                "block": block,
                f"penalty at {of.lag.largest:g}": f"{rules['penalty'].values['penalty']:.3g}",
                "n^(1/4)": f"{rules['n^(1/4)'].values['largest_tau']:.3g}",
                "n/(2 Dbar)": f"{rules['perturbed iterate'].values['largest_tau']:.3g}",
                "assumptions that hold":
                    f"{sum(each.holds is True for each in assumed)} of {len(assumed)}",
            }
        )  # fmt: skip
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
    return _table("bounds of the theorems", rows, notes)
