"""Find an architecture by its name, or by the path of a YAML or config.json file."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

from mlxhog.config import assignments, limits, plain_yaml
from mlxhog.errors import ConfigError
from mlxhog.files import plain_json
from mlxhog.models import description, families
from mlxhog.models.families import ModelConfig
from mlxhog.models.mad.architecture import DIM, VOCABULARY
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import parse


def architectures() -> list[str]:
    """Sorted names of the architectures in the package; its `space-*` files are search spaces."""
    names = (file.name for file in resources.files("mlxhog.models").iterdir())
    return sorted(
        name.removesuffix(".yaml")
        for name in names
        if name.endswith(".yaml") and not name.startswith("space-")
    )


def source(name: str) -> str:
    """Return the YAML of one of `architectures()`."""
    return resources.files("mlxhog.models").joinpath(f"{name}.yaml").read_text("utf-8")


def is_stored(name_or_path: str | Path) -> bool:
    """Whether `load_architecture` reads the config.json of a checkpoint, whose sizes are fixed."""
    path = Path(name_or_path)
    return str(name_or_path) not in architectures() and (path.is_dir() or path.suffix == ".json")


def load_architecture(name_or_path: str | Path, changes: str | None = None) -> ModelConfig:
    """Read an architecture.

    Args:
        name_or_path: a name of `architectures()`, or the path of a YAML file, of a config.json, or
            of a directory that holds one (a checkpoint). An unknown field is an error in YAML and
            kept in a config.json.
        changes: other values of some fields, as `--set` takes them.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: no such name or file, not a mapping, or refused by its family.
    """
    return with_changes(_load(name_or_path), name_or_path, changes)


def with_changes(cfg: ModelConfig, name: str | Path, changes: str | None) -> ModelConfig:
    """Return a model with other values of some fields, as `--set` takes them.

    Raises:
        ConfigError: there is no such field, or the family refuses a value; it names the model.
    """
    try:
        return description.changed(cfg, assignments.parse(changes))
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"model {name} with --set {changes}: {error}") from error


def _load(name_or_path: str | Path) -> ModelConfig:
    text = str(name_or_path)
    if text in architectures():
        return families.read(_parse(source(text), text), strict=True)
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        near = difflib.get_close_matches(text, architectures(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(architectures())}"
        raise ConfigError(
            f"no architecture {text!r} (a name, a .yaml file, a config.json or a checkpoint "
            f"directory); {hint}"
        )
    try:
        content = limits.read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the architecture {path}: {error}; choose another"
        ) from error
    data = _parse(content, str(path))
    try:
        return families.read(data, strict=path.suffix != ".json")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_candidate(name_path_or_text: str | Path) -> MADConfig:
    """Return the MAD candidate that a name, a file or a line of layers means.

    Args:
        name_path_or_text: a name or a path as `load_architecture` takes it, or a line as `parse`
            does, which becomes a model of width 128 for bytes.

    Raises:
        ConfigError: it is none of these, or a model of another family.
    """
    text = str(name_path_or_text)
    is_path = isinstance(name_path_or_text, Path) or text.endswith((".yaml", ".yml", ".json"))
    if is_path or text in architectures() or Path(text).exists():
        cfg = load_architecture(name_path_or_text)
        if not isinstance(cfg, MADConfig):
            raise ConfigError(
                f"{text} is a model of the family {cfg.model_type!r}, which is no sequence of MAD "
                "layers; give a YAML file with 'model:', or a line such as 'mlstm swiglu'"
            )
        return cfg
    return MADConfig(vocab_size=VOCABULARY, hidden_size=DIM, layers=parse(text))


def _parse(text: str, name: str) -> dict[str, Any]:
    """Parse YAML or JSON text that has to be a mapping."""
    try:
        data = plain_json.loads(text) if name.endswith(".json") else plain_yaml.loads(text)
    except ValueError as error:
        raise ConfigError(f"the architecture {name} cannot be parsed: {error}; mend it") from error
    if not isinstance(data, dict):
        content = "is empty" if data is None else f"holds a {type(data).__name__}, not fields"
        raise ConfigError(
            f"the architecture {name} {content}; write lines such as 'hidden_size: 128'"
        )
    return data
