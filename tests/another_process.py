"""Commands in a process of their own that has imported nothing of a test: see `tests/forked.py`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.forked import CONTEXT, join_server

TIMEOUT_S = 120


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


def mlxhog(folder: Path, *words: str) -> Ended:
    """Run a command in a folder; its process knows no layer of the user's."""
    files = [folder / f".{name}" for name in ("out", "err")]
    process = CONTEXT.Process(target=_main, args=(folder, words, files))
    process.start()
    process.join(TIMEOUT_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"mlxhog {' '.join(words)} has not ended after {TIMEOUT_S} s")
    return Ended(process.exitcode, *(file.read_text(errors="replace") for file in files))


def _main(folder: Path, words: tuple[str, ...], files: list[Path]) -> None:
    from mlxhog.cli import main

    join_server()
    os.chdir(folder)
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os._exit(_flushed(main(list(words))))


def _flushed(code: int) -> int:
    import sys

    sys.stdout.flush()
    sys.stderr.flush()
    return code
