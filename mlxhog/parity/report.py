"""A comparison as people read it, and as programs do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxhog.errors import ConfigError
from mlxhog.parity.compare import Row
from mlxhog.parity.subject import Results
from mlxhog.report.table import Failure, Section


def sections(
    title: str, rows: Sequence[Row], notes: Sequence[str], *, everything: bool
) -> list[Section]:
    """Arrange rows for `mlxhog.report.table.show`.

    Args:
        title: what was compared.
        rows: of all tensors.
        notes: lines for below.
        everything: a line for every tensor; else for the worst of each kind, over all sides that
            are compared with the same one, and for those that fail, up to `MOST_FAILURES` a kind.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((_judge(row), _group(row)), []).append(row)
    lines = []
    for group in groups.values():
        lines += [_line(row, 1) for row in group] if everything else _worst(group)
    failed = sum(not row.ok for row in rows)
    ending = f"all {len(rows)} agree"
    if failed:
        ending = Failure(f"FAILED: {failed} of {len(rows)} disagree")
    header = ("", "what", "side", "against", "max abs", "max rel", "allowed", "at")
    return [Section(title, header, lines, [*notes, ending])]


MOST_FAILURES = 4  # the JSON has all


def _worst(group: Sequence[Row]) -> list[tuple[str, ...]]:
    bad = [row for row in group if not row.ok]
    good = [row for row in group if row.ok]
    shown = [(row, 1) for row in sorted(bad, key=lambda row: -row.pressure)[:MOST_FAILURES]]
    if good:
        shown.append((max(good, key=lambda row: row.pressure), len(good)))
    return [_line(row, count) for row, count in shown]


def _judge(row: Row) -> str:
    """Who judges, where the forms of one backend count as one."""
    return _whom(row).partition("+")[0]


def _whom(row: Row) -> str:
    return "itself" if row.a == row.b else row.b


def _group(row: Row) -> str:
    """Return the kind of a row, with the form or rule that it is about."""
    words = row.what.split("/")
    return "/".join(word for word in words[:2] if word in _GROUPS or word == row.kind) or row.kind


_GROUPS = ("stepwise", "sgd", "momentum", "adamw", "parallel", "chunkwise", "recurrent", "sequence")


def _line(row: Row, count: int) -> tuple[str, ...]:
    """A row as cells; `count` says for how many it stands."""
    place = f"[{', '.join(map(str, row.where))}]" if row.where else ""
    tensor = row.what.removeprefix(_group(row)).lstrip("/")
    at = f"{tensor}{place}"
    return (
        "PASS" if row.ok else "FAIL",
        f"{_group(row)} x{count}" if count > 1 else _group(row),
        row.a,
        _whom(row),
        _number(row.max_abs),
        _number(row.max_rel),
        _number(row.tolerance),
        at if row.max_abs is not None else f"{at} {row.reason}",
    )


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.1e}"


def describe(row: Row) -> str:
    """Say in one line what disagrees."""
    where = f"[{', '.join(map(str, row.where))}]" if row.where else ""
    whom = "itself over the whole sequence" if row.b == row.a else row.b
    if row.max_abs is None:
        values = f" ({row.got} and {row.wanted})" if row.where else ""
        return f"{row.what}{where}: {row.a} and {whom}: {row.reason}{values}"
    unit = f" {row.unit}" if row.unit else ""
    return (
        f"{row.what}{where}: {row.a} has {row.got:.9g} and {whom} {row.wanted:.9g}, "
        f"{row.max_abs:.2g}{unit} apart, allowed {row.tolerance:.2g}"
    )


def check_place(path: Path) -> None:
    """Refuse a file that `save` could not write, before anything is computed for it.

    Raises:
        ConfigError: it is a directory, or its directory is missing or cannot be written into.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"--save {path} is a directory; name a file in it, like arrays.npz")
        part = _part(path)
        part.touch()
        part.unlink()
    except OSError as error:
        raise ConfigError(
            f"--save {path}: {error.strerror or error}; name a file in a directory that is there "
            "and can be written into"
        ) from error


def save(path: Path, computed: Mapping[str, Results], recorded: Mapping[str, Results]) -> None:
    """Write every array as SIDE/NAME into an uncompressed .npz file, which appears whole.

    Raises:
        OSError: the file cannot be written.
    """
    arrays: dict[str, Any] = {
        f"{side}/{name}": value
        for side, results in (*computed.items(), *recorded.items())
        for name, value in results.items()
    }
    part = _part(path)
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
