"""Write a checkpoint's directory: whole or absent, even after a kill or on a full disk.

All files are written to a directory beside the target, under a `.part` name of this process. When
it is whole and on the disk, it is renamed to the target.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from mlxhog.base import mapped, plain_json
from mlxhog.base.durable import disk_errors, new_directory, require_space, write_synced
from mlxhog.base.tensors import TensorSource, write_entries
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.formats import weights
from mlxhog.checkpoint.formats.weights import listed
from mlxhog.errors import CheckpointError, ConfigError, EnvironmentLacks

_REPLACED = {*weights.ENDINGS, ".json", ".yaml", ".yml", ".jinja", ".model", ".py"}
"""Suffixes of the files of a checkpoint, in any format."""

_FINDER = ".DS_Store"  # macOS writes this file into every folder that its user looks at

OnTensor = Callable[[str, int, int], None]
"""Called after each tensor with (its name, bytes written so far, all bytes)."""


def shards(entries: Mapping[str, TensorSource], limit: int) -> list[dict[str, TensorSource]]:
    """Distribute tensors in their order over files of at most `limit` bytes of tensors each.

    A larger tensor gets a file of its own.
    """
    files: list[dict[str, TensorSource]] = [{}]
    n_bytes = 0
    for name, entry in entries.items():
        if n_bytes and n_bytes + entry.nbytes > limit:
            files.append({})
            n_bytes = 0
        files[-1][name] = entry
        n_bytes += entry.nbytes
    return files


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target that exists, except a checkpoint with `force`; clear a killed one's files.

    Raises:
        ConfigError: `target` exists and `force` is False; it is not a checkpoint; it has other
            files, which would be deleted; or its parent is a file.
        EnvironmentLacks: the system does not let us read or clear it.
    """
    with _refused_by_system(target):
        parent = next(one for one in target.absolute().parents if one.exists() or one.is_symlink())
        if not parent.is_dir():
            raise ConfigError(f"{target}: {parent} is not a directory; choose another name")
        _clear_remains(target.absolute())
        if not (target.exists() or target.is_symlink()):
            return
        if target.is_dir() and all(entry.name == _FINDER for entry in target.iterdir()):
            return
        if not force:
            raise ConfigError(f"{target} exists; choose another name, or replace it with --force")
        if not target.is_dir() or target.is_symlink() or not weights.candidates(target):
            raise ConfigError(
                f"{target} exists and is not a checkpoint's directory; choose another name"
            )
        if others := sorted(entry.name for entry in target.iterdir() if not _replaceable(entry)):
            raise ConfigError(
                f"{target} has {listed(others)}, which --force would delete with the checkpoint; "
                "choose another name, or move them away"
            )


def write(
    target: Path,
    files: Mapping[str, Mapping[str, TensorSource]],
    others: Mapping[str, bytes],
    *,
    source: Path,
    finish: Callable[[Path], None] = lambda part: None,
    on_tensor: OnTensor = lambda name, done, total: None,
) -> None:
    """Write a checkpoint's directory; call `check_target` first.

    Args:
        target: its path; parents are made, and removed again after an error.
        files: name of a safetensors file -> its tensors.
        others: name of another file -> its content.
        source: the checkpoint of the tensors, for messages.
        finish: called with the directory after all files are written, to add one more.
        on_tensor: shows the progress.

    Raises:
        CheckpointError: tensors have numbers that are not finite; nothing is written.
        EnvironmentLacks: the disk is too small or became full, or the system refuses to write
            there; nothing is written.
    """
    target = target.absolute()
    total = sum(entry.nbytes for tensors in files.values() for entry in tensors.values())
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        with _refused_by_system(target), disk_errors(f"writing {target}", only_full=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            require_space(target.parent, total, f"checkpoint {target.name}")
            done = 0
            with new_directory(target, mark=f".{os.getpid()}") as part:
                for name, tensors in files.items():
                    for tensor, finite in write_entries(part / name, tensors):
                        if not finite:
                            raise CheckpointError(_not_finite(tensor, tensors[tensor], source))
                        done += tensors[tensor].nbytes
                        on_tensor(tensor, done, total)
                for name, content in others.items():
                    write_synced(part / name, content)
                finish(part)
    finally:
        for parent in missing:  # the innermost first; a folder that is not empty stays
            with contextlib.suppress(OSError):
                parent.rmdir()


def index(files: Mapping[str, Mapping[str, TensorSource]]) -> bytes:
    """Return the index that names the shard of every tensor, as transformers writes it."""
    total = sum(entry.nbytes for tensors in files.values() for entry in tensors.values())
    weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return plain_json.dumps(content, indent=2)


def _not_finite(name: str, entry: TensorSource, source: Path) -> str:
    """Say whether a tensor is damaged in the source, or too large for the new type."""
    what = "that are not finite; use another checkpoint of the same model, or copy this one again"
    if all(mapped.is_finite(part) for part in entry.parts):
        what = f"too large for {entry.dtype.name}; use --dtype float32 or keep"
    return f"{name} of {source} has numbers {what}; nothing was written"


@contextlib.contextmanager
def _refused_by_system(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        at = f" at {error.filename}" if error.filename else ""
        raise EnvironmentLacks(
            f"cannot write {target}: {error.strerror or error}{at}; choose another place, or make "
            "this one writable"
        ) from error


def _replaceable(entry: Path) -> bool:
    if entry.name == manifest.CARD:
        return entry.is_file() and manifest.CARD_MARK in entry.read_bytes()
    return entry.is_file() and (entry.suffix in _REPLACED or entry.name == _FINDER)


def _clear_remains(target: Path) -> None:
    """Remove files of killed processes; an `.old` target without a successor is renamed back."""
    for remains in target.parent.glob(f"{target.name}.*.*"):
        name = re.fullmatch(r"([1-9]\d{0,8})\.(part|old)", remains.name[len(target.name) + 1 :])
        if name is None or psutil.pid_exists(int(name[1])):
            continue
        if name[2] == "old" and not target.exists():
            os.replace(remains, target)
        else:
            shutil.rmtree(remains, ignore_errors=True)
