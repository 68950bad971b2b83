"""From a study directory to its standing; reads the store only, whoever else is writing it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from mlxhog.errors import StudyError
from mlxhog.mad.protocol import Protocol
from mlxhog.mad.report.standing import Against, Standing
from mlxhog.mad.result import Point
from mlxhog.mad.run_config import GENERATOR_VERSION
from mlxhog.mad.scores import UNFINISHED, Row, scores
from mlxhog.mad.scores.best import Place, Select, placed
from mlxhog.mad.scores.ranks import spearman
from mlxhog.mad.study import study as studies
from mlxhog.mad.study.planning import Planning
from mlxhog.mad.study.record import Record
from mlxhog.mad.study.store import Store, is_study
from mlxhog.mad.study.study import Study
from mlxhog.mad.suites import Suite


def look(
    store: Store,
    *,
    select: Select | None = None,
    against: Store | None = None,
    curves: bool = False,
) -> Standing:
    """Return what is known of a study now.

    Args:
        store: of the study.
        select: rows whose accuracy chooses between optimiser points; None is the study's own.
        against: another study to compare the order with; None looks beside this one for the same
            study without a shared embedding, where this one shares.
        curves: whether to read the learning curves.

    Raises:
        StudyError: another version made the study, a line of it is damaged, or its runs have no
            validation rows to select by.
    """
    study = studies.read(store)
    measured = study.measured()
    protocol = Protocol(**{**measured.protocol, **study.protocol})
    select = select or study.select
    records = tuple(store.records())
    rows = scores(records, measured, select, study.seeds)
    chosen = _chosen(rows, records, measured)
    other = against if against is not None else _unshared(store, study)
    return Standing(
        study=store.name,
        suite=study.suite,
        rows=tuple(rows),
        records=records,
        curves=_curves(store, chosen.values()) if curves else {},
        planned=_planned(store, study, measured, rows),
        running=store.is_locked(),
        facts=_facts(study, measured, protocol, select, records),
        chosen=chosen,
        shared=study.share_embedding,
        against=None if other is None else _against(study, rows, other),
    )


def _chosen(
    rows: Iterable[Row], records: Iterable[Record], measured: Suite
) -> dict[str, tuple[Record, ...]]:
    places = placed(records, measured)
    return {
        row.candidate: tuple(
            places[row.candidate][
                Place(task=one.task, label=one.label, seed=one.seed, point=one.point)
            ]
            for one in row.best
        )
        for row in rows
    }


def _curves(store: Store, chosen: Iterable[Sequence[Record]]) -> dict[str, tuple[Point, ...]]:
    return {record.key: tuple(store.curve(record.key)) for runs in chosen for record in runs}


def _planned(store: Store, study: Study, measured: Suite, rows: Sequence[Row]) -> int:
    """Runs of a list or a grid, or of what another sampler has proposed so far.

    Those that a pruned candidate was spared do not count.
    """
    spared = sum(len(row.missing) for row in rows if row.status == "pruned")
    if not study.space or study.sampler == "grid":
        return Planning(study).total - spared
    proposed = {str(entry["candidate"]) for entry in store.proposals()}
    return len(proposed) * measured.runs * len(study.seeds) - spared


def _against(study: Study, rows: Sequence[Row], other: Store) -> Against:
    theirs = studies.read(other)
    scored = {
        row.candidate: row.score
        for row in scores(other.records(), theirs.measured(), "test", theirs.seeds)
        if row.status not in UNFINISHED
    }
    pairs = {
        row.candidate: (row.score, scored[row.candidate])
        for row in rows
        if row.status not in UNFINISHED and row.candidate in scored
    }
    here, there = zip(*pairs.values(), strict=True) if pairs else ((), ())
    return Against(
        study=other.name,
        shared=study.share_embedding and not theirs.share_embedding,
        spearman=spearman(here, there) if pairs else math.nan,
        pairs=pairs,
    )


def _unshared(store: Store, study: Study) -> Store | None:
    """The study beside this one that differs in nothing but its own embeddings."""
    if not study.share_embedding:
        return None
    wanted = replace(study, share_embedding=False).to_dict()
    for directory in sorted(Path(store.directory).parent.iterdir()):
        with contextlib.suppress(StudyError):  # a damaged one is not the one that is looked for
            if is_study(directory) and Store(directory).definition() == wanted:
                return Store(directory)
    return None


def _facts(
    study: Study,
    measured: Suite,
    protocol: Protocol,
    select: Select,
    records: Sequence[Record],
) -> tuple[tuple[str, str], ...]:
    """What was run, in words: the protocol, where it differs from the reference's."""
    points = "; ".join(
        ", ".join(f"{name} {value:g}" for name, value in point.items()) for point in measured.points
    )
    own = {
        name: value
        for name, value in asdict(protocol).items()
        if value is not None and not any(name in point for point in measured.points)
    }
    tasks = ", ".join(dict.fromkeys(setting.task for setting in measured.settings))
    hosts = sorted({record.host for record in records})
    found = [
        ("tasks", f"{tasks}: {len(measured.settings)} settings of suite {study.suite}"),
        ("optimiser points", points),
        ("seeds", ", ".join(map(str, study.seeds))),
        ("width", str(study.dim or measured.dim)),
        ("position", "" if study.position == "none" else study.position),
        ("protocol", ", ".join(f"{name} {value}" for name, value in own.items())),
        ("selected by", f"{select} rows"),
        ("trained by", f"{study.workers}, {study.threads} thread{'s' * (study.threads > 1)} each"),
        ("candidates from", study.sampler if study.space else "a list"),
        ("pruning", "on: runs may end at rungs" if study.prune else "off"),
        ("embedding", "shared by all candidates" if study.share_embedding else "each its own"),
        ("rows drawn by", f"generator {GENERATOR_VERSION} of mlxhog {version('mlxhog')}"),
        ("hosts", ", ".join(hosts)),
    ]
    return tuple((name, value) for name, value in found if value)
