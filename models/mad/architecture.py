"""A candidate in a YAML file: read into the flat list with every number, and written again.

version: 1
model:
  dim: 128                       # width
  vocab_size: 320                # of a language model; a task brings its own
  norm: rmsnorm                  # the one there is
  position: none                 # none | learned | sincos
  backbone: language-model       # language-model | autoencoder
  max_length: 1024               # longest sequence, see `MADConfig`
  defaults:                      # numbers by layer
    mlstm: {heads: 4}
  layers:                        # one item is one residual layer, or several
    - mlstm
    - {type: slstm, heads: 2}
    - {repeat: 2, layers: [gated-conv, swiglu]}
  # or a line, `layers: "(mlstm swiglu)*7 slstm swiglu"`, see `sequence.py`
  # or, in their place, `blocks: {preset: .., ..}`, see `presets.py`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from mlxhog.config.options import did_you_mean
from mlxhog.errors import ConfigError
from mlxhog.models.fields import check_names, convert
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers import make, to_dict
from mlxhog.models.mad.presets import expand
from mlxhog.models.mad.sequence import Defaults, check_count, parse

VERSION = 1
DIM = 128
VOCABULARY = 320  # bytes, BOS at 256, padded

_FIELDS = {
    "dim": int,
    "vocab_size": int,
    "norm": str,
    "norm_eps": float,
    "position": str,
    "backbone": str,
    "max_length": int,
}


def read(data: Mapping[str, Any], *, strict: bool = False) -> MADConfig:
    """Return the model of a YAML file in the form above, or of a config.json.

    Raises:
        ConfigError: a field is unknown, missing or of the wrong type, or a layer cannot be built.
    """
    if not {"model", "version"} & data.keys():
        return MADConfig.from_dict(data, strict=strict)
    for key in data:
        if key not in ("version", "model", "model_type"):
            raise ConfigError(
                f"unknown field {key!r} beside 'version' and 'model'"
                f"{did_you_mean(key, ('version', 'model'))}"
            )
    if data.get("version", VERSION) != VERSION:
        raise ConfigError(
            f"version is {data['version']!r}, and this package reads version {VERSION}; update "
            "mlxhog, or write the file in that version"
        )
    return _model(_mapping("model", data.get("model")))


def to_yaml(cfg: MADConfig) -> str:
    """Return a model as a YAML file, every number of every layer spelt out."""
    model: dict[str, Any] = {
        "dim": cfg.hidden_size,
        "norm": "rmsnorm",
        **{name: getattr(cfg, name) for name in _FIELDS if name not in ("dim", "norm")},
        "layers": [to_dict(layer) for layer in cfg.layers],
    }
    return yaml.safe_dump({"version": VERSION, "model": model}, sort_keys=False, width=100)


def _model(model: Mapping[str, Any]) -> MADConfig:
    known = (*_FIELDS, "defaults", "layers", "blocks")
    values: dict[str, Any] = {"dim": DIM, "vocab_size": VOCABULARY}
    for key, value in model.items():
        if key not in known:
            raise ConfigError(
                f"model has no {key!r}{did_you_mean(key, known)}; its fields are {', '.join(known)}"
            )
        if key in _FIELDS:
            values[key] = convert(f"model.{key}", value, _FIELDS[key])
    if (norm := values.pop("norm", "rmsnorm")) != "rmsnorm":
        raise ConfigError(f"model.norm is {norm!r}; the one there is is rmsnorm")
    if ("layers" in model) == ("blocks" in model):
        raise ConfigError("give either model.layers or model.blocks")
    defaults = _defaults(model.get("defaults", {}))
    if "blocks" in model:
        try:
            layers = expand(_mapping("model.blocks", model["blocks"]), defaults)
        except ConfigError as error:
            raise ConfigError(f"model.blocks: {error}") from error
    else:
        layers = tuple(_layers("model.layers", model["layers"], defaults))
    return MADConfig(hidden_size=values.pop("dim"), layers=layers, **values)


def _defaults(value: object) -> Defaults:
    defaults = {
        name: _mapping(f"model.defaults.{name}", numbers)
        for name, numbers in _mapping("model.defaults", value).items()
    }
    for name, numbers in defaults.items():
        try:
            make(name, numbers)
        except ConfigError as error:
            raise ConfigError(f"model.defaults: {error}") from error
    return defaults


def _layers(where: str, value: object, defaults: Defaults) -> list[Layer]:
    """Read a line of layers, or a list of items."""
    if isinstance(value, str):
        return _item(where, value, defaults)
    if not isinstance(value, list):
        raise ConfigError(f"{where} is {value!r}; give a list such as [mlstm, swiglu]")
    found: list[Layer] = []
    for number, item in enumerate(value):
        found += _item(f"{where}[{number}]", item, defaults)
        check_count(len(found))
    return found


def _item(where: str, item: object, defaults: Defaults) -> list[Layer]:
    if isinstance(item, dict) and "repeat" in item:
        return _repeated(where, item, defaults)
    try:
        if isinstance(item, str):
            return list(parse(item, defaults))
        if not isinstance(item, dict) or "type" not in item:
            raise ConfigError(
                f"{item!r} is no layer; write a name, {{type: mlstm, heads: 4}}, or "
                "{repeat: 2, layers: [..]}"
            )
        check_names("it", item)
        numbers = {key: value for key, value in item.items() if key != "type"}
        name = str(item["type"])
        return [make(name, {**defaults.get(name, {}), **numbers})]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _repeated(where: str, item: Mapping[Any, Any], defaults: Defaults) -> list[Layer]:
    for key in item:
        if key not in ("repeat", "layers"):
            raise ConfigError(
                f"{where}: a repetition has no {key!r}{did_you_mean(key, ('repeat', 'layers'))}; "
                "its fields are repeat and layers"
            )
    times = convert(f"{where}.repeat", item["repeat"], int)
    assert isinstance(times, int), "convert returns what it was asked for"
    if times < 1:
        raise ConfigError(f"{where}.repeat is {times}; repeat once or more")
    inner = _layers(f"{where}.layers", item.get("layers"), defaults)
    check_count(times * len(inner))
    return inner * times


def _mapping(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r}; give fields, such as 'heads: 4'")
    check_names(where, value)
    return value
