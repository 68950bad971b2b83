"""Adapters in mlx-lm's files, as `mlx_lm.lora` writes them and `--adapter-path` reads them.

    adapter_config.json      rank, scale, names of the adapted layers, and the base model
    adapters.safetensors     lora_a (in, rank) and lora_b (rank, out): A and B, transposed

Layers have our names, as in the export of `convert --format mlx-lm`.

Source: mlx-lm 0.32, `tuner/lora.py` and `tuner/utils.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mlxhog.base import plain_json, tensors
from mlxhog.checkpoint import hub
from mlxhog.checkpoint.formats.peft import AdapterFiles, lora_of, number, read_fields, stems
from mlxhog.checkpoint.formats.weights import listed
from mlxhog.errors import CheckpointError, ConfigError, shown
from mlxhog.models import families
from mlxhog.models.adapters import A, B, is_adapter
from mlxhog.models.families import ModelConfig

MODEL, FIELDS = "adapters.safetensors", "lora_parameters"
_GATES = ("igate", "fgate", "igate_preact", "fgate_preact")  # `Gate` of `nn/xlstm_mlx_lm.py`
_ENDS = {A: ".lora_a", B: ".lora_b"}


def content(
    model: ModelConfig, arrays: Mapping[str, NDArray[Any]], base: str
) -> tuple[dict[str, NDArray[Any]], bytes]:
    """Return the tensors by mlx-lm's names, and adapter_config.json; arguments as of `peft`.

    Raises:
        ConfigError: modules are trained whole, which mlx-lm's adapters cannot hold, or gates are
            adapted, which are no linear layers there.
    """
    lora, trained = model.adapter, families.trainable_spec(model)
    assert lora is not None
    if whole := [name for name in trained if not is_adapter(name)]:
        raise ConfigError(
            f"an adapter of mlx-lm has A and B alone, and this one has {listed(whole)}, trained "
            "whole; write a whole checkpoint with --merge, or use --format peft"
        )
    if gates := [stem for stem in stems(trained) if stem.rpartition(".")[2] in _GATES]:
        raise ConfigError(
            f"mlx-lm adapts no gates, and this adapter has {listed(gates)}; write a whole "
            "checkpoint with --merge --format mlx-lm, or use --format peft"
        )
    fields = {
        "fine_tune_type": "lora",
        "model": base.removeprefix(hub.PREFIX).partition("@")[0] if hub.is_name(base) else base,
        "num_layers": model.num_hidden_layers,
        FIELDS: {
            "rank": lora.rank,
            "scale": lora.scale,
            "dropout": lora.dropout,
            "keys": stems(trained),
        },
    }
    own = {
        stem + theirs: arrays[stem + ours].T for stem in stems(trained)
        for ours, theirs in _ENDS.items()
    }  # fmt: skip
    return own, plain_json.dumps(fields, indent=1)


def read(folder: Path) -> AdapterFiles:
    """Read a LoRA of mlx-lm; the tensors are transposed views of the mapped file.

    Raises:
        CheckpointError: the file is missing or damaged, or has other tensors.
        ConfigError: it is a DoRA or a whole fine-tuning, or a number of the config is wrong.
    """
    fields = read_fields(folder)
    if (kind := fields.get("fine_tune_type", "lora")) != "lora":
        raise ConfigError(
            f"{folder}: fine_tune_type is {shown(kind)}, and mlxhog reads lora; fuse it with its "
            "model, python -m mlx_lm fuse --model MODEL --adapter-path FOLDER, and open that"
        )
    if not isinstance(lora := fields.get(FIELDS), dict):
        raise ConfigError(f"{folder}: {FIELDS} is {shown(lora)}; copy the adapter again")
    ours = {theirs: end for end, theirs in _ENDS.items()}
    own = dict[str, NDArray[Any]]()
    for name, array in tensors.read(folder / MODEL).items():
        stem, _, last = name.rpartition(".")
        if f".{last}" not in ours or array.ndim != 2:
            raise CheckpointError(f"{folder / MODEL} has {name}, which is no matrix of a LoRA")
        own[stem + ours[f".{last}"]] = array.T
    rank, scale = (number(lora.get(key), key, folder) for key in ("rank", "scale"))
    dropout = lora.get("dropout", 0.0)
    base = fields.get("model")
    return AdapterFiles(
        lora_of(own, rank=rank, alpha=scale * rank, dropout=dropout, folder=folder),
        own,
        base if isinstance(base, str) else "",
    )
