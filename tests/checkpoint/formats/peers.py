"""Small checkpoints, written by transformers and by the xlstm package themselves."""

import dataclasses
import json

import torch
import yaml
from safetensors.torch import load_file
from transformers import xLSTMConfig, xLSTMForCausalLM
from xlstm import xLSTMLMModel, xLSTMLMModelConfig
from xlstm.blocks.mlstm.block import mLSTMBlockConfig
from xlstm.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm.blocks.slstm.block import sLSTMBlockConfig
from xlstm.blocks.slstm.layer import sLSTMLayerConfig
from xlstm.components.feedforward import FeedForwardConfig
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

from mlxhog.data.tokenizers import ByteTokenizer

NATIVE = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "autocast_kernel_dtype": "float32",
    "mode": "inference",
    "chunk_size": 16,
    "return_last_states": True,
}
OF_A_GPU = {
    "chunkwise_kernel": "chunkwise--triton_limit_chunk",
    "sequence_kernel": "native_sequence__triton",
    "step_kernel": "triton",
    "autocast_kernel_dtype": "bfloat16",
    "mode": "train",
    "return_last_states": False,
}
"""The package's defaults."""
TOKENS = torch.tensor([[0, 5, 7, 11, 3, 49, 1, 2, 30, 8, 17, 4, 4, 9, 21, 33, 6]])


def spread(kind, config):
    """A model each of whose parameters has values of its own, so that no two can be mixed up."""
    torch.manual_seed(0)  # packages draw initial values from torch's global generator
    model, generator = kind(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def transformers_model(**changed):
    sizes = {"vocab_size": 50, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 2}
    sizes |= {"num_blocks": 2, "use_cache": False, **NATIVE}
    return spread(xLSTMForCausalLM, xLSTMConfig(**sizes | changed))


def large(**changed):
    """An xLSTMLarge of the package."""
    sizes = {"vocab_size": 50, "embedding_dim": 64, "num_blocks": 2, "num_heads": 2, **NATIVE}
    return spread(xLSTMLarge, xLSTMLargeConfig(**sizes | changed))


def v1(slstm_at, *, conv=4, ffn=True, **changed):
    """An xLSTMLMModel of the package, on the CPU."""
    kinds = [block in slstm_at for block in range(2)]
    mlstm = mLSTMLayerConfig(num_heads=2, conv1d_kernel_size=conv or 4)
    slstm = sLSTMLayerConfig(
        backend="vanilla", num_heads=2, conv1d_kernel_size=conv, dtype="float32"
    )
    config = xLSTMLMModelConfig(
        mlstm_block=None if all(kinds) else mLSTMBlockConfig(mlstm=mlstm),
        slstm_block=sLSTMBlockConfig(slstm=slstm, feedforward=FeedForwardConfig() if ffn else None)
        if any(kinds)
        else None,
        slstm_at=slstm_at,
        context_length=64,
        num_blocks=2,
        embedding_dim=32,
        vocab_size=50,
        **changed,
    )
    return spread(xLSTMLMModel, config)


def save_transformers(folder):
    """A directory of transformers with a tokenizer, and with fields that we do not know."""
    transformers_model().save_pretrained(folder)
    for name, content in ByteTokenizer().files().items():
        (folder / name).write_bytes(content)
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"license": "ours", "nested": {"a": [1, 2]}, "bos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def save_package(model, folder, name="model.pt"):
    """Save a model of the xlstm package as its users do: a state dict, and the config as YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / name)
    save_config(model, folder)
    return folder


def save_config(model, folder):
    text = yaml.safe_dump(dataclasses.asdict(model.config))
    (folder / "config.yaml").write_text(text)


def state(model):
    """A state dict as NumPy arrays; bfloat16 becomes float32, which holds it exactly."""
    return {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}


def state_dict(folder):
    """What the safetensors files of a directory hold."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name
