"""The folder of a new run, which exists before its data is prepared."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.base import darwin
from mlxhog.base.durable import disk_errors, replace_file
from mlxhog.base.inside import subfolder
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint import run_files
from mlxhog.checkpoint.run import STARTING, Run
from mlxhog.errors import EnvironmentLacks, RunError

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig


def new_run(config: TrainConfig) -> AbstractContextManager[Run | None]:
    """Create the run of a configuration as `starting`; None if a run is resumed."""
    if config.resume is not None:
        return nullcontext()
    name = config.name or default_name(config.data)
    return starting(Path(config.runs_dir), name, config.to_yaml())


@contextmanager
def starting(root: Path, name: str, config: str) -> Iterator[Run]:
    """Create a run and hold its lock in the block; a failed start removes the run."""
    is_first = not root.exists()
    with ExitStack() as hold:
        run = create(root, name, config, hold)
        try:
            yield run
        except BaseException:
            if run.is_starting():
                # Report the first error, not this one; another run may be in the folder by now.
                with suppress(OSError, EnvironmentLacks):
                    runs.clear(run)
                    if is_first:
                        root.rmdir()
            raise


def create(root: Path, name: str, config: str = "", hold: ExitStack | None = None) -> Run:
    """Create a run directory `<utc>-<name>` below `root`, with status `starting`.

    It has the user's options, as YAML; `hold` gets its lock before any process can find it. Its
    `order` is its time of creation, or more than that of every run below `root`, so that `latest`
    is the run that began last, whatever the clocks.

    Raises:
        RunError: the name has characters other than letters, digits, `.`, `_` and `-`, or the
            directory cannot be made.

    Concurrency: two processes never get the same directory.
    """
    run_files.check_place(root, name)
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    n = 1
    while True:
        directory = (root / (stem if n == 1 else f"{stem}-{n}")).absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            directory.mkdir(mode=0o700)
        except FileExistsError:
            run_files.check_place(root, name)
            n += 1
            continue
        except OSError as error:
            raise RunError(
                f"cannot make {directory}: {darwin.reason(error)}; choose --runs-dir"
            ) from error
        run = Run(directory)
        try:
            if hold is not None:
                hold.enter_context(run.lock())
            with disk_errors(f"making {run.checkpoints}"):
                subfolder(directory, run.checkpoints.name)
                replace_file(run.config_path, config.encode())
            newest = max((one.order() for one in runs.list_runs(root)), default=0)
            order = max(time.time_ns(), newest + 1)
            run.write_status({"status": STARTING, "order": order})  # from now on commands find it
        except BaseException:  # an interrupt, too: no command would list the folder
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return run


def default_name(data: str) -> str:
    """Return a run's name after its corpus, or the last plain part of a path, without suffix.

    >>> default_name("notes/*.txt")
    'notes'
    """
    for part in reversed(Path(data).parts):
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", part if "*" in part else Path(part).stem).strip("-")
        if name and "*" not in part:
            return name[:40]
    return "run"
