"""Sequences of layers as people write them on one line: `(mlstm swiglu)*7 slstm(h4) swiglu`.

    sequence = item item ..           separated by spaces
    item     = layer | (sequence) | item*N
    layer    = name | name(number, ..)
    number   = field=value | hN       hN is heads=N

A number that is not written has its default. The canonical text of a flat list is one such line:
the same for equal lists, different for different lists, and `parse` reads it back.
"""

import re
from collections.abc import Iterable, Sequence

from mlxhog.base.reading import MAX_DIGITS
from mlxhog.config.options import options
from mlxhog.errors import ConfigError
from mlxhog.models.fields import MAX_LAYERS, check_names
from mlxhog.models.layers import make
from mlxhog.models.layers.layer import Layer

_TOKEN = re.compile(
    r"\s*((?P<name>[A-Za-z][\w-]*)(?P<numbers>\([^()]*\))?"
    r"|(?P<open>\()|(?P<close>\))|\*\s*(?P<times>\d+))\s*"
)
_HEADS = re.compile(r"h(\d+)")


def parse(text: str | Sequence[str]) -> tuple[Layer, ...]:
    """Return the flat list of one line, or of its words as on mad-lab's command line.

    Raises:
        ConfigError: unknown layer or number, or not a sequence; the message names the place.
    """
    line = (text if isinstance(text, str) else " ".join(text)).strip()
    short = repr(line if len(line) <= 60 else line[:57] + "...")
    groups: list[list[Layer]] = [[]]
    last = 0  # layers of the item before this place, which `*N` repeats
    at = 0

    def mistake(what: str) -> ConfigError:
        return ConfigError(
            f"{what} at character {at + 1} of {short}; write names, parentheses around layers and "
            "*N behind them, such as '(mlstm swiglu)*2 slstm(h4)'"
        )

    while at < len(line):
        token, group = _TOKEN.match(line, at), groups[-1]
        if token is None:
            raise mistake(f"{line[at]!r} begins no layer")
        if token["name"]:
            group.append(_layer(token["name"], token["numbers"]))
            last = 1
        elif token["open"]:
            groups.append([])
            last = 0
        elif token["close"]:
            if len(groups) == 1 or not group:
                raise mistake("')' closes no layers")
            groups.pop()
            groups[-1] += group
            last = len(group)
        else:
            times = int(token["times"][:MAX_DIGITS])  # too many, with or without the rest
            if not last or times < 1:
                raise mistake(f"*{times} repeats no layers")
            check_count(len(group) + last * (times - 1))
            group += group[-last:] * (times - 1)
            last = 0
        at = token.end()
        check_count(len(groups[-1]))
    if len(groups) > 1:
        raise mistake("a parenthesis is not closed")
    if not groups[0]:
        raise mistake("there is no layer")
    return tuple(groups[0])


def canonical(layers: Iterable[Layer]) -> str:
    """Return the canonical text of a flat list: with heads, and numbers that are not the default.

    Equal lists have equal texts, and `parse` of the text returns the list.
    """
    return " ".join(map(_text, layers))


def check_count(count: int) -> None:
    """Refuse a list that is too long for memory.

    Raises:
        ConfigError: more than `MAX_LAYERS`.
    """
    if count > MAX_LAYERS:
        raise ConfigError(f"the sequence has {count} layers; write {MAX_LAYERS} at most")


def _layer(name: str, numbers: str | None) -> Layer:
    own: dict[str, object] = {}
    for word in filter(str.strip, (numbers or "()")[1:-1].split(",")):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals and (heads := _HEADS.fullmatch(key)):
            key, equals, value = "heads", "=", heads[1]
        if not equals:
            raise ConfigError(
                f"{name}{numbers}: {key!r} is not a number of a layer; write name=value, or h4 for "
                "heads=4"
            )
        if key in own:
            raise ConfigError(f"{name}{numbers} has {key} twice; write it once")
        own[key] = value
    return make(name, own)


def _text(layer: Layer) -> str:
    numbers, specs = list[str](), options(type(layer))
    for name, value in layer.hyperparameters().items():
        if name == "heads" and value is not None:
            numbers.insert(0, f"h{value}")
        elif value != specs[name].default:
            spelt = specs[name].to_yaml_value(value)
            numbers.append(f"{name}={str(spelt).lower() if isinstance(spelt, bool) else spelt}")
    return f"{layer.name}({','.join(numbers)})" if numbers else layer.name


def read_layers(value: object, where: str = "layers") -> tuple[Layer, ...]:
    """Read a line of layers, or a list of lines and of layers such as `{type: mlstm, heads: 4}`.

    `where` is the name of the field, for messages.

    Raises:
        ConfigError: it has another form, or a layer cannot be built.
    """
    if isinstance(value, tuple):
        return value
    if not isinstance(value, str | list):
        raise ConfigError(f"{where} is {value!r}; give a list such as [mlstm, swiglu]")
    layers: tuple[Layer, ...] = ()
    for number, item in enumerate([value] if isinstance(value, str) else value):
        try:
            layers += parse(item) if isinstance(item, str) else (_of(item),)
            check_count(len(layers))
        except ConfigError as error:
            place = where if isinstance(value, str) else f"{where}[{number}]"
            raise ConfigError(f"{place}: {error}") from error
    return layers


def _of(item: object) -> Layer:
    if not isinstance(item, dict) or "type" not in item:
        raise ConfigError(f"{item!r} is not a layer; write a name, or {{type: mlstm, heads: 4}}")
    check_names("it", item)
    numbers = {key: value for key, value in item.items() if key != "type"}
    return make(str(item["type"]), numbers)
