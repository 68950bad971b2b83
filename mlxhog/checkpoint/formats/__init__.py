"""Checkpoints of others and of ours: opening any of them, and writing each.

    transformers    config.json, model.safetensors or shards with an index      "hf"
    xlstm package   a state dict of xLSTMLarge or xLSTMLMModel, config.yaml      "xlstm"
    mlxhog          config.json, model.safetensors, state.json                  "mlxhog"

`open` recognizes a checkpoint by its content and returns its tensors under our names, mapped and
not yet read. `mlxhog.models.checkpoint_names` translates names and layouts, also of gradients.
"""

from mlxhog.checkpoint.formats.opening import Opened
from mlxhog.checkpoint.formats.opening import open_checkpoint as open

__all__ = ["Opened", "open"]
