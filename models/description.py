"""A model's config as people write it: every field with its value and what it is; other values.

The fields and their descriptions are those of the families' config classes (`fields.doc`), nested
ones by dotted names: `mlstm_block.mlstm.num_heads`. What `to_yaml` writes, `registry` reads back.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.fields import DOC
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers import to_dict

SPELLINGS = {
    "hidden_size": "embedding_dim",
    "num_hidden_layers": "num_blocks",
    "tie_word_embeddings": "tie_weights",
}
"""Names of one family's fields, and what another family calls them."""
_WIDTH = 44  # column of the comments, where the values leave room


@dataclass(frozen=True)
class Field:
    """One field of a model.

    Attributes:
        name: with dots where it stands inside another.
        value: as YAML has it; of one that holds others, a mapping of their values.
        doc: what it is.
        holds: whether it holds others, which follow it.
    """

    name: str
    value: object
    doc: str
    holds: bool = False


def fields(cfg: ModelConfig) -> list[Field]:
    """Return every field of a model that people may set, in order."""
    return list(_fields(cfg, ""))


def written(cfg: ModelConfig) -> dict[str, Any]:
    """Return a model as the mapping that YAML holds; `families.read` makes the model of it."""
    values = {one.name: one.value for one in fields(cfg) if "." not in one.name}
    return {"model_type": cfg.model_type, **values}


def to_yaml(cfg: ModelConfig) -> str:
    """Return a model as YAML with a comment for every field."""
    lines = [("model_type: " + cfg.model_type, f"family: {families.of(cfg).title}")]
    for one in fields(cfg):
        depth = one.name.count(".")
        indent, name = "  " * depth, one.name.rpartition(".")[2]
        if isinstance(cfg_layers := one.value, list) and name == "layers":
            lines.append((f"{indent}{name}:", one.doc))
            lines += [(f"{indent}  - {_flow(layer)}", "") for layer in cfg_layers]
        else:
            value = "" if one.holds else f" {_flow(one.value)}"
            lines.append((f"{indent}{name}:{value}", one.doc))
    return "".join(
        f"{line:{_WIDTH}}  # {comment}\n" if comment else f"{line}\n" for line, comment in lines
    )


def changed(cfg: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    """Return a model with other values of some fields.

    Args:
        cfg: the model.
        values: by the name of a field, with dots, or by what another family calls it.

    Raises:
        ConfigError: there is no such field, or the family refuses a value.
    """
    if not values:
        return cfg
    data = written(cfg)
    known = [one.name for one in fields(cfg)]
    for given, value in values.items():
        name = given if given in known else SPELLINGS.get(given, given)
        if name not in known:
            raise ConfigError(_unknown(given, known))
        *sections, last = name.split(".")
        holder = data
        for section in sections:
            holder = holder[section]
        holder[last] = value
    new = families.read(data, strict=True)
    kept = {"extra": cfg.extra} if hasattr(cfg, "extra") else {}
    return dataclasses.replace(new, **kept)  # type: ignore[type-var]


def _fields(config: object, prefix: str) -> Iterator[Field]:
    assert dataclasses.is_dataclass(config)
    for one in dataclasses.fields(config):
        if DOC not in one.metadata:
            continue
        name, value = prefix + one.name, getattr(config, one.name)
        if isinstance(config, MADConfig) and name == "layers":
            yield Field(name, [to_dict(layer) for layer in config.layers], one.metadata[DOC])
            continue
        holds = dataclasses.is_dataclass(value)
        yield Field(name, _plain(value), one.metadata[DOC], holds)
        if holds:
            yield from _fields(value, name + ".")


def _plain(value: object) -> object:
    """Return the value of a field as YAML has it."""
    if dataclasses.is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _flow(value: object) -> str:
    """Spell a value of YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _unknown(name: str, known: list[str]) -> str:
    """Say that there is no such field, with the nearest, or those of this name inside others."""
    inner = [one for one in known if one.endswith("." + name)]
    near = inner or difflib.get_close_matches(name, [*known, *SPELLINGS], n=1)
    words = " or ".join(map(repr, near))
    hint = f"did you mean {words}?" if near else f"its fields are {', '.join(known)}"
    return f"the model has no field {name!r}; {hint}"
