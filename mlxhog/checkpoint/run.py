"""A run directory: its files, its lock, its status, and how to find it by name.

runs/<utc>-<name>/
  lock, holder.json  held while a supervisor lives, see `locks`
  config.yaml        the resolved configuration
  architecture/      config of its model, and its tokenizer, for readers of the arena
  model              link to the newest checkpoint, for `from_pretrained` of transformers
  socket             serves the arena to later readers
  run.json           status, pids, versions, machine; replaced by rename
  metrics.jsonl      one line per interval; a torn last line is ignored
  times.json         times of each worker's newest steps; replaced by rename
  events.jsonl       one line for each message, sample and checkpoint, with its time
  documents.npz      digests and sides of its documents, see `data.split`
  checkpoints/       see `checkpoint`
  samples.txt        text sampled on the way

The folder of a run exists, with the user's options, before its data is prepared: other commands
find the run, as `starting`. A failed start removes the folder. A run is `running` as soon as its
parameters can be read. If the lock of a run of either status is free, its process has died: the run
is `interrupted`. A run that is removed is first renamed to `.removed-<utc>-<name>`.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base import darwin, durable, locks, plain_json, reading, typed
from mlxhog.base.durable import append_lines, disk_errors, replace_file
from mlxhog.base.inside import refuse_links, subfolder
from mlxhog.base.locks import Holder
from mlxhog.base.paths import expanded, quoted
from mlxhog.checkpoint import manifest, run_files
from mlxhog.config.sources import ConfigSource, read_yaml
from mlxhog.errors import DataError, EnvironmentLacks, RunError, did_you_mean

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig

_STATUS = "run.json"
_REMOVED, _PAGE = ".removed-", "\f"
STARTING, RUNNING = "starting", "running"
"""Status of a run whose lock is held: before and after its parameters can be read."""
BEST, LATEST = "best", "latest"
"""Checkpoints of a run that RUN/best and RUN/latest name."""
MAX_NAMED = 8  # most runs that a message lists


class _RunPath:
    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: Run, owner: type[Run]) -> Path:
        return run.directory / self._name


@dataclass(frozen=True)
class Run:
    """One run directory."""

    directory: Path  # absolute; of mode 0700

    @property
    def name(self) -> str:
        """The directory's name, `<utc>-<name>`."""
        return self.directory.name

    config_path = _RunPath("config.yaml")  # the resolved configuration
    metrics_path = _RunPath("metrics.jsonl")
    times_path = _RunPath("times.json")
    events_path = _RunPath("events.jsonl")
    samples_path = _RunPath("samples.txt")
    architecture = _RunPath("architecture")
    model = _RunPath("model")  # a link; it does not exist before the first checkpoint
    checkpoints = _RunPath("checkpoints")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of this run in the block.

        Raises:
            RunError: another process holds the run, or as `refuse_links`.
        """
        with locks.lock(self.directory, self._refusal):
            yield

    def refuse_links(self) -> None:
        """Raise RunError, with the link, if writing in the run could change files elsewhere."""
        refuse_links(self.directory, self._refusal)

    def _refusal(self, why: str) -> RunError:
        return RunError(f"the run {self.directory} {why}, or start another run")

    def holder(self) -> Holder | None:
        """Return the supervisor that holds this run now, on this host or another one."""
        return locks.holder(self.directory)

    def is_locked(self) -> bool:
        """Return whether a supervisor holds this run now."""
        return self.holder() is not None

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Replace `run.json`, keeping time and order of creation, or those of `status`.

        Raises:
            EnvironmentLacks: the system refuses, or another machine has taken the run; the old file
                is unchanged.
        """
        locks.require_held(self.directory)
        earlier = {**status, **self._read_status()}
        since = {"created_ns": earlier.get("created_ns") or time.time_ns()}
        since |= {"order": earlier["order"]} if "order" in earlier else {}
        content = plain_json.dumps({**status, **since}, indent=1) + b"\n"
        with disk_errors(f"writing {self.directory / _STATUS}"):
            replace_file(self.directory / _STATUS, content)

    def read_status(self) -> dict[str, Any]:
        """Return `run.json`; if the lock is free, starting and running become interrupted.

        A run on another host has its name as `host`; a damaged file gives the status "damaged" and
        the reason as `error`.
        """
        status = self._read_status()
        if status.get("status") in (STARTING, RUNNING):
            if (holder := self.holder()) is None:
                status["status"] = "interrupted"
            elif holder.elsewhere:
                status["host"] = holder.elsewhere
        return status

    def is_starting(self) -> bool:
        """Return whether the run's parameters cannot be read yet."""
        return self.read_status().get("status") == STARTING

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint from which `--resume` can continue."""
        return any(
            (path / manifest.NAME).is_file() for path in self.checkpoints.glob("step-*[0-9]")
        )

    def created_ns(self) -> int:
        """Return when the run was created, in nanoseconds since 1970; 0 if it is not known."""
        return int(self._read_status().get("created_ns", 0))

    def trained_on(self) -> str:
        """Return the names of its text, and its kind; "" if not recorded."""
        status = self._read_status()
        names = [Path(name).name or name for name in str(status.get("data") or "").split("\n")]
        return f"{', '.join(names)} ({kind})" if (kind := status.get("text_kind")) else ""

    def sample_prompt(self) -> str:
        """Return the beginning of a validation document, the prompt of its samples."""
        return self._read_status().get("sample_prompt") or "The"

    def order(self) -> int:
        """Return the run's position among those of its folder; see `create`."""
        status = self._read_status()
        return int(status.get("order") or status.get("created_ns") or 0)

    def automatic(self) -> tuple[str, ...]:
        """Return the options that were "auto" and are stored resolved; () if damaged."""
        return tuple(self.read_status().get("automatic", ()))

    def options(self, *, data: str | None = None, path: Path | None = None) -> ConfigSource:
        """Return the options, of `path` or the run's own, with the present path of the text.

        Without `data`, which the user may name, the text at neither of its recorded paths is a
        DataError.
        """
        from mlxhog.base.paths import quoted_paths
        from mlxhog.data import corpora

        options = read_yaml(path or self.config_path)
        spec, origin = options.get("data", ("", ""))
        spec = "\n".join(map(str, spec)) if isinstance(spec, list) else str(spec)
        recorded = self.read_status().get("data_path")
        if data is not None or not spec or not corpora.is_missing(spec, recorded):
            return options
        full = recorded or corpora.full_path(spec) or spec
        if corpora.is_missing(full):
            raise DataError(
                f"the text of the run {self.name}, data {quoted_paths(spec)}, is not at "
                f"{quoted_paths(full)}; put it back, or name its new place with --data PATH "
                "(train, eval, compare, analyze)"
            )
        return {**options, "data": (full, origin)}

    def ended_with(self, checkpoint: Path) -> bool:
        """Whether nothing was trained after this checkpoint of the run, which may be a copy."""
        return Path(self.read_status().get("checkpoint") or "").name == checkpoint.name

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`; NaN and infinities become null."""
        append_lines(self.metrics_path, plain_json.dumps(record) + b"\n")

    def append_event(self, record: Mapping[str, Any]) -> None:
        """Append a line to `events.jsonl`."""
        append_lines(self.events_path, plain_json.dumps(record) + b"\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl`, without a torn last one."""
        if not self.metrics_path.exists():
            return []
        entries: list[dict[str, Any]] = []
        try:
            for entry in plain_json.objects(self.metrics_path):
                typed.read(run_files.MetricsLine, entry)
                entries.append(entry)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.metrics_path} is damaged after {len(entries)} lines: {error}; remove the "
                "lines behind them"
            ) from error
        return entries

    def write_times(self, workers: Sequence[Mapping[str, Any]]) -> None:
        """Replace `times.json`, the times of each worker's newest steps."""
        with disk_errors(f"writing {self.times_path}"):
            replace_file(self.times_path, plain_json.dumps({"workers": workers}) + b"\n")

    def read_times(self) -> list[dict[str, Any]]:
        """Return the workers of `times.json`; empty if there is no file."""
        try:
            workers = plain_json.read(self.times_path)["workers"]
            return [asdict(run_files.worker_times(dict(one))) for one in workers]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RunError(
                f"{self.times_path} is damaged ({error}); remove it; further training writes it"
            ) from error

    def drop_metrics_after(self, step: int, elapsed_s: float) -> None:
        """Drop the lines of steps after the checkpoint from which a run is resumed."""

        def is_before(line: Mapping[str, Any]) -> bool:
            return bool(line.get("step", 0) <= step and line.get("elapsed_s", 0.0) <= elapsed_s)

        if not all(map(is_before, lines := self.read_metrics())):
            kept = filter(is_before, lines)
            replace_file(self.metrics_path, b"".join(plain_json.dumps(one) + b"\n" for one in kept))

    def append_sample(self, text: str) -> None:
        """Append sampled text to `samples.txt`, behind a line with a page break."""
        lines = text.replace(_PAGE, " ").rstrip()
        append_lines(self.samples_path, f"{_PAGE}\n{lines}\n".encode(errors="replace"))

    def last_sample(self) -> str | None:
        """Return the last text of `samples.txt`, or None if there is no sample."""
        try:
            text = reading.read_bytes(self.samples_path).decode(errors="replace")
        except (OSError, ValueError):
            return None
        return text.rpartition(f"{_PAGE}\n")[2].rstrip("\n")

    def _read_status(self) -> dict[str, Any]:
        return run_files.read_status(self.directory / _STATUS)


# -- a new run -----------------------------------------------------------------------------------


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
                    clear(run)
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
            newest = max((one.order() for one in list_runs(root)), default=0)
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


# -- runs by their names -------------------------------------------------------------------------


def list_runs(root: Path) -> list[Run]:
    """Return the runs below `root`, the newest last; [] if `root` does not exist."""
    if not root.is_dir():
        return []
    named = (path for path in root.iterdir() if not path.name.startswith(_REMOVED))
    runs = [Run(path.absolute()) for path in named if is_run(path)]
    return sorted(runs, key=lambda run: (run.order(), run.name))


def is_run(path: Path) -> bool:
    """Return whether a path is a run directory."""
    try:
        return (path / _STATUS).exists()  # a pipe or a folder in its place is damage
    except OSError:  # a directory that this user may not enter
        return False


def run_of(checkpoint: Path) -> Run | None:
    """Return the run of a checkpoint's path, or None if the path is not in a run."""
    path = expanded(checkpoint).absolute()
    run = Run(path.parent.parent)
    is_one = path.parent == run.checkpoints and path.is_dir() and is_run(run.directory)
    return run if is_one else None


def remove(run: Run) -> None:
    """Remove a run with all its files.

    It is renamed first, so no command finds a half-removed run; after a kill the next removal in
    the folder deletes the rest.

    Raises:
        RunError: a process trains it, or its folder is a link, or has links out of it.
        EnvironmentLacks: the system refuses. Either the run is whole, or only the files that the
            message names remain.
    """
    if run.directory.is_symlink():
        raise RunError(
            f"{run.directory} is a link to the run {run.directory.resolve()}; remove the link "
            "itself, or name the run at its own place to remove it"
        )
    for removed in run.directory.parent.glob(f"{_REMOVED}*"):
        durable.remove(removed)
    with run.lock(), disk_errors(f"removing {run.directory}"):
        nameless = clear(run)
    durable.remove(nameless)  # NFS keeps open files, as that of the lock
    if nameless.exists():
        raise EnvironmentLacks(
            f"the run {run.name} is removed, but the system refuses to delete {nameless}; check "
            "its files, and delete it"
        )


def clear(run: Run) -> Path:
    """Rename a run to `.removed-...`, then delete it; return that path."""
    nameless = run.directory.with_name(f"{_REMOVED}{run.name}")
    os.replace(run.directory, nameless)
    durable.remove(nameless)
    return nameless


def find(spec: str, root: Path, *, whole: bool = False) -> Run:
    """Return the run that `spec` names, for all commands.

    It is `latest`, the name of a run below `root`, with or without date and time, a unique part of
    a name, or a path; or one of its checkpoints, RUN/best, RUN/latest or a path, which stands for
    its run. `whole`, for commands that cannot be undone, refuses `latest`, parts of names, and
    checkpoints. A whole name wins over names of which it is a part.

    Raises:
        RunError: there is no such run (the message suggests the nearest name), or several names
            have this part (the message lists them).
        ConfigError: a path begins with the home of a user whom the system does not know.
    """
    runs, path = list_runs(root), expanded(spec)
    for place in (root / spec, path):
        if (whole or spec != LATEST) and is_run(place):
            return Run(place.absolute())
    if not whole:
        name, which = split(spec, root)
        if (run := run_of(path)) is not None or which is not None:
            return run or find(name, root)
    having = [run for run in runs if spec in run.name] if spec and path.name == spec else []
    named = [run for run in having if run.name.split("-", 2)[-1] == spec]
    is_newest = spec == LATEST and not (whole and named)
    meant = runs[-1:] if is_newest else named or having
    if len(meant) == 1 and whole and not named:
        raise RunError(f"{spec!r} is not the whole name of a run; did you mean {meant[0].name!r}?")
    if len(meant) == 1:
        return meant[0]
    if spec == LATEST:
        raise RunError(f"there is no run in {root} yet; start one with: mlxhog train")
    if meant:
        what, way = "part of the names", "give more of the name"
        if named:
            what, way = "the name", "add date and time"
        names = _listed([run.name for run in meant])
        raise RunError(f"{spec!r} is {what} of {len(meant)} runs: {names}; {way}")
    if os.path.exists(path):  # false also for a name that no file can have
        why = f"it has no {_STATUS}" if path.is_dir() else "it is a file"
        raise RunError(f"{path} is not a run: {why}; name a run's directory (mlxhog runs)")
    raise RunError(_not_found(spec, root, [run.name for run in runs]))


def lasting_name(spec: str, root: Path) -> str:
    """Return what names the run of `find`, or its checkpoint, for good: an absolute path."""
    run, (_, which) = find(spec, root), split(spec, root)
    if run_of(path := expanded(spec)) == run:
        return str(path.absolute())
    return str(run.directory if which is None else run.directory / which)


def split(spec: str, root: Path) -> tuple[str, str | None]:
    """Return the run and the checkpoint of RUN/best or RUN/latest; of another name None."""
    name, slash, which = spec.rpartition("/")
    if not slash or which not in (BEST, LATEST) or is_run(root / spec) or is_run(expanded(spec)):
        return spec, None
    return name.removesuffix("/checkpoints"), which


def _not_found(spec: str, root: Path, names: Sequence[str]) -> str:
    if spec.startswith("hf:"):
        begin = f"to begin one with its weights: mlxhog train --init-from {quoted(spec)}"
        return f"{spec} is no run; {begin}"
    if Path(spec).name != spec:
        hint = did_you_mean(Path(spec).name, names)
        return f"{spec} does not exist{hint or '; name a run, or a path that exists'}"
    if not names:
        return (
            f"no run {spec!r}: {root} has no runs, and no file or directory has this name; start a "
            "run with mlxhog train, or name the folder of the runs with --runs-dir"
        )
    without_date = {name.split("-", 2)[-1]: name for name in names}
    near = [without_date[word] for word in difflib.get_close_matches(spec, without_date, n=1)]
    near = near or difflib.get_close_matches(spec, [LATEST, *names], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"no run {spec!r}, and no file or directory of this name; {hint}{root} has {_listed(names)}"
    )


def _listed(names: Sequence[str]) -> str:
    """Return the newest names, newest first, and the number of the others."""
    newest = list(reversed(names))
    more = f" and {len(newest) - MAX_NAMED} more"
    return ", ".join(newest[:MAX_NAMED]) + more * (len(newest) > MAX_NAMED)
