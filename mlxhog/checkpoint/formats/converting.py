"""Convert a checkpoint between formats; elements change only by their new dtype.

xlstm package, of either generation:

    config.yaml        the fields of xLSTMLargeConfig, or of xLSTMLMModelConfig, and no others
    config.json        fields that these do not have: token ids, unknown fields
    model.safetensors  the state dict: single weights, and the sLSTM's layout "vanilla"

xLSTM Large is loaded by `xlstm.xlstm_large.from_pretrained.load_from_pretrained(directory)`. The
package has no loader for xLSTMLMModel; `load_state_dict(strict=True)` accepts our state dict.

The directory is whole or absent, even after a kill or on a full disk (`durable.new_directory`).

Sources: NX-AI/xlstm 2.0.6, `xlstm_large/model.py`; transformers 5.23.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mlxhog.base import darwin, mapped, plain_json, reading, tensors
from mlxhog.base.durable import (
    clear_remains,
    disk_errors,
    new_directory,
    require_space,
    write_synced,
)
from mlxhog.base.quantities import format_share
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.formats import contents, mlx_lm_adapter, peft, weights
from mlxhog.checkpoint.formats.opening import Opened
from mlxhog.checkpoint.formats.weights import listed
from mlxhog.config import plugins
from mlxhog.data import tokenizers
from mlxhog.errors import CheckpointError, ConfigError, EnvironmentLacks
from mlxhog.models import checkpoint_names as translation
from mlxhog.models import families, ngrams
from mlxhog.models.families import ModelConfig
from mlxhog.models.mad.config import SPELLINGS as MAD_SPELLINGS
from mlxhog.models.xlstm_large import OUT_NORM, SPELLINGS

DTYPES = {dtype.name: dtype for dtype in mapped.FLOATS}
MODEL = "model.safetensors"
FILES = {"peft": peft.MODEL, "mlx-lm-adapter": mlx_lm_adapter.MODEL}
"""Format of an adapter -> the file of its tensors; those of whole checkpoints are in `MODEL`."""
MODELING = Path(__file__).parents[2] / "nn" / "modeling_torch.py"
"""Code that transformers needs for sequences of layers; never imported here."""
MLX_LM_CODE = MODELING.with_name("xlstm_mlx_lm.py")
"""Code by which mlx-lm loads both xLSTM families, as xlstm.py; likewise."""

_LARGE_FIELDS = (
    "embedding_dim num_heads num_blocks vocab_size use_bias norm_eps norm_reduction_force_float32 "
    "add_out_norm qk_dim_factor v_dim_factor chunkwise_kernel sequence_kernel step_kernel mode "
    "chunk_size return_last_states autocast_kernel_dtype eps inference_state_dtype "
    "ffn_proj_factor ffn_round_up_to_multiple_of gate_soft_cap output_logit_soft_cap weight_mode"
).split()
"""Fields of xLSTMLargeConfig, which refuses other fields."""

_OUT_BIAS = f"{OUT_NORM}.bias"
"""A parameter that transformers does not have, and the xlstm package only with `use_bias`."""

_NAMED_BY_CONTENT = {"model_type", "architectures", "out_norm_bias", "weight_mode", "torch_dtype"}

_REPLACED = {*weights.ENDINGS, ".json", ".yaml", ".yml", ".jinja", ".model", ".py"}
"""Suffixes of the files of a checkpoint, in any format."""

_FINDER = ".DS_Store"  # macOS writes this file into every folder that its user looks at

OnTensor = Callable[[str, int, int], None]
"""Called after each tensor with (its name, bytes written so far, all bytes)."""


def convert(
    source: Opened,
    target: Path,
    to: str,
    dtype: str | None = None,
    *,
    merge: bool = False,
    card: bytes | None = None,
    overwrite: bool = False,
    on_tensor: OnTensor = lambda name, done, total: None,
    say: Callable[[str], object] = lambda message: None,
) -> int:
    """Write a checkpoint in another format, tensor by tensor, so memory does not grow.

    Returns the size of the tensors' file. The format `to` is a key of `TITLES`, and `dtype` a name
    in `DTYPES`; None keeps every dtype. `merge` adds an adapter to the weights of its base, as
    always for mlx-lm. Parents of the directory `target` are created, and removed after an error.
    `card` is its README.md; `overwrite` replaces a checkpoint. `say` hears how much of an adapter
    the rounding to 16 bits takes away.

    Raises:
        ConfigError: the format has no such model, `target` exists, or `merge` is not set for an
            adapter as a whole checkpoint, or is set for anything else.
        CheckpointError: tensors have numbers that are not finite, or too large for the type; or a
            file to copy is too large, or a link out of the checkpoint. Nothing is written.
        EnvironmentLacks: the disk is too small or became full, or the system refuses to write
            there; nothing is written.
    """
    stored = None if dtype is None else DTYPES[dtype]
    merge = merge or (to == "mlx-lm" and source.config.adapter is not None)
    check_adapter(source, to, merge=merge)
    of_tensors = FILES.get(to, MODEL)
    merging = _Merge(source, stored)
    change = merging if merge else lambda name, array: array
    arrays, others = _content(source, to, stored)
    check_target(target, overwrite=overwrite)
    beside = [source.tokenizer_folder / name for name in tokenizers.FILES]
    for file in (*beside, source.folder / contents.GENERATION):  # they are copied unchanged
        if file.is_file():
            others[file.name] = reading.read_small(file)
    if (
        to in ("hf", "mlx-lm")
        and contents.GENERATION not in others
        and tokenizers.FILES[0] in others
    ):
        tokens = token_ids(others[tokenizers.FILES[0]], beside[0])
        fields = contents.generation_json(json.loads(others["config.json"]), tokens)
        others[contents.GENERATION] = plain_json.dumps(fields, indent=1)
    if card is not None:
        others[manifest.CARD] = card
    target = target.absolute()
    sizes = {
        name: array.size * tensors.stored_dtype(array, stored).itemsize
        for name, array in arrays.items()
    }
    missing, done = [parent for parent in target.parents if not parent.exists()], 0
    try:
        with _refused_by_system(target), disk_errors(f"writing {target}", only_full=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            require_space(target.parent, sum(sizes.values()), f"checkpoint {target.name}")
            with new_directory(target, mark=f".{os.getpid()}") as part:
                written = tensors.write_each(part / of_tensors, arrays, stored, change=change)
                for name, finite in written:
                    if not finite:
                        dtypes = arrays[name].dtype, tensors.stored_dtype(arrays[name], stored)
                        what = _not_finite(change(name, arrays[name]), *dtypes)
                        raise CheckpointError(f"{name} of {source.path} has numbers {what}")
                    done += sizes[name]
                    on_tensor(name, done, sum(sizes.values()))
                for name, content in others.items():
                    write_synced(part / name, content)
                if to == "mlxhog":
                    manifest.write(part, step=0, state={})
    finally:
        for parent in missing:  # the innermost first; a folder that is not empty stays
            with contextlib.suppress(OSError):
                parent.rmdir()
    if merging.changed:
        say(
            f"merging rounds to 16 bits: {format_share(merging.undone / merging.changed)} of the "
            "weights that the adapter changes keep the base's value; --dtype float32 keeps all "
            "changes"
        )
    return (target / of_tensors).stat().st_size


class _Merge:
    """Adds an adapter to weights, and counts those of 16 bits that it changes."""

    def __init__(self, source: Opened, dtype: np.dtype[Any] | None) -> None:
        self._add, self._dtype = source.merging(), dtype
        self.changed = self.undone = 0  # elements; of them those whose rounded value is the base's

    def __call__(self, name: str, w: NDArray[Any]) -> NDArray[Any]:
        w = mapped.in_memory(w)
        whole, dtype = self._add(name, w), tensors.stored_dtype(w, self._dtype)
        if whole is not w and dtype.itemsize == 2:
            is_changed = whole != w.astype(np.float32)
            self.changed += int(is_changed.sum())
            with np.errstate(over="ignore"):
                self.undone += int((is_changed & (whole.astype(dtype) == w.astype(dtype))).sum())
        return whole


def check_adapter(source: Opened, to: str, *, merge: bool) -> None:
    """Refuse to merge without an adapter, or to write an adapter otherwise; see `convert`."""
    is_adapter = source.config.adapter is not None
    if not is_adapter and (merge or to in FILES):
        what = "--merge" if merge else f"--format {to}"
        raise ConfigError(
            f"{source.title} is a whole checkpoint, and {what} is for an adapter; leave it out, or "
            "name a run or a folder with an adapter"
        )
    if is_adapter and merge is (to in FILES):
        way = f"--format {to} keeps the adapter apart; leave --merge out, or use --format hf"
        if not merge:
            way = f"--format {to} is a whole checkpoint; add --merge, or use --format peft"
        raise ConfigError(f"{source.title} is an adapter, and {way}")


def _not_finite(array: NDArray[Any], own: np.dtype[Any], dtype: np.dtype[Any]) -> str:
    """Say whether an array to write is damaged, or too large for `dtype`; `own` is the source's."""
    what = "that are not finite; use another checkpoint of the same model, or copy this one again"
    if mapped.is_finite(array):
        what = f"too large for {dtype.name}; use --dtype float32" + " or keep" * (dtype != own)
    return f"{what}; nothing was written"


# -- the content of each format --------------------------------------------------------------------


def _content(
    source: Opened, to: str, dtype: np.dtype[Any] | None
) -> tuple[dict[str, NDArray[Any]], dict[str, bytes]]:
    """Return tensors by name, and config files, of a model in another format."""
    model = replace(source.config, adapter=None)
    if to in ("xlstm", "mlx-lm", "mlx-lm-adapter"):
        lacks = " with tables of n-grams" * (ngrams.of(model) is not None)
        lacks += " with reset_at_document_boundaries" * model.reset_at_document_boundaries
        if lacks or not model.in_xlstm:
            where = "the xlstm package has" if to == "xlstm" else "our code for mlx-lm has"
            raise ConfigError(
                f"{where} no model for {model.title}{lacks}; use --format "
                + ("peft" if to in FILES else "hf or mlxhog")
            )
    if to in FILES:
        resets = model.reset_at_document_boundaries
        if source.base is not None and resets != source.base.config.reset_at_document_boundaries:
            raise ConfigError(
                f"{source.title} was trained with reset_at_document_boundaries {resets}, its base "
                f"{source.base.title} has {not resets}, and --format {to} cannot say so; write a "
                "whole checkpoint with --merge"
            )
        write = peft.content if to == "peft" else mlx_lm_adapter.content
        alone, config = write(source.config, source.tensors, source.base_name)
        return alone, {peft.CONFIG: config}
    ours = {name: source.tensors[name] for name in families.param_spec(model)}
    # The other package's kernels, which a run may have begun with, may need another machine.
    portable = (source.base or source).format != ("xlstm" if to == "xlstm" else "hf")
    if to == "xlstm":
        inside, beside = _package_configs(model, portable=portable)
        text = yaml.safe_dump(json.loads(plain_json.dumps(inside)), sort_keys=False)
        rest = {"config.json": plain_json.dumps(beside, indent=1)} if beside else {}
        return _package_tensors(model, ours), {"config.yaml": text.encode(), **rest}
    arrays, code = contents.our_tensors(model, ours), {}
    types = {
        tensors.stored_dtype(one, dtype) for one in ours.values() if one.dtype in mapped.FLOATS
    }
    own = types.pop() if len(types) == 1 else np.dtype(np.float32)
    if to == "mlx-lm":
        arrays = dict(ours)  # a tied head stands once
        fields = contents.our_config_json(model, dtype=own, portable=portable)
        fields |= {"model_file": "xlstm.py"}
        code = {"xlstm.py": MLX_LM_CODE.read_bytes()}
    elif to == "mlxhog":
        fields = contents.our_config_json(model, dtype=own, portable=portable)
    elif not needs_code(model, ours):
        arrays.pop(_OUT_BIAS, None)  # of zeros
        fields = contents.hf_config_json(model, dtype=own, portable=portable)
    else:
        fields = _hf_code_json(model, own)
        code = {MODELING.name: MODELING.read_bytes()}
    return arrays, {"config.json": plain_json.dumps(fields, indent=1), **code}


def needs_code(model: ModelConfig, ours: Mapping[str, NDArray[Any]]) -> bool:
    """Whether transformers has no class for a model with these tensors, so it needs `MODELING`."""
    return not model.in_transformers or (_OUT_BIAS in ours and bool(ours[_OUT_BIAS].any()))


def _hf_code_json(model: ModelConfig, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return config.json of a model that transformers loads by `MODELING`, and mlxhog, too."""
    families.check_language_model(model)
    fields = contents.our_config_json(model, dtype=dtype)
    if files := fields.get(plugins.KEY):
        raise ConfigError(
            f"the model has layers of {files[0].partition(' ')[0]}, which an export does not "
            "carry; use --format mlxhog"
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


def _package_tensors(
    model: ModelConfig, ours: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    arrays = dict(ours)
    if model.tie_word_embeddings:  # the package's state dicts hold both names
        arrays[model.untied_head] = arrays[families.embedding(model)]
    if model.layout.norms[2] and model.layout.out_norm:  # whose norms have biases, the last too
        width = arrays[f"{OUT_NORM}.weight"]
        arrays.setdefault(_OUT_BIAS, np.zeros(width.shape, width.dtype))
    elif _OUT_BIAS in arrays and arrays.pop(_OUT_BIAS).any():  # else of zeros
        raise ConfigError(
            "the xlstm package has no bias in the final norm of a model without use_bias; use "
            "--format hf or mlxhog"
        )
    return translation.to_xlstm(arrays, model)


def _package_configs(
    model: ModelConfig, *, portable: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = model.to_dict()
    if (inside := model.to_package()) is not None:
        if inside["slstm_block"] is not None:
            inside["slstm_block"]["slstm"]["backend"] = "vanilla"
    else:
        if portable:
            fields |= contents.PORTABLE
        fields["weight_mode"] = "single"
        inside = {name: fields[name] for name in _LARGE_FIELDS if name in fields}
    others = fields.keys() - inside.keys() - _NAMED_BY_CONTENT - set(SPELLINGS.values())
    beside = {name: fields[name] for name in sorted(others) if fields[name] is not None}
    return inside, beside


def token_ids(tokenizer_json: bytes, path: Path) -> set[int]:
    """Return the ids of the tokens of a tokenizer.json."""
    try:
        description = plain_json.loads(tokenizer_json, strict=False)
        vocabulary = description["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return {*ids, *(token["id"] for token in description.get("added_tokens") or ())}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a tokenizer with a vocabulary: {error!r}; fetch it again"
        ) from error


# -- the place -------------------------------------------------------------------------------------


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse an existing target, except a checkpoint with `overwrite`; clear remains of a kill.

    Raises:
        ConfigError: `target` exists and `overwrite` is False; it is a link, or not a checkpoint; it
            has other files, which would be deleted, or the current folder; its parent is a file.
        EnvironmentLacks: the system does not let us read or clear it.
    """
    with _refused_by_system(target):
        above = target.absolute().parents
        parent = next((one for one in above if one.exists() or one.is_symlink()), target)
        if not parent.is_dir():
            raise ConfigError(f"{target}: {parent} is not a directory; choose another name")
        clear_remains(target.absolute())
        if target.is_symlink():
            raise ConfigError(f"{target} is a link; name the folder it leads to, or another one")
        if not target.exists():
            return
        if Path.cwd().is_relative_to(target.resolve()):
            raise ConfigError(
                f"{target} is the current folder, or holds it, and would be replaced; change to "
                "another folder, or choose another name"
            )
        if target.is_dir() and all(entry.name == _FINDER for entry in target.iterdir()):
            return
        if not overwrite:
            raise ConfigError(
                f"{target} exists; choose another name, or replace it with --overwrite"
            )
        if not target.is_dir() or not weights.candidates(target):
            raise ConfigError(
                f"{target} exists and is not a checkpoint's directory; choose another name"
            )
        if others := sorted(entry.name for entry in target.iterdir() if not _replaceable(entry)):
            raise ConfigError(
                f"{target} has {listed(others)}, which --overwrite would delete with the "
                "checkpoint; choose another name, or move them away"
            )


@contextlib.contextmanager
def _refused_by_system(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        at = f" at {error.filename}" if error.filename else ""
        raise EnvironmentLacks(
            f"cannot write {target}: {darwin.reason(error)}{at}; choose another place, or make "
            "this one writable"
        ) from error


def _replaceable(entry: Path) -> bool:
    if entry.name == manifest.CARD:
        return entry.is_file() and manifest.CARD_MARK in entry.read_bytes()
    if entry.name == "__pycache__" and entry.is_dir() and not entry.is_symlink():
        return all(one.suffix == ".pyc" for one in entry.iterdir())  # of mlx-lm, for our xlstm.py
    return entry.is_file() and (
        entry.suffix in _REPLACED or entry.name in (_FINDER, *tokenizers.FILES)
    )
