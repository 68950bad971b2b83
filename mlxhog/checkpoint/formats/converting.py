"""Convert from any format to any format with the model; elements change only by their new type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mlxhog.base import mapped, plain_json, reading
from mlxhog.base.tensors import TensorSource
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.formats import contents, saving
from mlxhog.checkpoint.formats.opening import Opened
from mlxhog.checkpoint.formats.saving import OnTensor
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models.xlstm_large import OUT_NORM

DTYPES = {dtype.name: dtype for dtype in mapped.FLOATS}
SHARD_BYTES = 5 * 10**9
TOKENIZER = "tokenizer.json"

_TRAVELS = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json "
    "merges.txt tokenizer.model chat_template.jinja chat_template.json generation_config.json"
).split()
"""Files that are copied unchanged."""


@dataclass(frozen=True)
class Conversion:
    """How to write a checkpoint.

    Attributes:
        to: "hf", "xlstm" or "mlxhog".
        dtype: type of the weights; None keeps the type of each.
        shard_bytes: most bytes of tensors in a file.
        fused: stack matrices that share their input (xlstm package, xLSTM Large).
        slstm: layout of sLSTM cells (xlstm package, v1), "vanilla" or "cuda".
    """

    to: str
    dtype: str | None = None
    shard_bytes: int = SHARD_BYTES
    fused: bool = False
    slstm: str = "vanilla"


def convert(
    source: Opened,
    target: Path,
    conversion: Conversion,
    *,
    card: bytes | None = None,
    force: bool = False,
    on_tensor: OnTensor = lambda name, done, total: None,
) -> dict[str, int]:
    """Write a checkpoint in another format, tensor by tensor, so memory does not grow.

    Args:
        source: the checkpoint.
        target: the directory to make.
        conversion: the format and its options.
        card: its README.md.
        force: replace an existing checkpoint.
        on_tensor: shows the progress.

    Returns:
        Name of each tensor file -> its bytes.

    Raises:
        ConfigError: the format has no such model, or `target` exists.
        CheckpointError: tensors have numbers that are not finite, or too large for the type; or a
            file to copy is too large, or a link out of the checkpoint.
        EnvironmentLacks: the disk is too small or became full; nothing is written.
    """
    entries, others = _planned(source, conversion)
    saving.check_target(target, force=force)
    files = _named(saving.shards(entries, conversion.shard_bytes), conversion.to)
    if conversion.to != "xlstm" and len(files) > 1:
        others["model.safetensors.index.json"] = saving.index(files)
    for name in _TRAVELS:
        if (source.folder / name).is_file():
            others[name] = reading.read_small(source.folder / name)
    if conversion.to == "hf" and contents.GENERATION not in others and TOKENIZER in others:
        others[contents.GENERATION] = _generation(others, source)
    if card is not None:
        others[manifest.CARD] = card
    saving.write(
        target,
        files,
        others,
        source=source.path,
        finish=lambda part: (
            manifest.write(part, step=0, state={}) if conversion.to == "mlxhog" else None
        ),
        on_tensor=on_tensor,
    )
    return {name: (target / name).stat().st_size for name in files}


def _generation(files: Mapping[str, bytes], source: Opened) -> bytes:
    """Return the generation_config.json for the config.json and the tokenizer.json of an export."""
    try:
        tokens = contents.token_ids(files[TOKENIZER])
    except ValueError as error:
        raise CheckpointError(
            f"{source.folder / TOKENIZER} is not a tokenizer: {error}; fetch it again"
        ) from error
    fields = contents.generation_json(json.loads(files["config.json"]), tokens)
    return plain_json.dumps(fields, indent=1)


def _planned(
    source: Opened, conversion: Conversion
) -> tuple[dict[str, TensorSource], dict[str, bytes]]:
    model, tensors = source.config, source.tensors
    large = model.hf == "class"
    if conversion.fused and not (conversion.to == "xlstm" and large):
        raise ConfigError("--fused is for xLSTM Large with --to xlstm; leave it out")
    if conversion.slstm != "vanilla" and (conversion.to != "xlstm" or large):
        raise ConfigError(
            f"--slstm {conversion.slstm} is for v1 models with --to xlstm; leave it out"
        )
    # Our kernels have the same names in transformers; the package's may need another machine.
    portable = (source.format == "xlstm") != (conversion.to == "xlstm")
    if conversion.to == "xlstm":
        how: dict[str, Any] = {"fused": conversion.fused, "slstm": conversion.slstm}
        entries = _cast(contents.package_entries(model, tensors, **how), conversion)
        inside, beside = contents.package_configs(model, portable=portable, **how)
        text = yaml.safe_dump(json.loads(plain_json.dumps(inside)), sort_keys=False)
        rest = {"config.json": plain_json.dumps(beside, indent=1)} if beside else {}
        return entries, {"config.yaml": text.encode(), **rest}
    entries, code = _cast(contents.our_entries(model, tensors), conversion), {}
    if conversion.to == "mlxhog":
        fields = contents.our_config_json(model, dtype=_dtype(entries), portable=portable)
    elif model.hf == "code":
        fields = contents.hf_code_json(model, dtype=_dtype(entries))
        code = {contents.MODELING.name: contents.MODELING.read_bytes()}
    else:
        contents.refuse(model, tensors)
        entries.pop(f"{OUT_NORM}.bias", None)
        fields = contents.hf_config_json(model, dtype=_dtype(entries), portable=portable)
    return entries, {"config.json": plain_json.dumps(fields, indent=1), **code}


def _cast(entries: Mapping[str, TensorSource], conversion: Conversion) -> dict[str, TensorSource]:
    if conversion.dtype is None:
        return dict(entries)
    dtype = DTYPES[conversion.dtype]
    return {
        name: replace(entry, dtype=dtype) if entry.dtype in mapped.FLOATS else entry
        for name, entry in entries.items()
    }


def _dtype(entries: Mapping[str, TensorSource]) -> np.dtype[Any]:
    """The type of a model's tensors; float32 if they have several."""
    dtypes = {entry.dtype for entry in entries.values() if entry.dtype in mapped.FLOATS}
    return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)


def _named(files: list[dict[str, TensorSource]], to: str) -> dict[str, dict[str, TensorSource]]:
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    if to == "xlstm":
        return {f"model_{k}.safetensors": file for k, file in enumerate(files)}
    return {f"model-{k:05}-of-{len(files):05}.safetensors": file for k, file in enumerate(files, 1)}
