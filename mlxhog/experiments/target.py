"""CONFIG_OR_RUN of `analyze`, `advise` and `compare`: architecture, options, checkpoint or run."""

from dataclasses import dataclass, replace
from pathlib import Path

from mlxhog.base import plain_yaml
from mlxhog.base.paths import expanded, quoted
from mlxhog.checkpoint import checkpoint as checkpoints
from mlxhog.checkpoint import formats, hub
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.config.options import options
from mlxhog.config.sources import ConfigSource, read_yaml
from mlxhog.errors import ConfigError, RunError, did_you_mean
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.registry import architectures, is_line, load_architecture
from mlxhog.training.supervisor.api import inherited


@dataclass(frozen=True, kw_only=True)
class AnalysisTarget:
    """A model, its training, and the source of its parameters."""

    title: str  # for people
    config: TrainConfig  # the training settings
    model: ModelConfig  # the architecture
    run: Run | None = None  # of the checkpoint
    checkpoint: Path | None = None  # directory of its parameters; None for initial values
    saved: checkpoints.Checkpoint | None = None  # the checkpoint, if a run of mlxhog made it


def options_of(spec: str) -> tuple[str, ConfigSource] | None:
    """Return title and options of an architecture or a file; None for a run or a checkpoint."""
    if hub.is_name(spec):
        return None
    path = expanded(spec)
    shipped = path.stem if path.suffix in (".yaml", ".yml") and not path.exists() else spec
    if shipped in architectures() or is_line(spec):
        return shipped, {"model": (shipped, shipped)}
    if not path.is_file() or path.suffix.lower() not in (".yaml", ".yml", ".json"):
        return None
    if _is_settings(path):
        return path.stem, read_yaml(path, named=True)
    return path.stem, {"model": (spec, spec)}


def find_target(spec: str, overrides: ConfigSource, root: Path) -> AnalysisTarget:
    """Return the target of a command-line argument.

    `spec` is an architecture's name or file, a file of training options, a run (path, name,
    latest), a run and `/best`, or a checkpoint; `root` the folder of runs.

    Raises:
        ConfigError: it is not any of these, or its options are wrong.
        RunError, CheckpointError: the run has no checkpoint, or it is damaged.
    """
    known = options_of(spec)
    if known is not None:
        title = f"{'model' if list(known[1]) == ['model'] else 'settings'} {spec}"
        config = train_config([known[1], overrides])
        if (origin := config.resume or config.init_from) is not None:
            raise ConfigError(
                f"{title} begins with the weights of {origin}; analyze that run or checkpoint "
                "instead, with the other options as flags"
            )
        model = load_architecture(config.model, config.set, config.plugin)
        target = AnalysisTarget(title=title, config=config, model=model)
    else:
        try:
            run, at = checkpoints.find(spec, root)
        except RunError as error:
            raise not_found(spec, root, error) from error
        target = _alone(at, overrides) if run is None else _from_run(run, at, overrides)
    families.check_language_model(target.model)
    families.check_length(target.model, target.config.seq_len)
    return target


def _is_settings(path: Path) -> bool:
    """Whether a file has the options of `train` rather than the fields of an architecture."""
    try:
        keys = plain_yaml.read_fields(path, "the file")
    except ConfigError:
        return False  # the reader of architectures reports the error
    if not isinstance(keys.get("model", ""), str):
        return False
    known = {s for one in options(TrainConfig).values() for s in (one.name, *one.aliases)}
    words = [str(key).replace("-", "_") for key in keys]
    return sum(word in known for word in words) > len(words) / 2


def _alone(path: Path, overrides: ConfigSource) -> AnalysisTarget:
    opened = formats.open(path)
    layer: ConfigSource = {"model": (str(opened.folder), "CONFIG_OR_RUN")}
    if opened.tokenizer() is not None:
        layer["tokenizer"] = (str(hub.tokenizer_folder(opened.folder)), "CONFIG_OR_RUN")
    return AnalysisTarget(
        title=f"checkpoint {opened.title}",
        config=train_config([layer, overrides]),
        model=opened.config,
        checkpoint=path,
    )


def _from_run(run: Run, at: Path, overrides: ConfigSource) -> AnalysisTarget:
    stored = inherited(run, [overrides])
    try:
        config = train_config([stored, overrides])
    except ConfigError as error:
        raise ConfigError(f"options of {run.directory}: {error}") from error
    if config.adapter is not None:
        raise ConfigError(
            f"{run.name} trains an adapter, and this reads runs that train all parameters; merge "
            f"it first: mlxhog convert {quoted(str(at))} OUT --merge --format mlxhog"
        )
    saved = checkpoints.load(at)  # compares every digest
    config = replace(
        config,
        model=str(at),  # its file may have moved
        set=None,
        tokenizer=str(at) if config.tokenizer == "auto" else config.tokenizer,
        init_from=None,
        resize_vocab=False,
        resume=None,
    )
    return AnalysisTarget(
        title=f"run {run.name}, {at.name}",
        config=config,
        model=saved.model,
        run=run,
        checkpoint=at,
        saved=saved,
    )


def not_found(spec: str, root: Path, error: RunError) -> ConfigError | RunError:
    """Return the error for an unknown word, with the nearest name."""
    word, _ = runs.split(spec, root)
    if Path(spec).exists() or word == runs.LATEST:
        return error
    names = [*architectures(), *(run.name for run in runs.list_runs(root)), runs.LATEST]
    hint = did_you_mean(Path(word).stem, names)
    hint = hint or f"; architectures are {', '.join(architectures())}; runs: mlxhog runs"
    return ConfigError(f"{spec!r} is no architecture, no file and no run in {root}{hint}")
