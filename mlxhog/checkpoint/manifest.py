"""`state.json` of a checkpoint: the trainer's state, and size and SHA-256 of every file.

The model card is not listed. The manifest has a digest of itself.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxhog.base import plain_json, reading, typed
from mlxhog.base.durable import write_synced
from mlxhog.errors import CheckpointError, shown

FORMAT = 1
NAME = "state.json"
CARD = "README.md"  # the model card; not in the manifest, so that its reader may edit it
CARD_MARK = b"<!-- mlxhog convert --overwrite replaces this file; remove this line to keep it -->\n"
"""Mark of cards that may be replaced; another README.md is the user's."""
_TENSORS = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class _File:
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    step: int
    files: Mapping[str, _File]
    state: Mapping[str, Any]


def write(directory: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint's directory, after all its other files."""
    earlier = [read_order(path) for path in by_age(directory.parent)]
    paths = [path for path in sorted(directory.iterdir()) if path.name != CARD]
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, _digests(paths), strict=True)
    }
    order = 1 + max(earlier, default=0)
    content = {"format": FORMAT, "step": step, "order": order, "files": files, "state": state}
    record = json.loads(plain_json.dumps(content))
    record["sha256"] = _own_digest(record)
    write_synced(directory / NAME, plain_json.dumps(record, indent=1))


def read(directory: Path) -> dict[str, Any]:
    """Return the manifest: `step`, `state`, and `files`.

    Raises:
        CheckpointError: the manifest is missing, damaged, or of another format.
    """
    if not directory.is_dir():
        raise CheckpointError(f"no checkpoint {directory}: it is not a directory")
    path = directory / NAME
    if not path.is_file():
        raise CheckpointError(f"{directory} is not a checkpoint of mlxhog: it has no {NAME}")
    try:
        record = plain_json.loads(reading.read_small(path))
    except (OSError, ValueError) as error:
        raise damaged(directory, f"{NAME} cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not of format {FORMAT}; load it with its own mlxhog")
    if record.get("sha256") != _own_digest(record):
        raise damaged(directory, f"{NAME} does not match its digest")
    try:
        listed = typed.read(_Manifest, record).files
    except ValueError as error:
        raise damaged(directory, f"{NAME}: {error}") from error
    if outside := [name for name in listed if name != Path(name).name]:
        raise damaged(directory, f"{NAME} lists {shown(outside[0])}, which is not a file's name")
    return record


def verify(
    directory: Path, record: Mapping[str, Any], *, large: Iterable[str] | None = None
) -> None:
    """Compare sizes and digests of a checkpoint's files with its manifest.

    Of files of tensors only the digests of `large` are compared, which reads them; None is all.

    Raises:
        CheckpointError: a file is missing, changed, or not listed; the message names it.
    """
    files: dict[str, dict[str, Any]] = record["files"]
    for name, expected in files.items():
        if not (directory / name).is_file():
            raise damaged(directory, f"{name} is missing")
        size = (directory / name).stat().st_size
        if size != expected["bytes"]:
            raise damaged(directory, f"{name} has {size:,} bytes, expected {expected['bytes']:,}")
    names = list(files)
    if large is not None:
        names = [name for name in files if not name.endswith(_TENSORS)] + list(large)
        if unlisted := [name for name in names if name not in files]:
            raise damaged(directory, f"{NAME} does not list {unlisted[0]}")
    for name, digest in zip(names, _digests([directory / name for name in names]), strict=True):
        if digest != files[name]["sha256"]:
            expected_digest = files[name]["sha256"]
            raise damaged(directory, f"{name} has digest {digest}, expected {expected_digest}")


def by_age(parent: Path) -> list[Path]:
    """Return the whole checkpoints of a directory in the order of saving, which each stores."""
    whole = [path for path in parent.glob("step-*[0-9]") if (path / NAME).is_file()]
    return sorted(whole, key=lambda path: (read_order(path), path.name))


def read_order(checkpoint: Path) -> int:
    """Return a checkpoint's number in the order of saving, from 1; 0 if it has none."""
    try:
        order = json.loads(reading.read_small(checkpoint / NAME))["order"]
    except (OSError, ValueError, TypeError, LookupError, RecursionError, CheckpointError):
        return 0
    return order if isinstance(order, int) else 0


def damaged(directory: Path, what: str) -> CheckpointError:
    """Return the error for a damaged checkpoint; it names another checkpoint if there is one."""
    others = [path for path in by_age(directory.parent) if path.name != directory.name]
    way_out = f"use {others[-1]} instead" if others else "there is no other checkpoint beside it"
    return CheckpointError(f"checkpoint {directory} is damaged: {what}; {way_out}")


def _own_digest(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digests(paths: Sequence[Path]) -> list[str]:
    try:
        with ThreadPoolExecutor(2) as pool:  # hashing releases the GIL; weights and moments at once
            return list(pool.map(_digest, paths))
    except RuntimeError:  # the system starts no thread now, and a run may be saving its end
        return list(map(_digest, paths))


def _digest(path: Path) -> str:
    """Return the digest of a file of a checkpoint; only files of tensors may be large."""
    if not path.name.endswith(_TENSORS):
        return hashlib.sha256(reading.read_small(path)).hexdigest()
    with reading.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
