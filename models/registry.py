"""Architectures by name or path: reading, changing and writing them as YAML.

The fields and their descriptions are those of the families' config classes (`fields.described`);
nested fields have dotted names: `mlstm_block.mlstm.num_heads`. `load_architecture` reads the output
of `to_yaml`.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mlxhog.base import plain_yaml
from mlxhog.base.paths import expanded
from mlxhog.config import plugins
from mlxhog.config.components import LAYERS
from mlxhog.errors import ConfigError, nearest
from mlxhog.models import families
from mlxhog.models.fields import described
from mlxhog.models.layers import to_dict
from mlxhog.models.layers.layer import Layer
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import parse
from mlxhog.models.model import LAST, ModelConfig

_WIDTH = 44  # column of the comments, if the values are shorter


def architectures() -> list[str]:
    """Sorted names of the architectures in the package; its `space-*` files are search spaces."""
    names = (file.name for file in resources.files("mlxhog.models").iterdir())
    return sorted(
        name.removesuffix(".yaml")
        for name in names
        if name.endswith(".yaml") and not name.startswith("space-")
    )


def source(name: str) -> str:
    """Return the YAML text of one of `architectures()`."""
    return resources.files("mlxhog.models").joinpath(f"{name}.yaml").read_text("utf-8")


def is_stored(name_or_path: str | Path) -> bool:
    """Whether `load_architecture` reads the config.json of a checkpoint, whose sizes are fixed."""
    text = str(name_or_path)
    return text not in architectures() and (os.path.isdir(expanded(text)) or text.endswith(".json"))


def is_line(text: str) -> bool:
    """Whether a text is a line of layers, as `load_candidate` reads it, and names no file."""
    is_path = text.endswith((".yaml", ".yml", ".json")) or "/" in text or os.path.exists(text)
    return not is_path and (text in LAYERS.known() or re.search(r"[\s(*,]", text) is not None)


def load_architecture(
    name_or_path: str | Path, changes: str | None = None, plugin: str | None = None
) -> ModelConfig:
    """Read an architecture: a name of `architectures()`, a line of layers, or a path.

    The path is that of a YAML file, of a config.json, or of a directory with one (a checkpoint). An
    unknown field is an error in YAML and kept in a config.json. `changes` are values of fields as
    of `--set`; `plugin` has remembered files of layers.

    Raises:
        ConfigError: no such name or file, not a mapping, or refused by its family.
    """
    files = plugins.texts(plugin)
    cfg = plugins.recalled(files, lambda: _load(name_or_path), lambda cfg: cfg.own_layers)
    return with_changes(cfg, name_or_path, changes)


def _load(name_or_path: str | Path) -> ModelConfig:
    text = str(name_or_path)
    if text in architectures():
        return families.read(plain_yaml.loads(source(text)) or {}, strict=True)
    if is_line(text):
        return MADConfig(layers=parse(text))
    path = expanded(text)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        near = nearest(text, architectures())
        hint = f"did you mean {near!r}?" if near else f"known are {', '.join(architectures())}"
        raise ConfigError(
            f"no architecture {text!r} (a name, a line of layers, a .yaml file, a config.json or a "
            f"checkpoint directory); {hint}"
        )
    data = plain_yaml.read_fields(path, "the architecture")
    try:
        return families.read(data, strict=path.suffix != ".json")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_candidate(name_path_or_text: str | Path, *, dim: int | None = None) -> MADConfig:
    """Read a MAD candidate: a name, a file, or a line of layers at width `dim`, 128, for bytes."""
    text = str(name_path_or_text)
    is_path = isinstance(name_path_or_text, Path) or text.endswith((".yaml", ".yml", ".json"))
    if is_path or text in architectures() or os.path.exists(expanded(text)):
        cfg = load_architecture(name_path_or_text)
        if not isinstance(cfg, MADConfig):
            raise ConfigError(
                f"{text} is a model of the family {cfg.model_type!r}, not a sequence of MAD "
                "layers; give a YAML file with 'layers:', or a line such as 'mlstm swiglu'"
            )
        return cfg
    return MADConfig(layers=parse(text), hidden_size=dim or MADConfig.hidden_size)


# -- a model as fields ----------------------------------------------------------------------------


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, object, str]]:
    """Yield name, YAML value and help of every field that users may set, in order.

    A nested field has a dotted name; a field with nested ones has the value {}.
    """
    helps = described(type(config))
    for name in sorted(helps, key=lambda name: name in LAST):
        value = getattr(config, name)
        if isinstance(value, tuple):
            value = [to_dict(one) if isinstance(one, Layer) else one for one in value]
        is_section = dataclasses.is_dataclass(value)
        yield prefix + name, {} if is_section else value, helps[name]
        if is_section:
            yield from fields(value, f"{prefix}{name}.")


def as_mapping(cfg: ModelConfig) -> dict[str, Any]:
    """Return a model as a mapping for YAML, which `families.read` reads."""
    data: dict[str, Any] = {"model_type": cfg.model_type}
    for name, value, _ in fields(cfg):
        _put(data, name, value)
    return data | ({plugins.KEY: files} if (files := plugins.remembered(cfg.own_layers)) else {})


def _put(data: dict[str, Any], name: str, value: object) -> None:
    *sections, last = name.split(".")
    for section in sections:
        data = data[section]
    data[last] = value


def to_yaml(cfg: ModelConfig) -> str:
    """Return a model as YAML with a comment for every field."""
    lines = [("model_type: " + cfg.model_type, f"family: {cfg.title}")]
    for name, value, doc in fields(cfg):
        start = "  " * name.count(".") + name.rpartition(".")[2] + ":"
        if name == "layers" and isinstance(value, list):
            lines += [(start, doc), *((f"  - {_flow(layer)}", "") for layer in value)]
        else:
            lines.append((start if value == {} else f"{start} {_flow(value)}", doc))
    if files := plugins.remembered(cfg.own_layers):
        lines += [(f"{plugins.KEY}:", "of layers of your own")]
        lines += [(f"  - {_flow(file)}", "") for file in files]
    return "".join(
        f"{line:{_WIDTH}}  # {comment}\n" if comment else f"{line}\n" for line, comment in lines
    )


def with_changes(cfg: ModelConfig, model: str | Path, changes: str | None) -> ModelConfig:
    """Return a model with the `changes` of `--set`, or raise a ConfigError that names `model`."""
    try:
        values = plain_yaml.assignments(changes)
        if not values:
            return cfg
        data, known = as_mapping(cfg), [name for name, *_ in fields(cfg)]
        for key, value in values.items():
            name = cfg.aliases.get(key, key)
            if name not in known:
                near = nearest(name, [*known, *cfg.aliases])
                inner = [one for one in known if one.endswith("." + name)]
                words = " or ".join(map(repr, inner or ([near] if near else [])))
                hint = f"did you mean {words}?" if words else f"its fields are {', '.join(known)}"
                raise ConfigError(f"the model has no field {name!r}; {hint}")
            _put(data, name, value)
        return dataclasses.replace(families.read(data, strict=True), extra=cfg.extra)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"model {model} with --set {changes}: {error}") from error


def _flow(value: object) -> str:
    """Write a value as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
