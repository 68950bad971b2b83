"""Blocks by the names people know them by; each becomes layers of the flat list.

    preset: xlstm      ratio "a:b" of mLSTM to sLSTM blocks, or slstm_at; count; style
    preset: lfm2       layer_types, as in a config.json of LFM2
    preset: striping   pattern such as "1A:3H"; count; channel; letters

`style` is that of the blocks: "large" gives a mixer and a SwiGLU for every block; "v1" those of
the first xLSTM paper, mLSTM blocks with their up-projection and no feed-forward layer, sLSTM
blocks with a gated one. "7:1" means both, so nothing is assumed.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517; Hugging Face transformers, `lfm2`; Poli et al.
2024, arXiv:2403.17844 (striping).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from typing import Any

from mlxhog.config.options import did_you_mean
from mlxhog.errors import ConfigError
from mlxhog.models.fields import convert
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers import make
from mlxhog.models.mad.sequence import Defaults, check_count, parse

_XLSTM = {
    "large": {"m": "mlstm swiglu", "s": "slstm swiglu"},
    "v1": {"m": "mlstm-v1", "s": "slstm-v1 geglu"},
}
_LFM2 = {"conv": "gated-conv swiglu", "full_attention": "mh-attention swiglu"}
_LFM2_NUMBERS: Defaults = {
    "mh-attention": {"heads": 16, "kv_heads": 8, "base": 1e6, "qk_norm": True, "bias": False}
}
_LETTERS = {"A": "mh-attention", "H": "hyena"}


def expand(blocks: Mapping[str, Any], defaults: Defaults) -> tuple[Layer, ...]:
    """Return the layers that `blocks:` of a YAML file stands for.

    Args:
        blocks: `preset`, and the fields of that preset.
        defaults: numbers of layers by name.

    Raises:
        ConfigError: no such preset, a field is unknown, missing or impossible.
    """
    name = blocks.get("preset")
    if not isinstance(name, str) or name not in _PRESETS:
        known = ", ".join(_PRESETS)
        raise ConfigError(
            f"preset is {name!r}{did_you_mean(name, _PRESETS)}; the presets are {known}"
        )
    read, own = _PRESETS[name]
    for key in blocks:
        if key not in ("preset", *own):
            raise ConfigError(
                f"preset {name} has no {key!r}{did_you_mean(key, own)}; its fields are "
                f"{', '.join(own)}"
            )
    return read(blocks, defaults)


def _xlstm(blocks: Mapping[str, Any], defaults: Defaults) -> tuple[Layer, ...]:
    style = blocks.get("style")
    if not isinstance(style, str) or style not in _XLSTM:
        got = "missing" if style is None else repr(style)
        raise ConfigError(
            f"style is {got}; say which blocks the ratio counts: large (every mixer with a SwiGLU) "
            "or v1 (those of the first xLSTM paper)"
        )
    count = _count(blocks)
    if ("ratio" in blocks) == ("slstm_at" in blocks):
        raise ConfigError('give either ratio, such as "7:1", or slstm_at, such as [3, 7]')
    if "ratio" in blocks:
        kinds = _by_ratio(blocks["ratio"], count)
    else:
        kinds = _by_places(blocks["slstm_at"], count)
    return _layers([_XLSTM[style][kind] for kind in kinds], defaults)


def _by_ratio(ratio: object, count: int) -> str:
    """One letter per block: a mLSTM, then b sLSTM, and again."""
    found = re.fullmatch(r"(\d+):(\d+)", str(ratio))
    m, s = (int(found[1]), int(found[2])) if found else (0, 0)
    if not m + s:
        raise ConfigError(
            f'ratio is {ratio!r}; write it as "7:1", in quotes: seven mLSTM blocks, then one sLSTM'
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
        raise ConfigError(f"slstm_at is {places!r}; give a list of blocks, such as [3, 7]")
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
    return _layers([_LFM2[word] for word in types], numbers)


def _striping(blocks: Mapping[str, Any], defaults: Defaults) -> tuple[Layer, ...]:
    pattern = str(blocks.get("pattern"))
    stripes = re.findall(r"(\d*)([A-Za-z])(?::|$)", pattern)
    if not re.fullmatch(r"\d*[A-Za-z](:\d*[A-Za-z])*", pattern):
        raise ConfigError(
            f'pattern is {blocks.get("pattern")!r}; write stripes such as "1A:3H", in quotes'
        )
    letters = {**_LETTERS, **_mapping("letters", blocks.get("letters", {}))}
    for _, letter in stripes:
        if letter not in letters:
            raise ConfigError(
                f"pattern {pattern} has the letter {letter}, which stands for nothing; add it to "
                f"letters, such as {{{letter}: gated-conv}}"
            )
    group = [letters[letter] for times, letter in stripes for _ in range(int(times or 1))]
    if not group:
        raise ConfigError(f"pattern {pattern} has no block; give a stripe a number above 0")
    channel = str(blocks.get("channel", "swiglu"))
    return _layers(
        [f"{mixer} {channel}" for mixer in islice(cycle(group), _count(blocks))], defaults
    )


def _layers(blocks: list[str], defaults: Defaults) -> tuple[Layer, ...]:
    check_count(2 * len(blocks))
    return parse(" ".join(blocks), defaults)


def _count(blocks: Mapping[str, Any]) -> int:
    if "count" not in blocks:
        raise ConfigError("count is missing; say how many blocks there are")
    count = convert("count", blocks["count"], int)
    assert isinstance(count, int), "convert returns what it was asked for"
    if count < 1:
        raise ConfigError(f"count is {count}; there is at least 1 block")
    check_count(count)
    return count


def _mapping(name: str, value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {value!r}; give names to layers, such as {{H: hyena}}")
    for layer in value.values():
        make(str(layer))
    return {str(key): str(layer) for key, layer in value.items()}


_PRESETS: dict[str, tuple[Callable[..., tuple[Layer, ...]], tuple[str, ...]]] = {
    "xlstm": (_xlstm, ("ratio", "slstm_at", "count", "style")),
    "lfm2": (_lfm2, ("layer_types",)),
    "striping": (_striping, ("pattern", "count", "channel", "letters")),
}
