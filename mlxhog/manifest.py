"""`state.json` of a checkpoint: what the trainer has to remember, and proof that nothing changed.

It lists every other file of the directory with its size and SHA-256, and holds a digest of itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlxhog import plain_json
from mlxhog.durable import write_synced
from mlxhog.errors import CheckpointError
from mlxhog.limits import shown

FORMAT = 1
NAME = "state.json"


def write(directory: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write the manifest of a directory that holds all its other files."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(directory.iterdir())
    }
    content = {"format": FORMAT, "step": step, "files": files, "state": state}
    record = json.loads(plain_json.dumps(content))
    record["sha256"] = _own_digest(record)
    write_synced(directory / NAME, plain_json.dumps(record, indent=1))


def read(directory: Path) -> dict[str, Any]:
    """Return the manifest: `step`, `state`, and `files`.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    if not directory.is_dir():
        raise CheckpointError(f"no checkpoint {directory}: it is not a directory")
    path = directory / NAME
    if not path.is_file():
        raise CheckpointError(f"{directory} is not a checkpoint of mlxhog: it holds no {NAME}")
    try:
        record = plain_json.read(path)
    except (OSError, ValueError) as error:
        raise damaged(directory, f"{NAME} cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not of format {FORMAT}; load it with its own mlxhog")
    if record.get("sha256") != _own_digest(record):
        raise damaged(directory, f"{NAME} does not match its digest")
    if fault := _fault(record):
        raise damaged(directory, f"{NAME} {fault}")
    return record


def verify(directory: Path, record: Mapping[str, Any], *, digests: bool) -> None:
    """Compare the files of a directory with its manifest.

    Args:
        directory: the checkpoint.
        record: its manifest.
        digests: also read the large files, instead of looking at their size alone.

    Raises:
        CheckpointError: a file is missing or changed; the message names it.
    """
    files: dict[str, dict[str, Any]] = record["files"]
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise damaged(directory, f"{name} is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise damaged(directory, f"{name} has {size:,} bytes, expected {expected['bytes']:,}")
    read = [name for name in files if digests or not name.endswith(".safetensors")]
    with ThreadPoolExecutor(2) as pool:  # hashing leaves Python's lock; weights and moments at once
        found = list(pool.map(_digest, (directory / name for name in read)))
    for name, digest in zip(read, found, strict=True):
        if digest != files[name]["sha256"]:
            raise damaged(
                directory, f"{name} has digest {digest}, expected {files[name]['sha256']}"
            )


def by_age(parent: Path) -> list[Path]:
    """Return the checkpoints that stand whole in a directory, the newest last."""
    whole = [path for path in parent.glob("step-*[0-9]") if (path / NAME).is_file()]
    return sorted(whole, key=lambda path: ((path / NAME).stat().st_mtime_ns, path.name))


def damaged(directory: Path, what: str) -> CheckpointError:
    """Return the error for a damaged checkpoint; it names another one where there is one."""
    others = [path for path in by_age(directory.parent) if path.name != directory.name]
    way_out = f"use {others[-1]} instead" if others else "there is no other one beside it"
    return CheckpointError(f"checkpoint {directory} is damaged: {what}; {way_out}")


def _fault(record: Mapping[str, Any]) -> str | None:
    """What is wrong with a manifest whose digest fits: whoever computes digests may write one."""
    step, files, state = record.get("step"), record.get("files"), record.get("state")
    if type(step) is not int or not 0 <= step < 2**63 or not isinstance(state, dict):
        return "names no step or state"
    if not isinstance(files, dict):
        return "lists no files"
    for name, entry in files.items():
        if name in ("", ".", "..") or Path(name).name != name or len(name) > 255:
            return f"lists {shown(name)}, which is no name of a file beside it"
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int:
            return f"says no size of {shown(name)}"
        if not isinstance(entry.get("sha256"), str):
            return f"says no digest of {shown(name)}"
    return None


def _own_digest(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
