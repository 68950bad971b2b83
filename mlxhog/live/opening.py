"""Open a run or a checkpoint for a text generator: its model, and where its weights come from."""

from __future__ import annotations

from pathlib import Path

from mlxhog.arena import Arena
from mlxhog.arena.handover import socket_path
from mlxhog.arena.published import WORDS
from mlxhog.checkpoint import checkpoint, formats, manifest
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.formats import weights as files
from mlxhog.checkpoint.run import Run
from mlxhog.decoding.model import Model, end_tokens
from mlxhog.errors import ArenaError, CheckpointError, RunError
from mlxhog.live import CHECKPOINT, READ_MODES
from mlxhog.live.running import OF_COPIES, RunWeights
from mlxhog.live.source import CheckpointWeights, WeightSource, checked_mode


def open_source(
    spec: str,
    *,
    root: Path,
    backend: str,
    weights: str = "float32",
    mode: str = READ_MODES[0],
) -> tuple[WeightSource, Model]:
    """Open what `spec` names: a run while it trains, its newest checkpoint later, or a checkpoint.

    Where a run that trains keeps no copies for readers, the modes that read them take its newest
    checkpoint; the source's `note` says so.

    Args:
        spec: a run (a path, a name below `root`, or `latest`), or the path of a checkpoint.
        root: the folder of runs.
        backend: what computes, one of `BACKEND_WORDS` in `mlxhog/machine/workers.py`.
        weights: what it holds, one of `WEIGHTS` or `QUANTIZED_BITS` in `mlxhog/backends`.
        mode: one of `MODES` in `mlxhog/live`.

    Returns:
        The source, which the caller closes, and a model without weights: `source.load` or a
        `Follower` fills its backend.

    Raises:
        RunError: there is no such run.
        CheckpointError: there is no checkpoint yet, it is damaged or of another family of models.
        ConfigError: no such mode, or the config contradicts itself or is an auto-encoder's.
        DataError: there is no tokenizer, or one that does not fit the model.
        EnvironmentLacks: the backend is not there.
        ArenaError: the run that trains cannot be read, such as one of another version.
    """
    note = ""
    if mode != CHECKPOINT:
        checked_mode(mode)
        run = _running(spec, root)
        if run is not None:
            try:
                return _of_run(run, backend, weights, mode)
            except _ReadCheckpoint as reason:
                note = str(reason)
    try:
        return _of_checkpoint(spec, root, backend, weights, mode, note)
    except CheckpointError as error:
        raise CheckpointError(f"{note}; {error}" if note else str(error)) from error


class _ReadCheckpoint(Exception):
    """Why a run that trains is read from its newest checkpoint."""


def _running(spec: str, root: Path) -> Run | None:
    """The run that `spec` names, if a supervisor holds it; None for everything else."""
    try:
        if files.candidates(Path(spec).expanduser()):
            return None
        run = runs.find(spec, root)
        return run if run.is_locked() else None
    except (RunError, OSError):
        return None  # whose error the checkpoint's way will tell


def _of_run(run: Run, backend: str, weights: str, mode: str) -> tuple[WeightSource, Model]:
    try:
        arena = Arena.connect(socket_path(run.directory))
    except ArenaError as error:
        if run.is_locked() and not socket_path(run.directory).is_socket():
            raise _ReadCheckpoint(f"run {run.name} is starting, and not readable yet") from error
        if not run.is_locked():
            raise _ReadCheckpoint(f"run {run.name} has just ended") from error
        raise
    try:
        if WORDS not in arena.layout.segments and mode in OF_COPIES:
            raise _ReadCheckpoint(
                f"run {run.name} keeps no copies for readers (start it with --live on), so this is "
                "its newest checkpoint"
            )
        config, tokenizer = checkpoint.read_model(run.architecture)
        source = RunWeights(arena, config, name=run.name, mode=mode, weights=weights)
    except BaseException:
        arena.close()
        raise
    try:
        model = Model.without_weights(backend, config, tokenizer, run.directory, end_tokens(config))
    except BaseException:
        source.close()
        raise
    return source, model


def _of_checkpoint(
    spec: str, root: Path, backend: str, weights: str, mode: str, note: str
) -> tuple[WeightSource, Model]:
    opened = formats.open(checkpoint.locate(spec, root))
    saved = opened.path / manifest.NAME
    source = CheckpointWeights(
        opened.path,
        opened.config,
        opened.tensors,
        version=manifest.read(opened.path)["step"] if saved.is_file() else 0,
        mode=READ_MODES[0] if mode == CHECKPOINT else mode,
        weights=weights,
        note=note,
    )
    tokenizer = opened.text_tokenizer()
    model = Model.without_weights(
        backend, opened.config, tokenizer, opened.path, end_tokens(opened.config)
    )
    return source, model
