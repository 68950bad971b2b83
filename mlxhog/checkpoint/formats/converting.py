"""Convert from any format to any format with the model; elements change only by their new type.

xlstm package, of either generation:

    config.yaml      the fields of xLSTMLargeConfig, or of xLSTMLMModelConfig, and no others
    config.json      fields that these do not have: token ids, unknown fields
    model.safetensors, or model_0.safetensors ...    the state dict

xLSTM Large is loaded by `xlstm.xlstm_large.from_pretrained.load_from_pretrained(directory)`. The
package has no loader for xLSTMLMModel; `load_state_dict(strict=True)` accepts our state dict.

Sources: NX-AI/xlstm 2.0.6, `xlstm_large/model.py`; transformers 5.23.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mlxhog.base import mapped, plain_json, reading
from mlxhog.base.tensors import TensorSource
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.formats import contents, saving
from mlxhog.checkpoint.formats.opening import Opened
from mlxhog.checkpoint.formats.saving import OnTensor
from mlxhog.config import plugins
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models import families, ngrams, translation
from mlxhog.models.families import ModelConfig
from mlxhog.models.mad.config import SPELLINGS as MAD_SPELLINGS
from mlxhog.models.xlstm_large import OUT_NORM, SPELLINGS

DTYPES = {dtype.name: dtype for dtype in mapped.FLOATS}
SHARD_BYTES = 5 * 10**9
TOKENIZER = "tokenizer.json"
MODELING = Path(__file__).parents[2] / "nn" / "modeling_torch.py"
"""The code that transformers needs for sequences of layers; never imported here."""

_TRAVELS = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json "
    "merges.txt tokenizer.model chat_template.jinja chat_template.json generation_config.json"
).split()
"""Files that are copied unchanged."""

_LARGE_FIELDS = (
    "embedding_dim num_heads num_blocks vocab_size use_bias norm_eps norm_reduction_force_float32 "
    "add_out_norm qk_dim_factor v_dim_factor chunkwise_kernel sequence_kernel step_kernel mode "
    "chunk_size return_last_states autocast_kernel_dtype eps inference_state_dtype "
    "ffn_proj_factor ffn_round_up_to_multiple_of gate_soft_cap output_logit_soft_cap weight_mode"
).split()
"""Fields of xLSTMLargeConfig, which refuses other fields."""

_NAMED_BY_CONTENT = {"model_type", "architectures", "out_norm_bias", "weight_mode", "torch_dtype"}


@dataclass(frozen=True)
class Conversion:
    """How to write a checkpoint."""

    to: str  # "hf", "xlstm" or "mlxhog"
    dtype: str | None = None  # of the weights; None keeps the type of each
    shard_bytes: int = SHARD_BYTES  # most bytes of tensors in a file
    fused: bool = False  # stack matrices that share their input (xlstm package, xLSTM Large)
    slstm: str = "vanilla"  # layout of sLSTM cells (xlstm package, v1), or "cuda"


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
    entries, others = planned(source.config, source.tensors, conversion, source.format)
    saving.check_target(target, force=force)
    files = _named(saving.shards(entries, conversion.shard_bytes), conversion.to)
    if conversion.to != "xlstm" and len(files) > 1:
        others["model.safetensors.index.json"] = saving.index(files)
    for name in _TRAVELS:
        if (source.folder / name).is_file():
            others[name] = reading.read_small(source.folder / name)
    if conversion.to == "hf" and contents.GENERATION not in others and TOKENIZER in others:
        tokens = token_ids(others[TOKENIZER], source.folder / TOKENIZER)
        fields = contents.generation_json(json.loads(others["config.json"]), tokens)
        others[contents.GENERATION] = plain_json.dumps(fields, indent=1)
    if card is not None:
        others[manifest.CARD] = card

    def finish(part: Path) -> None:
        if conversion.to == "mlxhog":
            manifest.write(part, step=0, state={})

    saving.write(target, files, others, source=source.path, finish=finish, on_tensor=on_tensor)
    return {name: (target / name).stat().st_size for name in files}


def token_ids(tokenizer_json: bytes, path: Path) -> set[int]:
    """Return the ids of the tokens of a tokenizer.json."""
    try:
        description = plain_json.loads(tokenizer_json)
        vocabulary = description["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return {*ids, *(token["id"] for token in description.get("added_tokens") or ())}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a tokenizer with a vocabulary: {error!r}; fetch it again"
        ) from error


def planned(
    model: ModelConfig,
    tensors: Mapping[str, NDArray[Any]],
    conversion: Conversion,
    source_format: str = "mlxhog",
) -> tuple[dict[str, TensorSource], dict[str, bytes]]:
    """Return tensors by name, and the files of the config, of a model in another format."""
    large, to = model.model_type == contents.THEIRS, conversion.to
    if conversion.fused and not (to == "xlstm" and large):
        raise ConfigError("--fused is for xLSTM Large with --to xlstm; leave it out")
    if conversion.slstm != "vanilla" and (to != "xlstm" or large):
        raise ConfigError(
            f"--slstm {conversion.slstm} is for v1 models with --to xlstm; leave it out"
        )
    # Our kernels have the same names in transformers; the package's may need another machine.
    portable = (source_format == "xlstm") != (to == "xlstm")
    if to == "xlstm":
        tables = " with tables of n-grams" * (ngrams.of(model) is not None)
        if tables or not model.in_xlstm:
            raise ConfigError(
                f"the xlstm package has no model for {model.title}{tables}; use --to hf or mlxhog"
            )
        entries = _cast(_package_entries(model, tensors, conversion), conversion)
        inside, beside = _package_configs(model, conversion, portable=portable)
        text = yaml.safe_dump(json.loads(plain_json.dumps(inside)), sort_keys=False)
        rest = {"config.json": plain_json.dumps(beside, indent=1)} if beside else {}
        return entries, {"config.yaml": text.encode(), **rest}
    entries, code = _cast(contents.our_entries(model, tensors), conversion), {}
    bias = f"{OUT_NORM}.bias"  # which transformers does not have
    dtypes = {entry.dtype for entry in entries.values() if entry.dtype in mapped.FLOATS}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    if to == "mlxhog":
        fields = contents.our_config_json(model, dtype=dtype, portable=portable)
    elif model.in_transformers and not (bias in tensors and tensors[bias].any()):
        entries.pop(bias, None)  # of zeros
        fields = contents.hf_config_json(model, dtype=dtype, portable=portable)
    else:
        fields = _hf_code_json(model, dtype)
        code = {MODELING.name: MODELING.read_bytes()}
    return entries, {"config.json": plain_json.dumps(fields, indent=1), **code}


def _hf_code_json(model: ModelConfig, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return config.json of a model that transformers loads by `MODELING`, and mlxhog itself."""
    families.check_language_model(model)
    fields = contents.our_config_json(model, dtype=dtype)
    if files := fields.get(plugins.KEY):
        raise ConfigError(
            f"the model has layers of {files[0].partition(' ')[0]}, which an export does not "
            "carry; use --to mlxhog"
        )
    for theirs, name in MAD_SPELLINGS.items():
        if name in fields:
            fields[theirs] = fields.pop(name)
    return fields | {
        "model_type": families.EXPORTED,
        "family": model.model_type,
        "num_hidden_layers": model.num_hidden_layers,
        "architectures": ["MlxhogForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{MODELING.stem}.MlxhogConfig",
            "AutoModelForCausalLM": f"{MODELING.stem}.MlxhogForCausalLM",
        },
        "use_cache": False,
    }


def _package_entries(
    model: ModelConfig, tensors: Mapping[str, NDArray[Any]], conversion: Conversion
) -> dict[str, TensorSource]:
    """Return the tensors of the package's state dict."""
    ours = dict(tensors)
    if model.tie_word_embeddings:  # the package's state dicts hold both names
        ours[model.untied_head] = ours[families.embedding(model)]
    if model.layout.norms[2] and model.layout.out_norm:  # whose norms have biases, the last too
        width = ours[f"{OUT_NORM}.weight"]
        ours.setdefault(f"{OUT_NORM}.bias", np.zeros(width.shape, width.dtype))
    theirs = translation.to_xlstm(ours, model, slstm=conversion.slstm)
    stacks = {name: [name] for name in theirs}
    if conversion.fused:
        stacks = {name: list(parts) for name, parts in translation.stacks(theirs).items()}
    entries = {}
    for name, names in stacks.items():
        parts = tuple(theirs[one] for one in names)
        shape = parts[0].shape
        if len(parts) > 1:
            shape = (sum(part.shape[0] for part in parts), *shape[1:])
        entries[name] = TensorSource(shape, parts[0].dtype, parts)
    return entries


def _package_configs(
    model: ModelConfig, conversion: Conversion, *, portable: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of config.yaml and of config.json."""
    fields = model.to_dict()
    if (inside := model.to_package()) is not None:
        if inside["slstm_block"] is not None:
            inside["slstm_block"]["slstm"]["backend"] = conversion.slstm
    else:
        if portable:
            fields |= contents.PORTABLE
        fields["weight_mode"] = "fused" if conversion.fused else "single"
        inside = {name: fields[name] for name in _LARGE_FIELDS if name in fields}
    others = fields.keys() - inside.keys() - _NAMED_BY_CONTENT - set(SPELLINGS.values())
    beside = {name: fields[name] for name in sorted(others) if fields[name] is not None}
    return inside, beside


def _cast(entries: Mapping[str, TensorSource], conversion: Conversion) -> dict[str, TensorSource]:
    if conversion.dtype is None:
        return dict(entries)
    dtype = DTYPES[conversion.dtype]
    return {
        name: replace(entry, dtype=dtype) if entry.dtype in mapped.FLOATS else entry
        for name, entry in entries.items()
    }


def _named(files: list[dict[str, TensorSource]], to: str) -> dict[str, dict[str, TensorSource]]:
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    if to == "xlstm":
        return {f"model_{k}.safetensors": file for k, file in enumerate(files)}
    return {f"model-{k:05}-of-{len(files):05}.safetensors": file for k, file in enumerate(files, 1)}
