"""The peers: one training step of the programs that people use today, by PyTorch alone.

Forward, backward and AdamW, as each library's own documentation trains it, in float32, with the
kernels that run on a CPU; the optimizer is torch's fused one, its fastest. Nothing is clipped,
counted or logged, which ours does.
"""

import importlib.util

import numpy as np

PACKAGES = ("torch", "xlstm", "mlstm_kernels", "transformers")


def missing():
    """Packages of the peers that are not installed here."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def tokens_and_labels(size):
    """Random tokens (B, S) and the token after each, int32; the same for every program."""
    text = np.random.default_rng(1).integers(0, size.vocab, (size.batch, size.seq + 1), np.int32)
    return text[:, :-1].copy(), text[:, 1:].copy()


# -- xLSTM Large ----------------------------------------------------------------------------------


def xlstm_large(size, mode="train"):
    """The xlstm package's model with its native kernels, for "train" or "inference"."""
    from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

    return xLSTMLarge(
        xLSTMLargeConfig(
            embedding_dim=size.d,
            num_heads=size.heads,
            num_blocks=size.blocks,
            vocab_size=size.vocab,
            mode=mode,
            return_last_states=True,  # False crashes in 2.0.6 (NX-AI/xlstm issue 93)
            chunk_size=size.chunk,
            chunkwise_kernel="chunkwise--native_autograd",
            sequence_kernel="native_sequence__native",
            step_kernel="native",
            autocast_kernel_dtype="float32",
        )
    )


def train_xlstm_large(size, threads):
    """A training step of `xlstm_large`."""
    model = xlstm_large(size)
    return _training_step(lambda ids: model(ids)[0], model, size, threads)


def train_transformers(size, threads):
    """A training step of transformers' xLSTMForCausalLM."""
    from transformers import xLSTMConfig, xLSTMForCausalLM

    model = xLSTMForCausalLM(
        xLSTMConfig(
            hidden_size=size.d,
            num_heads=size.heads,
            num_hidden_layers=size.blocks,
            vocab_size=size.vocab,
            mode="train",
            return_last_states=True,
            chunk_size=size.chunk,
            chunkwise_kernel="chunkwise--native_autograd",
            autocast_kernel_dtype="float32",
            use_cache=False,  # with the cache a backward pass fails
        )
    )

    def forward(ids):
        return model(ids, use_cache=False).logits

    return _training_step(forward, model, size, threads)


def _training_step(forward, model, size, threads):
    import torch

    torch.set_num_threads(threads)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    ids, labels = (torch.from_numpy(part).long() for part in tokens_and_labels(size))

    def step():
        logits = forward(ids).reshape(-1, size.vocab)
        loss = torch.nn.functional.cross_entropy(logits, labels.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


# -- the original blocks --------------------------------------------------------------------------


def xlstm_v1(size):
    """The xlstm package's xLSTMLMModel with the sLSTM that runs on a CPU."""
    from xlstm import (
        FeedForwardConfig,
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMLMModel,
        xLSTMLMModelConfig,
    )

    model = xLSTMLMModel(
        xLSTMLMModelConfig(
            vocab_size=size.vocab,
            embedding_dim=size.d,
            num_blocks=size.blocks,
            context_length=size.seq,
            slstm_at=list(size.slstm_at),
            mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=size.heads)),
            slstm_block=sLSTMBlockConfig(
                slstm=sLSTMLayerConfig(num_heads=size.heads, **vanilla()),
                feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
            ),
        )
    )
    model.reset_parameters()
    return model


def train_xlstm_v1(size, threads):
    """A training step of `xlstm_v1`."""
    model = xlstm_v1(size)
    return _training_step(model, model, size, threads)


def vanilla():
    """Options of the sLSTM that need no GPU, in float32."""
    types = [f"dtype{part}" for part in ("", "_b", "_r", "_w", "_g", "_s", "_a")]
    return {"backend": "vanilla", **dict.fromkeys(types, "float32")}


# -- cells ----------------------------------------------------------------------------------------


def slstm_cell(size, threads):
    """The package's vanilla sLSTM cell, forward and backward."""
    import torch
    from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

    torch.set_num_threads(threads)
    cell = sLSTMCell(
        sLSTMCellConfig(
            hidden_size=size.d,
            num_heads=size.heads,
            recurrent_weight_init="standard",
            **vanilla(),
        )
    )
    cell.reset_parameters()
    gates = torch.randn(size.batch, size.seq, 4 * size.d, requires_grad=True)
    leaves = [gates, *cell.parameters()]

    def step():
        h, _ = cell(gates)
        torch.autograd.grad(h.sum(), leaves)

    return step


def mlstm_cell(size, threads, form="chunkwise"):
    """mlstm_kernels' native cell, "chunkwise" or "parallel", forward and backward."""
    import torch
    from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_autograd
    from mlstm_kernels.torch.parallel.native import mlstm_parallel__native_autograd

    torch.set_num_threads(threads)
    r, (B, NH, S) = np.random.default_rng(0), (size.batch, size.heads, size.seq)

    def draw(*shape, mean=0.0):
        values = (mean + r.standard_normal(shape)).astype(np.float32)
        return torch.from_numpy(values).requires_grad_()

    inputs = [draw(B, NH, S, width) for width in (size.key, size.key, size.value)]
    inputs += [draw(B, NH, S), draw(B, NH, S, mean=3.0)]

    def step():
        if form == "parallel":
            h = mlstm_parallel__native_autograd(*inputs)
        else:
            h = mlstm_chunkwise__native_autograd(*inputs, chunk_size=size.chunk)
        torch.autograd.grad(h.sum(), inputs)

    return step
