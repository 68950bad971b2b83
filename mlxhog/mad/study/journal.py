"""A file of JSON lines that is only ever appended to, and survives the death of its writer."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxhog.config import limits
from mlxhog.errors import StudyError
from mlxhog.files import plain_json
from mlxhog.files.durable import disk_errors, end_of_last_line, flush, sync


class Journal:
    """One file; it appears with the first line.

    Args:
        path: of the file, in a directory that exists.

    Concurrency: one process appends, any number read meanwhile and see whole lines only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line with a single write, and flush it to the disk before returning.

        What a writer that was killed left of a line is removed first. Numbers that are not finite
        become null.

        Raises:
            EnvironmentLacks: the disk is full, or the system refuses; the lines before are
                untouched.
        """
        line = plain_json.dumps(entry) + b"\n"
        with disk_errors(f"writing {self.path}"):
            descriptor = self._open()
            end = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                flush(descriptor)
            except OSError:
                os.truncate(self.path, end)
                raise

    def _open(self) -> int:
        if self._descriptor is None:
            with self.path.open("a+b") as file:
                file.truncate(end_of_last_line(file))
            sync(self.path.parent)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        return self._descriptor

    def read(self) -> list[dict[str, Any]]:
        """Return every line that is whole, in the order of writing.

        Raises:
            StudyError: a line before the last is damaged; it is named.
        """
        if not self.path.exists():
            return []
        found = []
        try:
            lines = limits.read_bytes(self.path).split(b"\n")[:-1]
        except (OSError, ValueError) as error:
            raise StudyError(f"{self.path} cannot be read: {error}; mend it") from error
        for number, line in enumerate(lines, start=1):
            try:
                entry = plain_json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError("it is no JSON object")
            except ValueError as error:
                raise StudyError(
                    f"{self.path}, line {number} is damaged ({error}); remove the line, and resume "
                    "the study to run again what it held"
                ) from error
            found.append(entry)
        return found

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
