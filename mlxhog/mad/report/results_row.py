"""Rows of results that people exchange: the candidates of a finished bench, as one JSON object.

`mlxhog mad bench --json` prints a row, `mlxhog mad table` merges rows of several people. Rows merge
if this version of mlxhog and of its generators made them, with the same suite, points and protocol.
A digest of the content shows an edit. It is no proof of the numbers; each candidate's command
repeats its runs on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlxhog.config.options import options, to_flag
from mlxhog.errors import ConfigError, shown
from mlxhog.files import plain_json
from mlxhog.mad.options import Protocol
from mlxhog.mad.report.leaderboard import candidate
from mlxhog.mad.report.ranking import Ranking, read_ranking
from mlxhog.mad.run import solved_accuracy
from mlxhog.mad.scores import CandidateScore, Select
from mlxhog.mad.study import study as studies
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.study import Study
from mlxhog.mad.tasks import GENERATOR_VERSION, find

FORMAT = 1
COMMON = ("suite", "tasks", "protocol", "points", "select", "settings")
"""Fields in which rows of one table agree."""
_STAMP = {"row": "a row of format", "mlxhog": "mlxhog", "generator": "generator"}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e12 < value < 1e12


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(v is None or _is_number(v) for v in value.values())


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("layers", "command", "status"), lambda value: isinstance(value, str)),
    **dict.fromkeys(("score", "seconds"), _is_number),
    **dict.fromkeys(
        ("interval", "fixed_score", "val_score"), lambda value: value is None or _is_number(value)
    ),
    **dict.fromkeys(("params", "state", "n_runs", "n_diverged", "n_failed"), _is_count),
    **dict.fromkeys(("tasks", "intervals", "solved", "acc_token", "ceiling"), _are_numbers),
    "seeds": lambda value: (
        _are_numbers(value) and all(seed.isdecimal() and len(seed) <= 10 for seed in value)
    ),
    "missing": lambda value: value == [],
}
"""Field of a candidate -> check of its value."""


def row_of(store: Store) -> dict[str, Any] | None:
    """Return the row of a study.

    None if runs are missing, or if its candidates shared an embedding: no command then repeats the
    runs of one of them.
    """
    study, ranking = studies.read(store), read_ranking(store)
    if ranking.lacking or study.share_embedding:
        return None
    measured = study.measured()
    protocol = {**measured.protocol, **study.protocol}
    optimizer = str(protocol["optimizer"])
    content = {
        **_stamp(),
        "suite": study.suite,
        "tasks": list(dict.fromkeys(find(one.task).short for one in measured.settings)),
        "protocol": {**protocol, "optimizer": optimizer},
        "points": list(measured.points),
        "select": study.select,
        "settings": digest([asdict(one) for one in measured.settings]),
        "fixed_lr": measured.fixed_lr,
        "solved_at": solved_accuracy(Protocol(**protocol).stop_accuracy),
        "seeds": list(study.seeds),
        "dim": measured.dim,
        "position": study.position,
        "workers": study.workers,
        "threads": study.threads,
        "candidates": [
            {**candidate(row), "command": command(study, row.candidate)} for row in ranking.rows
        ],
    }
    return {**content, "digest": digest(content)}


def _stamp() -> dict[str, object]:
    return {"row": FORMAT, "mlxhog": version("mlxhog"), "generator": GENERATOR_VERSION}


def digest(content: object) -> str:
    """Return the SHA-256, which neither the order of keys nor white space changes."""
    plain = json.dumps(plain_json.loads(plain_json.dumps(content)), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def command(study: Study, layers: str) -> str:
    """Return the command line that repeats the runs of one candidate on a CPU."""
    words = ["mlxhog", "mad", "bench", "--layers", layers, "--suite", study.suite]
    if study.tasks:
        words += ["--tasks", ",".join(find(task).short for task in study.tasks)]
    words += ["--seeds", ",".join(map(str, study.seeds)) + "," * (len(study.seeds) == 1)]
    if study.rates:
        words += ["--rates", ",".join(f"{rate!r}" for rate in study.rates)]
    if study.dim:
        words += ["--dim", str(study.dim)]
    if study.position != "none":
        words += ["--position", study.position]
    specs = options(Protocol)
    for name, value in study.protocol.items():
        if value is not None or name not in ("steps", "epochs"):  # either one empties the other
            # A number of the suite's optimizer, such as beta2, has no option of its own.
            spelt = specs[name].spell(value) if name in specs else value
            words += [to_flag(name), str(spelt)]
    workers = re.sub(r":\w+", ":cpu", study.workers)
    if workers != "torch:cpu":
        words += ["--workers" if "," in workers else "--backend", workers]
    if study.threads > 1:
        words += ["--threads", str(study.threads)]
    names = {Path(text.partition(" sha256:")[0]).name for text in study.plugin}
    words += [word for name in sorted(names) for word in ("--plugin", name)]
    return shlex.join(words)


def read_row(path: Path) -> dict[str, Any]:
    """Return the row of a file: of `mad bench --json`, or alone.

    Raises:
        ConfigError: the file has no row, or one of another version, or one that was edited.
    """
    try:
        content = plain_json.read(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if isinstance(content, dict) and "digest" not in content:
        if content.get("row", "") is None:
            raise ConfigError(
                f"{path} has no row: runs of its study are missing, or its candidates shared an "
                "embedding; mlxhog mad resume STUDY --json ends with the row of a whole study"
            )
        content = content.get("row")
    if not isinstance(content, dict) or not _STAMP.keys() <= content.keys():
        raise ConfigError(f"{path} has no row; write one with mlxhog mad bench --json >FILE")
    if content.get("digest") != digest({k: v for k, v in content.items() if k != "digest"}):
        raise ConfigError(
            f"{path} was edited: its content does not have its digest; take the original, or run "
            "its command again"
        )
    for name, value in _stamp().items():
        if content[name] != value:
            raise ConfigError(
                f"{path} was made by {_STAMP[name]} {shown(content[name])}, this is {value}: "
                "their scores do not compare; run its command with this one"
            )
    candidates = content.get("candidates")
    whole = _is_count(content.get("dim")) and content.keys() >= set(COMMON)
    if not whole or not isinstance(candidates, list) or not candidates:
        raise ConfigError(f"{path} lacks parts of a row; write one with mlxhog mad bench --json")
    for one in candidates:
        one = one if isinstance(one, dict) else {}  # it lacks everything
        wrong = [name for name, fits in _KINDS.items() if name not in one or not fits(one[name])]
        if wrong:
            raise ConfigError(
                f"{path} has a candidate with {wrong[0]} {shown(one.get(wrong[0]))}, which no "
                "mlxhog writes; leave it out"
            )
    return content


def merged(paths: Sequence[Path]) -> Ranking:
    """Return the candidates of several rows as one ranking; its facts have their commands.

    Raises:
        ConfigError: a file is refused by `read_row`, or its row is of another suite or protocol
            than the first one.
    """
    rows = {path: read_row(path) for path in dict.fromkeys(paths)}
    first = next(iter(rows))
    for path, row in rows.items():
        for name in COMMON:
            if row.get(name) != rows[first].get(name):
                raise ConfigError(
                    f"{path} has the {name} {shown(row.get(name))}, {first} "
                    f"{shown(rows[first].get(name))}: their scores do not compare; leave one out"
                )
    entries = [(path, row["dim"], one) for path, row in rows.items() for one in row["candidates"]]
    names = [f"{one['layers']}, width {dim}" for _, dim, one in entries]
    if len({dim for _, dim, _ in entries}) == 1:
        names = [one["layers"] for _, _, one in entries]
    select: Select = "val" if rows[first]["select"] == "val" else "test"
    scored = [
        (
            _score(one, f"{name}, {path.name}" if names.count(name) > 1 else name, select),
            one["command"],
        )
        for name, (path, _, one) in zip(names, entries, strict=True)
    ]
    scored.sort(key=lambda pair: (-pair[0].worth, pair[0].params, pair[0].candidate))
    return Ranking(
        study=", ".join(path.name for path in rows),
        suite=str(rows[first]["suite"]),
        rows=tuple(row for row, _ in scored),
        records=(),
        planned=None,
        facts=tuple((f"#{rank}", line) for rank, (_, line) in enumerate(scored, start=1)),
    )


def _score(entry: Mapping[str, Any], name: str, select: Select) -> CandidateScore:
    values = {
        field.name: entry[field.name] for field in fields(CandidateScore) if field.name in entry
    }
    seeds = {int(seed): score for seed, score in entry["seeds"].items()}
    layers = tuple(entry["layers"].split())
    values |= {"candidate": name, "layers": layers, "seeds": seeds, "best": (), "select": select}
    return CandidateScore(**values)
