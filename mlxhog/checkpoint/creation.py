"""A new run: its name, its folder, and the removal of the folder if the start fails.

The folder of a run exists, with the options of the user, before its data is prepared: every other
command finds the run, as `starting`. A start that fails removes the folder. A start that is killed
leaves it; the run is then `interrupted`, like every run whose lock is free.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.base.durable import disk_errors, replace_file
from mlxhog.checkpoint.run import STARTING, Run, clear
from mlxhog.errors import EnvironmentLacks, RunError

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig


def new_run(config: TrainConfig) -> AbstractContextManager[Run | None]:
    """Make the run of a configuration, as `starting` does; None if a run is resumed."""
    if config.resume is not None:
        return contextlib.nullcontext()
    name = config.name or default_name(config.data)
    return starting(Path(config.out), name, config.to_yaml())


@contextlib.contextmanager
def starting(root: Path, name: str, config: str) -> Iterator[Run]:
    """Make a new run by `create`, and hold its lock in the block; a failed start removes it."""
    is_first = not root.exists()
    with ExitStack() as hold:
        run = create(root, name, config, hold)
        try:
            yield run
        except BaseException:
            if run.is_starting():
                # Report the first error, not this one; another run may be in the folder by now.
                with contextlib.suppress(OSError, EnvironmentLacks):
                    clear(run)
                    if is_first:
                        root.rmdir()
            raise


def create(root: Path, name: str, config: str = "", hold: ExitStack | None = None) -> Run:
    """Make a new run directory `<utc>-<name>` below `root`, with status `starting`.

    It has the user's options, as YAML; `hold` gets its lock before any process can find it.

    Raises:
        RunError: the name has characters other than letters, digits, `.`, `_` and `-`, or the
            directory cannot be made.

    Concurrency: two processes never get the same directory.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise RunError(f"run name {name!r}: use letters, digits, '.', '_' and '-' only")
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    n = 1
    while True:
        directory = (root / (stem if n == 1 else f"{stem}-{n}")).absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            directory.mkdir(mode=0o700)
        except FileExistsError as error:
            if not root.is_dir():
                raise RunError(f"{root} is a file, expected a directory of runs") from error
            n += 1
            continue
        except OSError as error:
            raise RunError(f"cannot make {directory}: {error.strerror}; choose --out") from error
        run = Run(directory)
        try:
            if hold is not None:
                hold.enter_context(run.lock())
            with disk_errors(f"making {run.checkpoints}"):
                run.checkpoints.mkdir()
                replace_file(run.config_path, config.encode())
            run.write_status({"status": STARTING})  # from now on commands find it
        except BaseException:  # an interrupt, too: no command would list the folder
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return run


def default_name(data: str) -> str:
    """Name a run after its corpus: `sotu`, or the last plain part of a path, without its suffix.

    >>> default_name("notes/*.txt")
    'notes'
    """
    for part in reversed(Path(data).parts):
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", part if "*" in part else Path(part).stem).strip("-")
        if name and "*" not in part:
            return name[:40]
    return "run"
