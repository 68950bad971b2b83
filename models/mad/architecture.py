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
  # or, in their place, `blocks: {preset: .., ..}`
plugin: [..]                     # files of layers of your own, see `config.plugins`

A preset is a known pattern of blocks:

    preset: xlstm      ratio "a:b" of mLSTM to sLSTM blocks, or slstm_at; count; style
    preset: lfm2       layer_types, as in a config.json of LFM2
    preset: striping   pattern such as "1A:3H"; count; channel; letters

`style` is the kind of the blocks. "large": every block is a mixer and a SwiGLU. "v1": as in the
first xLSTM paper, mLSTM blocks have an up-projection and no feed-forward layer, sLSTM blocks have a
gated feed-forward layer. "7:1" is used for both in the literature, so `style` has no default.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517; Hugging Face transformers, `lfm2`; Poli et al.
2024, arXiv:2403.17844 (striping).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from typing import Any

from mlxhog.config import plugins
from mlxhog.errors import ConfigError, did_you_mean, shown
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
    names = (*_FIELDS, "defaults", "layers", "blocks")
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
    if ("layers" in model) == ("blocks" in model):
        raise ConfigError("give either model.layers or model.blocks")
    defaults = _defaults(model.get("defaults", {}))
    if "blocks" in model:
        try:
            layers = _expand(_mapping("model.blocks", model["blocks"]), defaults)
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


_XLSTM = {
    "large": {"m": "mlstm swiglu", "s": "slstm swiglu"},
    "v1": {"m": "mlstm-v1", "s": "slstm-v1 geglu"},
}
_LFM2 = {"conv": "gated-conv swiglu", "full_attention": "mh-attention swiglu"}
_LFM2_NUMBERS: Defaults = {
    "mh-attention": {"heads": 16, "kv_heads": 8, "base": 1e6, "qk_norm": True, "bias": False}
}
_STRIPES = {"A": "mh-attention", "H": "hyena"}


def _expand(blocks: Mapping[str, Any], defaults: Defaults) -> tuple[Layer, ...]:
    """Return the layers of `blocks:`."""
    name = blocks.get("preset")
    if not isinstance(name, str) or name not in _PRESETS:
        names = ", ".join(_PRESETS)
        raise ConfigError(
            f"preset is {name!r}{did_you_mean(name, _PRESETS)}; the presets are {names}"
        )
    layers, own = _PRESETS[name]
    for key in blocks:
        if key not in ("preset", *own):
            raise ConfigError(
                f"preset {name} has no {key!r}{did_you_mean(key, own)}; its fields are "
                f"{', '.join(own)}"
            )
    return layers(blocks, defaults)


def _xlstm(blocks: Mapping[str, Any], defaults: Defaults) -> tuple[Layer, ...]:
    style = blocks.get("style")
    if not isinstance(style, str) or style not in _XLSTM:
        text = "missing" if style is None else repr(style)
        raise ConfigError(
            f"style is {text}; say which blocks the ratio counts: "
            "large (every mixer with a SwiGLU) or v1 (those of the first xLSTM paper)"
        )
    count = _count(blocks)
    if ("ratio" in blocks) == ("slstm_at" in blocks):
        raise ConfigError('give either ratio, such as "7:1", or slstm_at, such as [3, 7]')
    if "ratio" in blocks:
        kinds = _by_ratio(blocks["ratio"], count)
    else:
        kinds = _by_places(blocks["slstm_at"], count)
    return _parsed([_XLSTM[style][kind] for kind in kinds], defaults)


def _by_ratio(ratio: object, count: int) -> str:
    """One letter per block: a mLSTM, then b sLSTM, and again."""
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", ratio if isinstance(ratio, str) else "")
    m, s = (int(match[1]), int(match[2])) if match else (0, 0)
    if not m + s:
        raise ConfigError(
            f'ratio is {shown(ratio)}; write it as "7:1", in quotes: seven mLSTM blocks, then one '
            "sLSTM"
        )
    if count % (m + s):
        near = max(1, round(count / (m + s))) * (m + s)
        raise ConfigError(
            f"{count} blocks are not whole groups of {m}:{s}; set count to {near}, or name the "
            "places by slstm_at"
        )
    return ("m" * m + "s" * s) * (count // (m + s))


def _by_places(places: object, count: int) -> str:
    if not isinstance(places, list) or any(type(place) is not int for place in places):
        raise ConfigError(f"slstm_at is {shown(places)}; give a list of blocks, such as [3, 7]")
    for place in places:
        if not 0 <= place < count:
            raise ConfigError(
                f"slstm_at names block {place}, and the blocks are 0 to {count - 1}; count from 0"
            )
    return "".join("s" if block in places else "m" for block in range(count))


def _lfm2(blocks: Mapping[str, Any], defaults: Defaults) -> tuple[Layer, ...]:
    types = blocks.get("layer_types")
    if not isinstance(types, list) or not types:
        raise ConfigError(
            f"layer_types is {types!r}; list operators, such as [conv, conv, full_attention]"
        )
    for word in types:
        if not isinstance(word, str) or word not in _LFM2:
            raise ConfigError(
                f"layer_types holds {word!r}{did_you_mean(word, _LFM2)}; LFM2 has conv and "
                "full_attention"
            )
    names = {*_LFM2_NUMBERS, *defaults}
    numbers = {name: {**_LFM2_NUMBERS.get(name, {}), **defaults.get(name, {})} for name in names}
    return _parsed([_LFM2[word] for word in types], numbers)


def _striping(blocks: Mapping[str, Any], defaults: Defaults) -> tuple[Layer, ...]:
    pattern = str(blocks.get("pattern"))
    if not re.fullmatch(r"\d*[A-Za-z](:\d*[A-Za-z])*", pattern):
        raise ConfigError(
            f'pattern is {blocks.get("pattern")!r}; write stripes such as "1A:3H", in quotes'
        )
    stripes = re.findall(r"(\d*)([A-Za-z])(?::|$)", pattern)  # quadratic for another text
    letters = {**_STRIPES, **_letters(blocks.get("letters", {}))}
    for _, letter in stripes:
        if letter not in letters:
            raise ConfigError(
                f"pattern {pattern} has the unknown letter {letter}; add it to "
                f"letters, such as {{{letter}: gated-conv}}"
            )
    group = [letters[letter] for times, letter in stripes for _ in range(int(times or 1))]
    if not group:
        raise ConfigError(f"pattern {pattern} has no block; give a stripe a number above 0")
    channel = str(blocks.get("channel", "swiglu"))
    return _parsed(
        [f"{mixer} {channel}" for mixer in islice(cycle(group), _count(blocks))], defaults
    )


def _parsed(blocks: list[str], defaults: Defaults) -> tuple[Layer, ...]:
    check_count(2 * len(blocks))
    return parse(" ".join(blocks), defaults)


def _count(blocks: Mapping[str, Any]) -> int:
    if "count" not in blocks:
        raise ConfigError("count is missing; give the number of blocks")
    count = convert("count", blocks["count"], int)
    assert isinstance(count, int), "convert returns the requested type"
    if count < 1:
        raise ConfigError(f"count is {count}; give at least 1 block")
    check_count(count)
    return count


def _letters(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"letters is {value!r}; give names to layers, such as {{H: hyena}}")
    for layer in value.values():
        make(str(layer))
    return {str(key): str(layer) for key, layer in value.items()}


_PRESETS: dict[str, tuple[Callable[..., tuple[Layer, ...]], tuple[str, ...]]] = {
    "xlstm": (_xlstm, ("ratio", "slstm_at", "count", "style")),
    "lfm2": (_lfm2, ("layer_types",)),
    "striping": (_striping, ("pattern", "count", "channel", "letters")),
}
