"""Which package wrote a checkpoint, or which other family of models it looks like."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mlxhog.errors import CheckpointError

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "_forward_module.")
"""What wrappers such as DistributedDataParallel, torch.compile and Lightning put before names."""

_OTHERS = {
    "RWKV": r"(^|\.)(time_decay|time_maa_k|time_mix_k|att\.x_r|time_mixing\.)",
    "Mamba": r"\.mixer\.(A_log|in_proj|dt_bias)|\.A_log$",
    "Mixtral": r"block_sparse_moe\.",
    "GPT-NeoX": r"gpt_neox\.layers\.|\.attention\.query_key_value\.",
    "GPT-2": r"(^|\.)h\.\d+\.attn\.c_attn\.",
    "BERT": r"\.attention\.self\.query\.",
    "T5": r"\.SelfAttention\.q\.",
    "OPT": r"decoder\.layers\.\d+\.self_attn\.",
    "Llama": r"\.self_attn\.(q_proj|qkv_proj)\.|(^|\.)layers\.\d+\.attention\.wq\.",
    "LSTM": r"(^|\.)weight_[ih]h_l\d",
}
"""A family's usual name -> a pattern that only its parameters' names match."""


def unwrapped(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays without the prefixes that all their names share."""
    found = dict(arrays)
    while True:
        shared = [p for p in PREFIXES if found and all(name.startswith(p) for name in found)]
        if not shared:
            return found
        found = {name.removeprefix(shared[0]): array for name, array in found.items()}


def package(names: Collection[str], model_type: object, where: Path) -> str:
    """Say whose names these are: "hf" or "xlstm" for xLSTM Large, "xlstm_v1", or "mad".

    Args:
        names: of the tensors, unwrapped.
        model_type: what the config beside them says, or None.
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: they are of another family; it says which one they look like.
    """
    if any(name.startswith("xlstm_block_stack.") for name in names):
        return "xlstm_v1"
    if any(re.match(r"backbone\.blocks\.\d+\.(mlstm_layer|norm_mlstm)\.", name) for name in names):
        return "xlstm" if "embedding.weight" in names else "hf"
    if model_type == "mad" and "out_norm.weight" in names:
        return "mad"
    likely = [
        family
        for family, pattern in _OTHERS.items()
        if any(re.search(pattern, name) for name in names)
    ]
    looks = f"it looks like {likely[0]}" if likely else "it looks like none that we know"
    if model_type is not None and model_type not in ("xlstm", "xlstm_v1", "mad"):
        looks = f"{looks}, and its config says model_type {model_type!r}"
    some = ", ".join(sorted(names)[:2])
    raise CheckpointError(
        f"{where} holds no xLSTM: {looks} (its tensors are called {some}, ...); "
        "name a checkpoint of transformers' xLSTM, of the xlstm package, or of mlxhog"
    )
