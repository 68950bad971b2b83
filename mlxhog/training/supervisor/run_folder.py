"""The folder of a run while it trains: found again where it was renamed, made again if removed.

A run loses no steps to either. It notices them within a moment, and before every save:

    renamed   (also to a trash folder) the run continues in it, under its new name
    removed   (also by a move to another disk) a folder is made where the first was, with what a
              resume needs; it has the metrics and checkpoints from then on
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mlxhog.base.durable import disk_errors, replace_file
from mlxhog.base.inside import path_of
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.checkpoint.run_files import CommandRecord
from mlxhog.config.sources import yaml_values_of
from mlxhog.display.record import command_lines
from mlxhog.errors import EnvironmentLacks, RunError, one_line
from mlxhog.training.plan.values import TextPlan


def write_options(run: Run, plan: TextPlan, commands: Sequence[Mapping[str, Any]] = ()) -> None:
    """Replace the options in a run's folder; comments list the commands of a resumed run."""
    text = plan.stored.to_yaml()
    if len(commands) > 1:
        parts = [CommandRecord(**{"to_step": 0, **one}) for one in commands]
        *before, (steps, line) = command_lines(run.name, parts, yaml_values_of(plan.stored))
        now = f"{steps.rpartition(' to ')[0]} on", line
        lines = [f"#   {steps}: {one_line(line, 4000)}" for steps, line in (*before, now)]
        head = "# The options of the last command, which alone are not the whole run:"
        text = "\n".join([head, *lines, text])
    with disk_errors(f"writing {run.config_path}"):
        replace_file(run.config_path, text.encode("ascii", "backslashreplace"))


def write_model(run: Run, plan: TextPlan) -> None:
    """Replace the architecture and the tokenizer."""
    with disk_errors(f"writing {run.architecture}"):
        checkpoint.write_model(run.architecture, plan.model, plan.data.tokenizer, plan.base)
        if plan.division is not None:
            from mlxhog.data import clients

            clients.write(plan.division, run.directory)


class FolderFollower:
    """Follows the folder of a run, which the caller has locked.

    `plan` returns the present plan, for a new folder; `stack` unlocks that in the end.
    """

    def __init__(self, run: Run, plan: Callable[[], TextPlan], stack: ExitStack) -> None:
        self._run, self._first, self._plan, self._stack = run, run.directory, plan, stack
        self._fd = _opened(run.directory, stack)

    def find(self) -> tuple[Run, str] | None:
        """Return the run in its present folder, and a message; None if it is where it was.

        Raises:
            EnvironmentLacks: the folder was removed, and cannot be made again now.
        """
        if self._is_at(self._run.directory):
            return None
        was, now = self._run.directory, path_of(self._fd)
        if now is not None and self._is_at(now):
            self._run = Run(now)
            return self._run, f"the run's folder {was} was renamed; the run continues in {now}"
        run = Run(self._first)
        with ExitStack() as undo:
            with disk_errors(f"the run's folder was removed, and making {run.directory} again"):
                run.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = _opened(run.directory, undo)
            try:
                undo.enter_context(run.lock())
            except RunError as error:
                raise EnvironmentLacks(str(error)) from error
            write_options(run, self._plan())
            write_model(run, self._plan())
            self._plan().data.text.write(run.directory)
            if (base := self._plan().base) is not None:
                base.kept_again(run)
            self._stack.enter_context(undo.pop_all())
        self._run, self._fd = run, fd
        return run, (
            f"the run's folder {was} was removed; {run.directory} is made again, and has the "
            "metrics and checkpoints from now on"
        )

    def _is_at(self, path: Path) -> bool:
        """Return whether a path leads to the open folder; network disks may renumber folders."""
        try:
            if os.path.samestat(path.stat(), os.fstat(self._fd)):
                return True
            name = f".{os.getpid()}.part"
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fd))
            try:
                return (path / name).exists()
            finally:
                os.unlink(name, dir_fd=self._fd)
        except OSError:
            return False


def _opened(directory: Path, stack: ExitStack) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd
