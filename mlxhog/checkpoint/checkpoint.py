"""Checkpoints: save, find and load the state from which training continues.

    checkpoints/step-00001000/
      model.safetensors       parameters under transformers' names, float32
      config.json             the architecture; AutoModelForCausalLM.from_pretrained reads both
      tokenizer.json, tokenizer_config.json, chat_template.jinja
      optimizer.safetensors   moments
      state.json              step, position in the data, and the size and digest of each file
    checkpoints/latest        the name of the newest checkpoint
    checkpoints/best          a link to the checkpoint with the best validation score, or a file
                              with its name on a disk without links; none with `--no-keep-best`
    model                     a link to the newest checkpoint, or to the best of a run that ended
                              worse (`choose`), for programs that need a path

A checkpoint is written under a `.part` name, flushed and renamed; then `latest` and `model` are
updated, and older checkpoints removed. So a kill at any moment leaves the previous one whole.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import darwin, locks, mapped, plain_json, reading, tensors
from mlxhog.base.durable import (
    disk_errors,
    new_directory,
    remove,
    replace_file,
    replace_link,
    require_space,
    write_synced,
)
from mlxhog.base.inside import subfolder
from mlxhog.base.output import say_once
from mlxhog.base.paths import expanded, quoted
from mlxhog.checkpoint import formats, hub, manifest
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.base_model import BaseModel, described_adapter, read_adapter
from mlxhog.checkpoint.formats import contents, peft, weights
from mlxhog.checkpoint.formats.opening import read_config
from mlxhog.checkpoint.run import BEST, LATEST, Run
from mlxhog.data import tokenizers
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import CheckpointError, EnvironmentLacks, RunError
from mlxhog.models import families
from mlxhog.models.families import ModelConfig

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.json"
ADAPTER = "adapter.json"  # beside the config of a run that trains one
MIN_BATCHES, FEW_MARGIN = 4, 0.01
"""Batches needed to estimate the noise of two evaluations' difference, and its share of the best
score with fewer batches."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint, whose arrays are read-only views of mapped files."""

    path: Path
    step: int  # updates applied when it was saved
    params: dict[str, NDArray[np.float32]]
    model: ModelConfig  # its architecture, with the adapter of `params` if there is one
    optimizer: dict[str, NDArray[Any]]
    state: dict[str, Any]  # of the trainer, as it was passed to `save`
    base: BaseModel | None  # beside an adapter
    tokenizer: Tokenizer  # of the training tokens


def save(
    run: Run,
    *,
    step: int,
    params: Mapping[str, NDArray[np.float32]],
    model: ModelConfig,
    optimizer: Mapping[str, NDArray[Any]],
    state: Mapping[str, Any],
    tokenizer: Tokenizer,
    base: BaseModel | None = None,
    keep_last: int = 3,
    replaces_best: bool = False,
    note: Callable[[str], object] = lambda text: None,
) -> Path:
    """Save a checkpoint, then remove all but the last few; return its directory.

    The caller holds the run's lock. `step` counts the updates applied so far. `params` are float32
    arrays that no process writes meanwhile, those of the adapter if `model` has one, which stands
    beside a `base`. The `state`, of the trainer, has JSON values. `keep_last` is at least 1.
    `replaces_best` removes the link `best`, which leads to a checkpoint of this step with other
    weights. A missing folder of checkpoints is created. `note` gets a sentence if `latest` or
    `model` cannot name the checkpoint.

    Raises:
        CheckpointError: a parameter is not float32 or not finite; nothing is saved.
        EnvironmentLacks: the disk is too small or became full, the system refuses, or the files
            cannot be read again; or another machine has taken the run. Earlier checkpoints are
            whole.
    """
    for name, array in params.items():
        if array.dtype != np.float32:
            raise CheckpointError(f"{name} is {array.dtype}, expected float32; nothing was saved")
    final = run.checkpoints / f"step-{step:08d}"
    n_bytes = sum(array.nbytes for array in (*params.values(), *optimizer.values()))
    locks.require_held(run.directory)
    with disk_errors(f"saving checkpoint {final.name}"):
        subfolder(run.directory, run.checkpoints.name)
        _clear_remains(run.checkpoints)
        require_space(run.checkpoints, n_bytes, f"checkpoint {final.name}")
        with new_directory(final) as part:
            described, file = _described(model, tokenizer), MODEL
            if base is None:
                ours = contents.our_tensors(model, params)
            else:
                path, file = base.inside(run.directory).path, peft.MODEL
                ours, described[peft.CONFIG] = peft.content(model, params, path)
                state = {**state, "base": base.to_json()}
            for name, finite in tensors.write_each(part / file, ours):
                if not finite:
                    raise CheckpointError(
                        f"{name} has numbers that are not finite; nothing was saved, the previous "
                        "checkpoint is unchanged"
                    )
            tensors.write(part / OPTIMIZER, optimizer)
            for name, content in described.items():
                write_synced(part / name, content)
            manifest.write(part, step, state)
            _read_back(part)
            if replaces_best:
                (run.checkpoints / BEST).unlink()
    try:
        with disk_errors(f"writing {run.checkpoints / LATEST}"):
            replace_file(run.checkpoints / LATEST, f"{final.name}\n".encode())
    except EnvironmentLacks as error:
        with suppress(OSError):  # without it the newest checkpoint is the latest
            (run.checkpoints / LATEST).unlink()
        note(f"{final.name} is saved; {error}")
    try:
        link_model(run, final)
    except EnvironmentLacks as error:
        note(f"{final.name} is saved; {error}")
    permanent = {final, best(run)}
    for old in manifest.by_age(run.checkpoints)[:-keep_last]:
        if old not in permanent:
            remove(old)
    return final


def _read_back(part: Path) -> None:
    """Open a new checkpoint as its readers will; the manifest has just read its tensors."""
    try:
        manifest.verify(part, manifest.read(part), large=())
        for path in part.glob("*.safetensors"):
            tensors.read(path)
    except CheckpointError as error:
        raise EnvironmentLacks(
            f"this disk does not give back what was written to it, so nothing was saved: {error}; "
            "name a folder on another disk with --runs-dir"
        ) from error


def write_model(
    folder: Path, model: ModelConfig, tokenizer: Tokenizer, base: BaseModel | None = None
) -> None:
    """Write the config and the tokenizer of a checkpoint, each file by rename."""
    subfolder(folder.parent, folder.name)
    described = _described(model, tokenizer)
    if base is not None:
        described[ADAPTER] = described_adapter(model, base)
    for name, content in described.items():
        replace_file(folder / name, content)


def read_model(folder: Path) -> tuple[ModelConfig, Tokenizer, BaseModel | None]:
    """Return what `write_model` has written."""
    model, base = families.read(read_config(folder / CONFIG)), None
    if (folder / ADAPTER).is_file():
        model, base = read_adapter(folder / ADAPTER, model)
    return model, tokenizers.load(folder, model.bos_token_id), base


def load(path: Path, *, verify: bool = True) -> Checkpoint:
    """Load a checkpoint from which training can continue.

    `verify` reads the tensor files, compares their digests, and checks that they are finite.

    Raises:
        CheckpointError: it is missing, incomplete, damaged or of another program; or a tensor is
            missing, unexpected, of another shape or not finite. The message names file or tensor.
        DataError: its tokenizer is damaged.
        EnvironmentLacks: its tokenizer needs a package that is not installed.

    Concurrency: safe while a run saves further checkpoints, as long as it keeps this one.
    """
    record = manifest.read(path)
    manifest.verify(path, record, large=None if verify else ())
    is_adapter = (path / peft.CONFIG).is_file()  # whose base is verified, too
    opened = formats.open(path, verify=verify and is_adapter)
    trained = families.trainable_spec(opened.config)
    params = {name: opened.tensors[name] for name in trained}
    optimizer = tensors.read(path / OPTIMIZER)
    if verify:
        for name, array in (*params.items(), *optimizer.items()):
            if not mapped.is_finite(array):
                raise manifest.damaged(path, f"{name} has numbers that are not finite")
    return Checkpoint(
        path=path,
        step=record["step"],
        params=params,
        model=opened.config,
        optimizer=optimizer,
        state=record["state"],
        tokenizer=tokenizers.load(path),
        base=None if opened.base is None else BaseModel.of(opened.base),
    )


def find(
    spec: str, root: Path, which: str | None = None, *, resumes: bool = False
) -> tuple[Run | None, Path]:
    """Return the checkpoint that `spec` names, and the run to which it belongs.

    `spec` is a name on the hub (`hub`), which may be downloaded; the path of a directory or file of
    tensors, of any format; or a run in the folder `root`, or a run and `/best` or `/latest`.
    `which` of a run's checkpoints is "latest", "best", or the name of a folder; None is `choose`,
    or the newest for a command that `resumes`.

    Raises:
        RunError: there is no such run.
        CheckpointError: the run has no such checkpoint; `which` is not None and `spec` already
            names one checkpoint; or the system does not let us read the path.
        MlxhogError: as of `hub.fetch`.
    """
    is_one = hub.is_name(spec)
    path = hub.fetch(spec) if is_one else expanded(spec)
    run, (_, named) = runs.run_of(path), runs.split(spec, root)
    try:
        is_one = is_one or run is not None
        is_one = is_one or (not runs.is_run(root / spec) and any(weights.candidates(path)))
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {darwin.reason(error)}; name another path, or make this one "
            "readable"
        ) from error
    if which is not None and (is_one or named):
        raise CheckpointError(
            f"{spec} names one checkpoint, and --checkpoint is {which!r}; name its run to choose "
            "among its checkpoints, or leave --checkpoint out"
        )
    if is_one:
        place = path.resolve()
        of_run = runs.run_of(place if place.is_dir() else place.parent)
        if path.name == BEST or (run is None and of_run is not None):  # links, which move
            return run or runs.run_of(place), place
        return run, path.absolute()
    try:
        run = runs.find(spec, root)
    except RunError as error:
        if path.is_dir():
            raise CheckpointError(
                f"{path} is neither a checkpoint nor a run directory: a checkpoint has tensors "
                "(model.safetensors, an index and its shards, or a torch file) and a config.json "
                "or config.yaml, a run has a run.json; name one of these"
            ) from error
        raise
    which = named or which
    if which == BEST:
        if (path_of_best := best(run)) is None:
            raise CheckpointError(
                f"the run {run.directory} keeps no best checkpoint: none of its evaluations "
                f"was saved; train with --keep-best and --eval-every to have one, or take "
                f"{quoted(run.name)}/{LATEST}, the newest"
            )
        return run, path_of_best
    if which is None and not resumes:
        return run, choose(run)
    if which in (None, LATEST):
        return run, latest(run)
    if which == Path(which).name and (run.checkpoints / which / manifest.NAME).is_file():
        return run, run.checkpoints / which
    whole = [path.name for path in manifest.by_age(run.checkpoints)]
    raise CheckpointError(
        f"the run {run.name} has no checkpoint {which!r}; it has {', '.join(whole) or 'none yet'}"
    )


def locate(spec: str, root: Path, which: str | None = None) -> Path:
    """Return the checkpoint of `find`."""
    return find(spec, root, which)[1]


def lasting_name(spec: str, root: Path) -> str:
    """Return what names the checkpoint of `find` for good: its commit on the hub, or its path."""
    path = locate(spec, root).absolute()
    return (hub.name_of(path) if hub.is_name(spec) else None) or str(path)


def resumable(spec: str, root: Path) -> tuple[Run, Path]:
    """Return the run that `--resume` names, and its checkpoint, as `find`."""
    run, path = find(spec, root, resumes=True)
    if run is None:
        raise CheckpointError(
            f"{path} belongs to no run that could continue; begin a new one with --init-from "
            f"{quoted(path)}"
        )
    return run, path


def noise(a: Sequence[float], b: Sequence[float], n_bytes: int) -> float | None:
    """Return the noise of the difference of two evaluations of a text, in bits per byte.

    It is two standard errors of the paired difference, from the nats of their batches. None with
    too few batches.
    """
    if len(a) != len(b) or len(a) < MIN_BATCHES:
        return None
    deviation = float(np.subtract(a, b).std(ddof=1))
    return 2.0 * deviation * math.sqrt(len(a)) / (math.log(2) * n_bytes)


def is_worse(last: float, best: float, noise: float | None) -> bool:
    """Whether a last validation score is worse than the best one by more than its noise."""
    return last - best > (FEW_MARGIN * best if noise is None else noise)


def better(run: Run) -> tuple[Path, str] | None:
    """Return the best checkpoint of a run that ended worse, and both scores; else None."""
    status, path = run.read_status(), best(run)
    for end in (status, status.get("earlier") or {}):
        score, result = end.get("best") or {}, end.get("result") or {}
        peak, last = score.get("bits_per_byte"), result.get("val_bits_per_byte")
        if path is None or peak is None or last is None or run.is_locked():
            continue
        name = Path(end.get("checkpoint") or "").name  # else trained on since these scores
        if is_worse(last, peak, score.get("noise")) and latest(run).name == name:
            return path, f"{peak:.3f} bits per byte at step {score['step']:,}, the last {last:.3f}"
    return None


def choose(run: Run) -> Path:
    """Return the newest checkpoint, or the best, with a line on stderr, if the last `is_worse`."""
    if (found := better(run)) is None:
        return latest(run)
    name = quoted(run.name)
    say_once(f"{run.name}: the best checkpoint, {found[1]}; {name}/{LATEST} names the last")
    return found[0]


def link_model(run: Run, path: Path) -> None:
    """Point `model` to a checkpoint of the run; the caller holds its lock."""
    _link(run.model, path.relative_to(run.directory))


def mark_best(run: Run, path: Path) -> None:
    """Point `best` to a checkpoint of the run; the caller holds its lock."""
    place = run.checkpoints / BEST
    with disk_errors(f"writing {place}"):
        subfolder(run.directory, run.checkpoints.name)
    is_text = not place.is_symlink() and best(run) is not None  # as on a disk without links
    if is_text or not _link(place, Path(path.name)):
        with disk_errors(f"writing {place}"):
            replace_file(place, f"{path.name}\n".encode())


def _link(path: Path, target: Path) -> bool:
    """Point a link to a checkpoint; return whether the disk has links."""
    if os.path.lexists(path) and not path.is_symlink():
        what = "folder" if path.is_dir() else "file"
        raise EnvironmentLacks(
            f"{path} is a {what} of its own, as in a copied run, and stays as it is: it does not "
            f"lead to {target.name}; rename or remove it"
        )
    with disk_errors(f"linking {path}"):
        return replace_link(path, target)


def best(run: Run) -> Path | None:
    """Return the checkpoint with the best validation score; None if the run keeps none."""
    place = run.checkpoints / BEST
    try:
        name = (
            os.readlink(place) if place.is_symlink() else reading.read_bytes(place, 4096).decode()
        )
    except (OSError, ValueError):
        return None
    path = run.checkpoints / Path(name.strip()).name
    return path if (path / manifest.NAME).is_file() else None


def latest(run: Run) -> Path:
    """Return the newest checkpoint of a run, which `latest` names.

    Raises:
        CheckpointError: the run has no checkpoint yet, or the newest is damaged.
    """
    try:
        text = reading.read_bytes(run.checkpoints / LATEST, 4096).decode()
        name = Path(text.strip().partition("\n")[0]).name
    except (OSError, ValueError):
        name = ""
    # After a kill between two renames a checkpoint that was being replaced has its `.old` name.
    for candidate in (name, f"{name}.old") if name else ():
        if (run.checkpoints / candidate / manifest.NAME).is_file():
            return run.checkpoints / candidate
    if name:
        raise manifest.damaged(
            run.checkpoints / name, f"{LATEST} names it, and it has no {manifest.NAME}"
        )
    if checkpoints := manifest.by_age(run.checkpoints):
        return checkpoints[-1]
    raise CheckpointError(
        f"the run {run.directory} has no checkpoint yet; it saves one when it ends (mlxhog stop "
        f"{quoted(run.directory)})"
        if run.is_locked()
        else f"the run {run.directory} has no checkpoint: it ended before its first; begin it "
        f"again with mlxhog train --config {quoted(run.config_path)}"
    )


def _described(model: ModelConfig, tokenizer: Tokenizer) -> dict[str, bytes]:
    fields = contents.trained_config_json(model)
    # A document ends where the next one starts, so BOS ends it.
    fields |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.bos)
    described = {CONFIG: plain_json.dumps(fields, indent=1), **tokenizer.files()}
    if families.is_language_model(model):
        generation = contents.generation_json(fields, range(tokenizer.n_ids))
        described[contents.GENERATION] = plain_json.dumps(generation, indent=1)
    return described


def _clear_remains(checkpoints: Path) -> None:
    """Remove files of killed processes; rename an `.old` checkpoint without a successor back."""
    for part in checkpoints.glob("*.part"):
        remove(part)
    for old in checkpoints.glob("step-*.old"):
        if old.with_suffix("").exists():
            remove(old)
        else:
            os.replace(old, old.with_suffix(""))
