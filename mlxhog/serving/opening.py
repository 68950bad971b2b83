"""Open a run or a checkpoint for generation: its model, and the source of its weights.

A run that trains is read from its arena, a run that has ended from its newest checkpoint, and a
resumed run from its arena again.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mlxhog.arena import Arena
from mlxhog.arena.requests import CONNECT_S, NoAnswer, socket_path
from mlxhog.base.paths import expanded
from mlxhog.checkpoint import checkpoint, formats, hub, manifest
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.formats import weights as files
from mlxhog.checkpoint.run import Run
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.display.views import Tell
from mlxhog.errors import ArenaError, CheckpointError, ConfigError, MlxhogError, RunError
from mlxhog.models.families import ModelConfig
from mlxhog.serving import CHECKPOINT, MODES
from mlxhog.serving.source import CheckpointWeights, NoWeights, RunWeights, WeightSource

FIRST_RUN_S = 5.0  # longest wait for the first run of a folder
POLL_S = 0.1
SOON_S = 0.5  # longest wait for a resumed run's answer, because text generation stops meanwhile

Opened = tuple[WeightSource, ModelConfig, Tokenizer, Path]
"""Weights to load, architecture, tokenizer, and the path of the weights."""


def open_source(
    spec: str,
    root: Path,
    *,
    weights: str,
    mode: str,
    wait_s: float,
    say: Tell,
    pause: Callable[[float], object],
) -> Opened:
    """Open a run while it trains, the newest checkpoint of a run that has ended, or a checkpoint.

    If a run that trains publishes no snapshots, modes that need them read its newest checkpoint. If
    its process does not answer, all modes do. Then the source's `note` gives the reason.

    `load` in `mlxhog/serving/model.py` describes arguments and errors. The caller closes the
    source.
    """
    if mode not in MODES:
        raise ConfigError(f"no read mode {mode!r}; choose from {', '.join(MODES)}")
    run = _begun(spec, root, wait_s, say, pause)
    if run is not None:
        of_run = _open_run(run, weights, mode)
        of_run[0].next_source = partial(_after, run, weights, mode)
        return of_run
    opened = formats.open(checkpoint.locate(spec, root))
    source = CheckpointWeights(opened, mode, weights)
    return source, opened.config, opened.text_tokenizer(), opened.path


def _begun(
    spec: str, root: Path, wait_s: float, say: Tell, pause: Callable[[float], object]
) -> Run | None:
    """Wait until the run that `spec` names has begun, and return it; None if it names no run."""
    began_s, first_s = time.monotonic(), min(wait_s, FIRST_RUN_S)
    while (run := _run(spec, root)) is None:
        if spec != "latest" or runs.list_runs(root) or time.monotonic() - began_s >= first_s:
            return None
        pause(POLL_S)
    if not run.is_starting():
        return run
    if wait_s > 0:
        reason = f"run {run.name} is starting: no weights yet"
        say(f"{reason}; waiting up to {wait_s:g} s (--wait)")
    while run.is_starting():
        if time.monotonic() - began_s >= wait_s:
            raise RunError(
                f"run {run.name} is still starting and has no weights yet; try again later, or "
                "wait longer (--wait 600)"
            )
        pause(POLL_S)
    if not runs.is_run(run.directory):
        raise RunError(f"run {run.name} ended before it had weights; its terminal shows the reason")
    return run


def _run(spec: str, root: Path) -> Run | None:
    try:
        if hub.is_name(spec) or runs.split(spec, root)[1] is not None:
            return None
        is_run = runs.is_run(root / spec) or not files.candidates(expanded(spec))
        return runs.find(spec, root) if is_run else None
    except (RunError, OSError):
        return None  # opening it as a checkpoint will raise the error


def _open_run(run: Run, weights: str, mode: str) -> Opened:
    """Open the weights of a run that trains, else its checkpoint (`checkpoint.choose`)."""
    note = ""
    if mode != CHECKPOINT and run.is_locked():
        try:
            return _attached(run, weights, mode, CONNECT_S)
        except NoWeights as reason:
            note = str(reason)
    try:
        opened = formats.open(checkpoint.choose(run))
    except CheckpointError as error:
        raise CheckpointError(f"{note}; {error}" if note else str(error)) from error
    note = note and f"{note}, so its newest checkpoint is read"
    source = CheckpointWeights(opened, mode, weights, note)
    return source, opened.config, opened.text_tokenizer(), opened.path


def _after(run: Run, weights: str, mode: str, version: int) -> WeightSource | None:
    """Open the resumed run, or a checkpoint after a version; None if neither can be read now."""
    note = ""
    if mode != CHECKPOINT and run.is_locked():
        try:
            live, *_ = _attached(run, weights, mode, SOON_S)
            if not live.ended():
                return live
            live.close()
        except NoWeights as reason:
            note = f"{reason}, so its newest checkpoint is read"
        except (MlxhogError, OSError):  # another version
            pass
    with suppress(MlxhogError, OSError):  # its files are being written, or have another version
        path = checkpoint.choose(run)
        if manifest.read(path)["step"] > version:
            return CheckpointWeights(formats.open(path), mode, weights, note)
    return None


def _attached(run: Run, weights: str, mode: str, patience_s: float) -> Opened:
    """Attach to a run while it trains, whose process may take `patience_s` to answer.

    Raises:
        NoWeights: the run does not answer, is starting or has just ended, or has no snapshots.
        ArenaError: the run cannot be read at all.
    """
    path = socket_path(run.directory)
    try:
        arena = Arena.connect(path, patience_s)
        try:
            config, tokenizer, base = checkpoint.read_model(run.architecture)
            base = None if base is None else base.inside(run.directory)
            how: dict[str, Any] = {"name": run.name, "mode": mode, "weights": weights, "base": base}
            source = RunWeights(arena, config, **how, patience_s=2 * patience_s)
        except BaseException:
            arena.close()  # else the run would keep publishing for this process
            raise
    except NoAnswer as error:
        silent = f"the process that trains run {run.name} does not answer (is it stopped?)"
        raise NoWeights(silent) from error
    except ArenaError as error:
        if (holder := run.holder()) is None:
            raise NoWeights(f"run {run.name} has just ended") from error
        if holder.elsewhere:
            raise NoWeights(f"run {run.name} trains in the memory of {holder.elsewhere}") from error
        if not path.is_socket():
            raise NoWeights(f"run {run.name} is starting and cannot be read yet") from error
        raise
    return source, config, tokenizer, run.directory
