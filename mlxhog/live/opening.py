"""Open a run or a checkpoint for a text generator: its model, and the source of its weights.

If the run is starting, the functions here wait for it. A run that trains is read from its arena
(`running.py`), a run that has ended from its newest checkpoint, and a resumed run from its arena
again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from mlxhog.arena import Arena
from mlxhog.arena.handover import ANSWER_S, NoAnswer, socket_path
from mlxhog.arena.published import WORDS
from mlxhog.checkpoint import checkpoint, formats, manifest
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.formats import Opened
from mlxhog.checkpoint.formats import weights as files
from mlxhog.checkpoint.run import Run
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding.model import Model, end_tokens
from mlxhog.errors import ArenaError, CheckpointError, MlxhogError, RunError
from mlxhog.files.paths import expanded
from mlxhog.live import CHECKPOINT, READ_MODES
from mlxhog.live.running import OF_COPIES, RunWeights
from mlxhog.live.source import CheckpointWeights, NewestOfRun, WeightSource, checked_mode
from mlxhog.machine.processes import environment
from mlxhog.models.families import ModelConfig
from mlxhog.report.views import Tell

FIRST_RUN_S = 5.0  # longest wait for the first run of a folder
POLL_S = 0.1
SOON_S = 0.5  # longest wait for a resumed run's answer, because text generation stops meanwhile
AGAIN_S = 10.0  # time between two tries to read a resumed run


def open_newest(
    spec: str,
    *,
    root: Path,
    backend: str,
    weights: str = "float32",
    mode: str = READ_MODES[0],
    wait_s: float = 0.0,
    say: Tell = lambda message: None,
    pause: Callable[[float], object] = time.sleep,
) -> tuple[WeightSource, Model]:
    """Open `spec` as `open_source` does, but first wait for a run that is starting.

    `latest` is the newest run even if it began while an older one was opened.

    Args:
        spec: a run (a path, a name below `root`, or `latest`), or the path of a checkpoint.
        root: the folder of runs.
        backend: name of the backend.
        weights: dtype of its weights.
        mode: one of `MODES` in `mlxhog/live`.
        wait_s: longest wait for a run that is starting.
        say: called once, with the reason of the wait.
        pause: waits for some seconds; it may raise an exception to end the wait.

    Raises:
        RunError: the run did not begin in this time, or ended before it could be read.
        MlxhogError: as for `open_source`.
    """
    wait = _Wait(wait_s, say, pause)
    run = wait.for_first(spec, root)
    while True:
        if run is None:
            return open_source(spec, root=root, backend=backend, weights=weights, mode=mode)
        wait.for_start(run)
        opened = _open_run(run, backend, weights, mode)
        latest = _run(spec, root)
        if spec != "latest" or latest is None or latest == run:
            return opened
        opened[0].close()
        opened[1].backend.close()
        run = latest


def open_source(
    spec: str,
    *,
    root: Path,
    backend: str,
    weights: str = "float32",
    mode: str = READ_MODES[0],
) -> tuple[WeightSource, Model]:
    """Open a run while it trains, the newest checkpoint of a run that has ended, or a checkpoint.

    The source of a run also reads the new weights when the run is resumed. If a run that trains
    does not publish copies, modes that need them read its newest checkpoint. If its process does
    not answer, all modes do. Then the source's `note` gives the reason.

    Args:
        spec: a run (a path, a name below `root`, or `latest`), or the path of a checkpoint.
        root: the folder of runs.
        backend: one of `BACKEND_WORDS` in `mlxhog/machine/workers.py`.
        weights: dtype of its weights, of `WEIGHTS` or `QUANTIZED_BITS` in `mlxhog/backends`.
        mode: one of `MODES` in `mlxhog/live`.

    Returns:
        The source, which the caller closes, and a model whose weights are not loaded yet:
        `source.load` or a `WeightFollower` loads them.

    Raises:
        RunError: no run has this name.
        CheckpointError: there is no checkpoint yet, or it is damaged or of an unknown family.
        ConfigError: the mode does not exist, or the config contradicts itself or is of an
            auto-encoder.
        DataError: the model has no tokenizer, or one that does not fit.
        EnvironmentLacks: the backend is not installed.
        ArenaError: the run that trains cannot be read, for example because of another version.
    """
    if (run := _run(spec, root)) is not None:
        return _open_run(run, backend, weights, mode)
    opened = formats.open(checkpoint.locate(spec, root))
    source = _of_checkpoint(opened, weights, mode)
    return source, _model(source, backend, opened.config, opened.text_tokenizer(), opened.path)


def _run(spec: str, root: Path) -> Run | None:
    """The run that `spec` names; None if it names no run, but for example a checkpoint."""
    try:
        return None if files.candidates(expanded(spec)) else runs.find(spec, root)
    except (RunError, OSError):
        return None  # opening it as a checkpoint will raise the error


class _Wait:
    """Waits for a run that is starting, for at most `wait_s` seconds in total."""

    def __init__(self, wait_s: float, say: Tell, pause: Callable[[float], object]) -> None:
        self._wait_s, self._until_s = wait_s, time.monotonic() + wait_s
        self._say, self._pause, self._has_reported = say, pause, False

    def wait_once(self, reason: str) -> bool:
        """Report the reason of the wait once, and wait a moment; False if the time is over."""
        if time.monotonic() >= self._until_s:
            return False
        if not self._has_reported:
            self._say(f"{reason}; waiting up to {self._wait_s:g} s (--wait)")
            self._has_reported = True
        self._pause(POLL_S)
        return True

    def for_first(self, spec: str, root: Path) -> Run | None:
        """Return the run of this name; wait a moment for the first run of a folder."""
        until_s = time.monotonic() + min(self._wait_s, FIRST_RUN_S)
        while (run := _run(spec, root)) is None and spec == "latest":
            if time.monotonic() >= until_s or runs.list_runs(root):
                break
            self._pause(POLL_S)
        return run

    def for_start(self, run: Run) -> None:
        """Wait until a run can be read.

        Raises:
            RunError: the run did not begin in time, or ended before it began.
        """
        waited = False
        while run.is_starting():
            waited = True
            if not self.wait_once(f"run {run.name} is starting: no weights yet"):
                raise RunError(
                    f"run {run.name} is still starting and has no weights yet; try again later, or "
                    "wait longer (--wait 600)"
                )
        if waited and not runs.is_run(run.directory):
            raise RunError(
                f"run {run.name} ended before it had weights; its terminal shows the reason"
            )


class _ReadCheckpoint(Exception):
    """The reason to read the newest checkpoint of a run that trains."""


class _NotNow(_ReadCheckpoint):
    """The run is starting or has just ended, so a later try may succeed."""


def _open_run(run: Run, backend: str, weights: str, mode: str) -> tuple[WeightSource, Model]:
    """Open a run's newest weights, with a source that follows the run."""
    note = ""
    source: WeightSource
    if mode != CHECKPOINT:
        checked_mode(mode)
        if run.is_locked():
            try:
                config, tokenizer, source = _of_run(run, weights, mode)
                newest = NewestOfRun(source, _Following(run, config, weights, mode))
                return newest, _model(newest, backend, config, tokenizer, run.directory)
            except _ReadCheckpoint as reason:
                note = str(reason)
    try:
        opened = formats.open(checkpoint.latest(run))
    except CheckpointError as error:
        raise CheckpointError(f"{note}; {error}" if note else str(error)) from error
    note = f"{note}, so its newest checkpoint is read" if note else ""
    source = _of_checkpoint(opened, weights, mode, note)
    newest = NewestOfRun(source, _Following(run, opened.config, weights, mode))
    return newest, _model(newest, backend, opened.config, opened.text_tokenizer(), opened.path)


def _model(
    source: WeightSource, backend: str, config: ModelConfig, tokenizer: Tokenizer, path: Path
) -> Model:
    """Start the backend; if that fails, close the source."""
    # If torch's thread pool spins between its jobs, the native operators lack its cores.
    policy = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    try:
        with environment(policy):
            return Model.without_weights(backend, config, tokenizer, path, end_tokens(config))
    except BaseException:
        source.close()
        raise


def _of_run(
    run: Run,
    weights: str,
    mode: str,
    *,
    patience_s: float = ANSWER_S,
    model: ModelConfig | None = None,
) -> tuple[ModelConfig, Tokenizer, RunWeights]:
    """Attach to a run that trains.

    Args:
        run: the run.
        weights: dtype of the backend's weights.
        mode: one of `READ_MODES`.
        patience_s: longest wait for an answer of its process.
        model: the expected model of the run; by default the one in its folder.

    Raises:
        _ReadCheckpoint: the run does not answer, or cannot be read in this mode.
        _NotNow: the run is starting, or has just ended.
        ArenaError: the run cannot be read at all.
    """
    try:
        arena = Arena.connect(socket_path(run.directory), patience_s)
    except NoAnswer as error:
        raise _ReadCheckpoint(_silent(run)) from error
    except ArenaError as error:
        if not run.is_locked():
            raise _NotNow(f"run {run.name} has just ended") from error
        if not socket_path(run.directory).is_socket():
            raise _NotNow(f"run {run.name} is starting and cannot be read yet") from error
        raise
    try:
        if WORDS not in arena.layout.segments and mode in OF_COPIES:
            raise _ReadCheckpoint(
                f"run {run.name} does not publish copies for readers (start it with --live on)"
            )
        config, tokenizer = checkpoint.read_model(run.architecture)
        source = RunWeights(
            arena,
            model or config,
            name=run.name,
            mode=mode,
            weights=weights,
            patience_s=2 * patience_s,
        )
        return config, tokenizer, source
    except NoAnswer as error:
        arena.close()
        raise _ReadCheckpoint(_silent(run)) from error
    except BaseException:
        arena.close()
        raise


def _silent(run: Run) -> str:
    return f"the process that trains run {run.name} does not answer (is it stopped?)"


def _of_checkpoint(opened: Opened, weights: str, mode: str, note: str = "") -> CheckpointWeights:
    saved = opened.path / manifest.NAME
    return CheckpointWeights(
        opened.path,
        opened.config,
        opened.tensors,
        version=manifest.read(opened.path)["step"] if saved.is_file() else None,
        mode=READ_MODES[0] if mode == CHECKPOINT else mode,
        weights=weights,
        note=note,
    )


class _Following:
    """Opens newer weights of a run after a source that has ended."""

    def __init__(self, run: Run, model: ModelConfig, weights: str, mode: str) -> None:
        self._run, self._model, self._weights, self._mode = run, model, weights, mode
        self._seen: Path | None = None
        self._not_before = 0.0

    def __call__(self, source: WeightSource) -> WeightSource | None:
        """Return a source on the resumed run, or on a newer checkpoint, or None."""
        try:
            return self._resumed() or self._saved(source)
        except MlxhogError:  # files are being written, or have another version
            return None

    def _resumed(self) -> WeightSource | None:
        """A source on the resumed run; None if it does not train, or cannot be read.

        After a failure the next try comes `AGAIN_S` later, because text generation waits for it.
        """
        if self._mode == CHECKPOINT or time.monotonic() < self._not_before:
            return None
        if not self._run.is_locked():
            return None
        try:
            _, _, source = _of_run(
                self._run, self._weights, self._mode, patience_s=SOON_S, model=self._model
            )
        except _NotNow:
            return None
        except (_ReadCheckpoint, MlxhogError):  # silent, without copies, or of another version
            self._not_before = time.monotonic() + AGAIN_S
            return None
        if not source.ended():
            return source
        source.close()
        return None

    def _saved(self, source: WeightSource) -> WeightSource | None:
        path = checkpoint.latest(self._run)
        if path == self._seen:
            return None
        self._seen = path
        if manifest.read(path)["step"] <= source.newest():
            return None
        return _of_checkpoint(formats.open(path), self._weights, self._mode)
