"""Keeping a record where `mlxhog.machine.verdicts` looks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxhog.errors import EnvironmentLacks
from mlxhog.files import plain_json
from mlxhog.files.durable import replace_file
from mlxhog.machine.cache import user_cache_directory
from mlxhog.machine.verdicts import Identity


def save(record: Mapping[str, Any], identity: Identity, directory: Path | None = None) -> Path:
    """Replace the record of this machine; a reader sees the old one or the new one.

    Args:
        record: what to keep.
        identity: names the file.
        directory: where records lie; None is the user's cache directory.

    Raises:
        EnvironmentLacks: the directory cannot be written; the old record stands.
    """
    path = (directory or user_cache_directory()) / identity.file_name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, plain_json.dumps(record, indent=1) + b"\n")
    except OSError as error:
        raise EnvironmentLacks(
            f"the result cannot be kept in {path} ({error.strerror}), so no run will use it; "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return path
