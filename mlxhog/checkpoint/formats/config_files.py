"""The config of a checkpoint: config.json, config.yaml, or a file that the user names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxhog.config import plain_yaml
from mlxhog.config.limits import MOST_CONFIG_BYTES, MOST_SHOWN, shown
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.files import plain_json, small_files
from mlxhog.models import families
from mlxhog.models.families import ModelConfig

NAMES = ("config.json", "config.yaml", "config.yml")


def find(folder: Path) -> dict[str, Any]:
    """Return the fields of the config files of a folder, empty if there are none.

    A config.json and a config.yaml add to each other, as `saving` writes them for the xlstm
    package, whose config.yaml may hold its own fields only.

    Raises:
        ConfigError: a file cannot be parsed, or two of them contradict each other.
    """
    found: dict[str, Any] = {}
    for name in NAMES:
        if (folder / name).is_file():
            fields = read(folder / name, named=False)
            for key in found.keys() & fields.keys():
                if found[key] != fields[key]:
                    raise ConfigError(
                        f"{folder}: {str(key)[:MOST_SHOWN]} is {shown(found[key])} in config.json "
                        f"and {shown(fields[key])} in {name}; keep one of the two"
                    )
            found |= fields
    return found


def read(path: Path, *, named: bool = True) -> dict[str, Any]:
    """Return the fields of one config file; those of a training config are under `model`.

    Args:
        path: the file.
        named: the user named it; as for `small_files.read`.

    Raises:
        ConfigError: it is missing, cannot be parsed, is too large, leads out of its directory, or
            holds no fields.
    """
    try:
        content = small_files.read(path, most=MOST_CONFIG_BYTES, named=named, refusal=ConfigError)
        text = content.decode("utf-8")
        data = plain_json.loads(text) if path.suffix == ".json" else plain_yaml.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}; mend it") from error
    if isinstance(data, dict) and isinstance(data.get("model"), dict) and "vocab_size" not in data:
        data = data["model"]
    if not isinstance(data, dict):
        raise ConfigError(
            f"the config {path} holds a {type(data).__name__}, not fields such as num_blocks"
        )
    return data


def model_of(
    fields: Mapping[str, Any], package: str, where: Path, config: Path | None = None
) -> ModelConfig:
    """Return the model that a checkpoint's config describes.

    Args:
        fields: of its config.
        package: whose names its tensors have, as `opening.package_of` says.
        where: the checkpoint, for messages.
        config: the file of the fields, where it is not beside the checkpoint; for messages.

    Raises:
        CheckpointError: there are no fields, or they are those of another family.
        ConfigError: they contradict each other, or one is missing or of a wrong type.
    """
    family = package if package in ("xlstm_v1", "mad") else "xlstm"
    if not fields:
        raise CheckpointError(
            f"{where} has no config beside it ({' or '.join(NAMES[:2])}); put it there, or give it "
            f"to convert once: mlxhog convert {where} NEW --to mlxhog --config FILE"
        )
    stated = fields.get("model_type", family)
    if stated != family:
        raise CheckpointError(
            f"{where}: the config says model_type {shown(stated)} and the tensors are those of "
            f"{family!r}; use the config that belongs to them"
        )
    try:
        return families.read({**_unsaid(fields, package), **fields, "model_type": family})
    except ConfigError as error:
        raise ConfigError(f"{config or f'the config of {where}'}: {error}") from error


def _unsaid(fields: Mapping[str, Any], package: str) -> dict[str, Any]:
    """What a config of the xlstm package means where it differs from one of transformers."""
    if package != "xlstm":
        return {}
    norm_bias = fields.get("use_bias", False) and fields.get("add_out_norm", True)
    return {"ffn_proj_factor": 2.6667, "out_norm_bias": bool(norm_bias)}
