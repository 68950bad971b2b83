"""What `mlxhog analyze` is given: an architecture, settings of a run, a checkpoint or a run."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlxhog.checkpoint import checkpoint as checkpoints
from mlxhog.checkpoint import formats
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.formats import weights
from mlxhog.checkpoint.run import Run
from mlxhog.config import limits, plain_yaml
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.sources import Given, read_yaml, resolve
from mlxhog.errors import ConfigError, RunError
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.registry import architectures, load_architecture


@dataclass(frozen=True, kw_only=True)
class Named:
    """A model, how it is trained, and where its parameters come from.

    Attributes:
        title: what it is, for people.
        config: the training settings.
        model: the architecture.
        run: the run it is, or lies in.
        checkpoint: the directory of its parameters; None for initial values.
        saved: the checkpoint, where a run of ours made it.
    """

    title: str
    config: TrainConfig
    model: ModelConfig
    run: Run | None = None
    checkpoint: Path | None = None
    saved: checkpoints.Checkpoint | None = None


def find(spec: str, given: Sequence[Given], root: Path) -> Named:
    """Find what a word names.

    Args:
        spec: an architecture's name or file, a file of training options, a run (path, name,
            latest), or a checkpoint.
        given: options that hold in place of what is found.
        root: the folder of runs.

    Raises:
        ConfigError: it is none of these, or its options are wrong.
        RunError, CheckpointError: the run has no checkpoint, or it is damaged.
    """
    path = Path(spec).expanduser()
    if spec in architectures():
        return _architecture(spec, given)
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml", ".json"):
        return _settings(path, given) if _is_settings(path) else _architecture(spec, given)
    found = runs.run_of(path)
    if found is not None:
        return _run(found, path.absolute(), given)
    try:
        found = runs.find(spec, root)
    except RunError as error:
        if path.is_dir() and weights.candidates(path):
            return _foreign(path, given)
        raise _unknown(spec, root, error) from error
    return _run(found, checkpoints.latest(found), given)


def _is_settings(path: Path) -> bool:
    """Whether a file has the options of `train` rather than the fields of an architecture."""
    try:
        keys = plain_yaml.loads(limits.read_text(path))
    except (OSError, ValueError):
        return False  # reading it as an architecture says what is wrong
    if not isinstance(keys, dict) or not isinstance(keys.get("model", ""), str):
        return False
    known = {s for one in options(TrainConfig).values() for s in (one.name, *one.aliases)}
    words = [str(key).replace("-", "_") for key in keys]
    return sum(word in known for word in words) > len(words) / 2


def _architecture(spec: str, given: Sequence[Given]) -> Named:
    config = resolve(TrainConfig, [[Given("model", spec, "CONFIG_OR_RUN")], given])
    return _checked(Named(title=f"model {spec}", config=config, model=load_architecture(spec)))


def _settings(path: Path, given: Sequence[Given]) -> Named:
    config = resolve(TrainConfig, [read_yaml(path), given])
    if config.resume is not None:
        raise ConfigError(
            f"{path} goes on with a run (resume: {config.resume}); analyze that run instead"
        )
    model = load_architecture(config.model)
    return _checked(Named(title=f"settings {path}", config=config, model=model))


def _run(run: Run, at: Path, given: Sequence[Given]) -> Named:
    try:
        config = resolve(TrainConfig, [read_yaml(run.config_path), given])
    except ConfigError as error:
        raise ConfigError(
            f"{run.directory} has options that are not those of mlxhog train: {error}"
        ) from error
    found = checkpoints.load(at)  # which compares every digest
    model = families.read(found.config)
    return _checked(
        Named(
            title=f"run {run.name}, {at.name}",
            config=replace(config, model=str(at), resume=None),  # its file may have moved
            model=model,
            run=run,
            checkpoint=at,
            saved=found,
        )
    )


def _foreign(path: Path, given: Sequence[Given]) -> Named:
    """A checkpoint that no run of ours made."""
    opened = formats.open(path)
    layers = [[Given("model", str(path), "CONFIG_OR_RUN")]]
    if opened.tokenizer() is not None:
        layers.append([Given("tokenizer", str(opened.folder), "CONFIG_OR_RUN")])
    config = resolve(TrainConfig, [*layers, given])
    named = Named(
        title=f"checkpoint {path}", config=config, model=opened.config, checkpoint=path.absolute()
    )
    return _checked(named)


def _checked(named: Named) -> Named:
    families.check_language_model(named.model)
    families.check_length(named.model, named.config.seq_len)
    return named


def _unknown(spec: str, root: Path, error: RunError) -> ConfigError | RunError:
    """Say what a word could have been meant to be."""
    if Path(spec).exists() or spec == "latest":
        return error
    names = [*architectures(), *(run.name for run in runs.list_runs(root)), "latest"]
    near = difflib.get_close_matches(Path(spec).stem, names, n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"architectures are {', '.join(architectures())}; runs: mlxhog runs"
    )
    return ConfigError(f"{spec!r} is no architecture, no file and no run in {root}; {hint}")
