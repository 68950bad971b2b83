"""Formats of checkpoints: open any, write each.

    transformers    config.json, model.safetensors or shards with an index      "hf"
    xlstm package   a state dict of xLSTMLarge or xLSTMLMModel, config.yaml      "xlstm"
    mlxhog          config.json, model.safetensors, state.json                  "mlxhog"
    PEFT            adapter_config.json, adapter_model.safetensors              "peft"
    mlx-lm          adapter_config.json, adapters.safetensors                   "mlx-lm-adapter"

`open` recognizes a checkpoint by its content and maps its tensors, under mlxhog's names.
`mlxhog.models.checkpoint_names` converts names and layouts, also of gradients.
"""

from mlxhog.checkpoint.formats.opening import Opened
from mlxhog.checkpoint.formats.opening import open_checkpoint as open

__all__ = ["Opened", "open"]
