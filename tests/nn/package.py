"""Layers of the xlstm package, small, with noise on their parameters."""

import torch
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
)
from xlstm.blocks.mlstm.block import mLSTMBlock
from xlstm.blocks.mlstm.layer import mLSTMLayer
from xlstm.blocks.slstm.block import sLSTMBlock
from xlstm.blocks.slstm.layer import sLSTMLayer
from xlstm.xlstm_large import model as large

from tests.nn.sides import perturbed

POSITIONS = 12
KERNELS = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
    "autocast_kernel_dtype": "float32",
}


def official(kind):
    """The package's module of the same sizes as that of KINDS."""
    torch.manual_seed(1)
    module = _make(kind)
    state = {name: x.numpy() for name, x in module.state_dict().items()}
    module.load_state_dict({name: torch.tensor(x) for name, x in perturbed(state).items()})
    return module


def slstm_config(**changes):
    types = [f"dtype{part}" for part in ("", "_b", "_r", "_w", "_g", "_s", "_a")]
    sizes = {"embedding_dim": 16, "num_heads": 2, "backend": "vanilla"}
    return sLSTMLayerConfig(**sizes, **dict.fromkeys(types, "float32"), **changes)


def large_config(**changes):
    sizes = {"embedding_dim": 16, "num_heads": 2, "num_blocks": 1, "vocab_size": 1}
    return large.xLSTMLargeConfig(**sizes, ffn_round_up_to_multiple_of=8, **KERNELS, **changes)


def _make(kind):
    rounded = {"round_proj_up_to_multiple_of": 8}
    mlstm = mLSTMLayerConfig(embedding_dim=16, num_heads=2, context_length=POSITIONS, **rounded)
    one = {"_num_blocks": 1, "_block_idx": 0}
    match kind:
        case "mlstm":
            return mLSTMLayer(mlstm)
        case "mlstm-block":
            return mLSTMBlock(mLSTMBlockConfig(mlstm=mlstm, **one))
        case "slstm":
            return sLSTMLayer(slstm_config())
        case "slstm-without-conv":
            return sLSTMLayer(slstm_config(conv1d_kernel_size=0))
        case "slstm-block":
            ffn = FeedForwardConfig(**rounded)
            return sLSTMBlock(sLSTMBlockConfig(slstm=slstm_config(), feedforward=ffn, **one))
        case "large-block":
            return large.mLSTMBlock(large_config())
        case "mlstm-large":
            return large.mLSTMBlock(large_config()).mlstm_layer
    raise KeyError(kind)
