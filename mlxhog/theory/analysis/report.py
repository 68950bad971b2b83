"""An analysis as people read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlxhog.config.quantities import format_count
from mlxhog.report.table import Section
from mlxhog.theory.analysis.blocks import ELEMENT, LINE, ROW, STRIPE
from mlxhog.theory.analysis.conditions import WHOLE
from mlxhog.theory.analysis.conflicts import BlockConflicts
from mlxhog.theory.analysis.result import Analysis
from mlxhog.theory.analysis.sampling import EXACT, LARGE, NEGLIGIBLE, WRITTEN
from mlxhog.theory.bounds import Bound
from mlxhog.theory.estimators import Estimate


def sections(found: Analysis) -> Iterator[Section]:
    """Arrange an analysis for `mlxhog.report.table.show`."""
    yield Section(
        f"{found.title}: {format_count(found.parameters)} parameters, {found.backend}, "
        f"{found.measured.samples} gradients at {found.at}",
        notes=[
            f"an update is one batch of {found.sequences} x {found.seq_len} tokens; an epoch has "
            f"{found.updates_per_epoch:,}",
            *found.notes,
        ],
    )
    yield _conflicts(found)
    yield _embedding(found)
    yield _staleness(found)
    yield _theorems(found)
    yield Section("advice", notes=list(_advice(found)))


def _conflicts(found: Analysis) -> Section:
    rows = []
    for one in found.measured.blocks:
        elements = one.elements
        rows.append(
            (
                f"{one.block.name} {one.block.cell or ''}".rstrip(),
                f"{one.block.parameters:,}",
                f"{elements.omega.value:,.0f} ({elements.omega.value / elements.groups:.0%})",
                _number(elements.delta),
                _number(elements.rho),
                _number(elements.p_conf),
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
    written = any(one.counted == WRITTEN for one in found.measured.blocks)
    what = "elements of the gradient that are not exactly zero"
    if written:
        what = "elements that are written of each step"
    return Section(
        f"do two updates meet? {what}", header, rows,
        [*_dense(found.measured.blocks), *_negligible(found.measured.blocks)],
    )  # fmt: skip


def _dense(blocks: Sequence[BlockConflicts]) -> Iterator[str]:
    full = [one for one in blocks if one.elements.mean_groups > 0.5 * one.elements.groups]
    names = [one.block.name for one in full if one.elements.dense]
    if names:
        yield (
            f"dense: in {_listed(names)} any two updates meet (Delta = rho = p_conf = 1 in every "
            "sample), so nothing about these blocks is sparse"
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


def _negligible(blocks: Sequence[BlockConflicts]) -> Iterator[str]:
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


def _embedding(found: Analysis) -> Section:
    rows = found.embedding
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


def _staleness(found: Analysis) -> Section:
    notes = []
    seen = found.seen
    if seen is None:
        notes.append(
            f"no run was watched; bounds are taken at a lag of {found.lag.largest:g}, which equal "
            "workers would have"
        )
    else:
        ages = "".join(
            f", {share:.0%} of steps at most {age}"
            for share in (0.5, 0.99)
            if (age := seen.quantile(share)) is not None
        )
        notes.append(
            f"{seen.steps} steps of {seen.workers} workers ({seen.source}, write {seen.write}): "
            f"{seen.mean:.2f} updates by others between read and write on average{ages}, "
            f"{seen.largest} at most"
        )
        if not found.lag.seen:
            notes.append(
                f"one worker is never stale; bounds are taken at a lag of {found.lag.largest:g}"
            )
        lost = seen.lost_update_rate
        notes.append(
            "lost updates: not measured"
            if lost is None
            else f"lost updates: {lost:.3g} of {seen.increments:,} increments that were counted"
        )
    aged = ", ".join(f"{age.lag}: {age.cosine:.2f}" for age in found.ages)
    notes.append(
        "cosine of a batch's gradient with its own so many updates later (steps of full lr): "
        + aged
    )
    rows = [
        (one.name, f"{one.steps:,}", f"{one.mean:.2f}", *map(str, (one.p50, one.p99, one.max)))
        for one in (() if seen is None else seen.by_worker)
        if one.steps
    ]
    header = ("worker", "steps", "mean", "median", "99 %", "largest")
    return Section("how late are updates? counted in updates by others", header, rows, notes)


def _theorems(found: Analysis) -> Section:
    by: dict[str, dict[str, Bound]] = {}
    for rule in found.conditions:
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
        "block", "step by 4.1", f"penalty at {found.lag.largest:g}", "near-serial to", "n^(1/4)",
        "n/(2 Dbar)", "assumptions that hold",
    )  # fmt: skip
    notes = [next(iter(by.values()))["proposition 4.1"].words]
    for (needs, holds, why), blocks in missing.items():
        of = "" if len(blocks) == len(by) else f" (in {_listed(blocks)})"
        fails = "is not met" if holds is False else "may be met or not"
        notes.append(f"{needs}: {fails}{of}" + (f", {why}" if holds is False else ""))
    constants = found.constants
    notes.append(
        "seen at these parameters, so true values may be larger: M "
        f"{constants.largest_gradient:.3g} (longest gradient), "
        f"L {constants.smoothness:.3g} (its fastest change)"
    )
    notes += [f"{bound.name}, as far as that L goes: {bound.words}" for bound in whole.values()]
    notes.append(
        "lags are in updates; these numbers order problems, they limit no number of workers"
    )
    return Section("what the theorems say", header, rows, notes)


def _advice(found: Analysis) -> Iterator[str]:
    for one in found.advice:
        flags = f"  [{one.flags}]" if one.flags else ""
        yield f"- {one.topic}: {one.recommend}{flags}"
        yield f"    because {one.because}"


def _number(estimate: Estimate) -> str:
    return f"{estimate.value:.3g}"


def _listed(names: Sequence[str]) -> str:
    """Spell names, and long lists by their ends.

    >>> _listed(["a", "b"])
    'a, b'
    """
    if len(names) <= 4:
        return ", ".join(names)
    return f"{names[0]}, {names[1]}, .. {names[-1]} ({len(names)} blocks)"
