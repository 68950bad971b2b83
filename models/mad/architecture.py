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
from mlxhog.models import fields
from mlxhog.models.fields import check_names
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers import make
from mlxhog.models.mad.sequence import Defaults, read_layers

VERSION = 1
DIM = 128
VOCABULARY = 320  # bytes, BOS at 256, padded


def read(data: Mapping[str, Any], *, strict: bool = False) -> MADConfig:
    """Return the model of a YAML file in the form above, or of a config.json.

    The user's own layers come from the files that it names, see `config.plugins`.

    Raises:
        ConfigError: a field is unknown, missing or of the wrong type, a layer cannot be built, or
            the file of a layer may not be loaded.
    """
    files = plugins.texts(data.get(plugins.KEY))
    own = {name: value for name, value in data.items() if name != plugins.KEY}
    return plugins.recalled(files, lambda: _read(own, strict=strict), lambda cfg: cfg.layers)


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
    model = {"dim": DIM, "vocab_size": VOCABULARY, **model}
    if (norm := model.pop("norm", "rmsnorm")) != "rmsnorm":
        raise ConfigError(f"model.norm is {norm!r}; only rmsnorm is possible")
    defaults = _defaults(model.pop("defaults", {}))
    values, _ = fields.read(
        MADConfig,
        model,
        strict=True,
        where="model.",
        spellings={"dim": "hidden_size"},
        readers={"layers": lambda value: read_layers("model.layers", value, defaults)},
    )
    return MADConfig(**values)


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


def _mapping(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r}; give fields, such as 'heads: 4'")
    check_names(where, value)
    return value
