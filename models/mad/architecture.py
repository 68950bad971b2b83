"""A candidate in a YAML file, read into the flat list with all numbers.

version: 1
model:
  dim: 128                       # width
  vocab_size: 320                # of a language model; a task brings its own
  norm: rmsnorm                  # no other is possible
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
plugin: [..]                     # files of layers of your own, see `config.plugins`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxhog.config import plugins
from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.models.fields import check_names, convert
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers import make
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

    The user's own layers come from the files that it names, see `config.plugins`.

    Raises:
        ConfigError: a field is unknown, missing or of the wrong type, a layer cannot be built, or
            the file of a layer may not be loaded.
    """
    files = plugins.texts(data.get(plugins.KEY))
    fields = {name: value for name, value in data.items() if name != plugins.KEY}
    return plugins.recalled(files, lambda: _read(fields, strict=strict), lambda cfg: cfg.layers)


def _read(data: Mapping[str, Any], *, strict: bool) -> MADConfig:
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


def _model(model: Mapping[str, Any]) -> MADConfig:
    names = (*_FIELDS, "defaults", "layers")
    values: dict[str, Any] = {"dim": DIM, "vocab_size": VOCABULARY}
    for key, value in model.items():
        if key not in names:
            raise ConfigError(
                f"model has no {key!r}{did_you_mean(key, names)}; its fields are {', '.join(names)}"
            )
        if key in _FIELDS:
            values[key] = convert(f"model.{key}", value, _FIELDS[key])
    if (norm := values.pop("norm", "rmsnorm")) != "rmsnorm":
        raise ConfigError(f"model.norm is {norm!r}; only rmsnorm is possible")
    if "layers" not in model:
        raise ConfigError("model has no layers; list some, such as [mlstm, swiglu]")
    defaults = _defaults(model.get("defaults", {}))
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
    layers: list[Layer] = []
    for number, item in enumerate(value):
        layers += _item(f"{where}[{number}]", item, defaults)
        check_count(len(layers))
    return layers


def _item(where: str, item: object, defaults: Defaults) -> list[Layer]:
    if isinstance(item, dict) and "repeat" in item:
        return _repeated(where, item, defaults)
    try:
        if isinstance(item, str):
            return list(parse(item, defaults))
        if not isinstance(item, dict) or "type" not in item:
            raise ConfigError(
                f"{item!r} is not a layer; write a name, {{type: mlstm, heads: 4}}, or "
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
    assert isinstance(times, int), "convert returns the requested type"
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
