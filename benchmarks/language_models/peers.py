"""The peers: the same work by the programs that people use today, by PyTorch alone.

Forward, backward and AdamW, as each library's own documentation trains it, in float32, with the
kernels that run on a CPU; the optimizer is torch's fused one, its fastest. Nothing is clipped,
counted or logged, which ours does.
"""

import time

from harness.machine import smallest
from language_models.ours import PROMPT, SMALL, TOKENS, prompt, tokens_and_labels

VANILLA = {f"dtype{part}": "float32" for part in ("", "_b", "_r", "_w", "_g", "_s", "_a")}
VANILLA |= {"backend": "vanilla"}
"""Options of the package's sLSTM that need no GPU, in float32."""


# -- models ---------------------------------------------------------------------------------------


def xlstm_large(size, mode="train"):
    """The xlstm package's model with its native kernels, for "train" or "inference"."""
    from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

    return xLSTMLarge(
        xLSTMLargeConfig(
            embedding_dim=size.d, num_heads=size.heads, num_blocks=size.blocks,
            vocab_size=size.vocab, mode=mode,
            return_last_states=True,  # False crashes in 2.0.6 (NX-AI/xlstm issue 93)
            chunk_size=size.chunk, chunkwise_kernel="chunkwise--native_autograd",
            sequence_kernel="native_sequence__native", step_kernel="native",
            autocast_kernel_dtype="float32",
        )
    )  # fmt: skip


def transformers_model(size, **options):
    """transformers' xLSTMForCausalLM."""
    from transformers import xLSTMConfig, xLSTMForCausalLM

    return xLSTMForCausalLM(
        xLSTMConfig(
            hidden_size=size.d, num_heads=size.heads, num_hidden_layers=size.blocks,
            vocab_size=size.vocab, chunk_size=size.chunk, autocast_kernel_dtype="float32",
            **options,
        )
    )  # fmt: skip


def xlstm_v1(size):
    """The xlstm package's xLSTMLMModel with the sLSTM that runs on a CPU."""
    import xlstm

    model = xlstm.xLSTMLMModel(
        xlstm.xLSTMLMModelConfig(
            vocab_size=size.vocab, embedding_dim=size.d, num_blocks=size.blocks,
            context_length=size.seq, slstm_at=list(size.slstm_at),
            mlstm_block=xlstm.mLSTMBlockConfig(
                mlstm=xlstm.mLSTMLayerConfig(num_heads=size.heads)
            ),
            slstm_block=xlstm.sLSTMBlockConfig(
                slstm=xlstm.sLSTMLayerConfig(num_heads=size.heads, **VANILLA),
                feedforward=xlstm.FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
            ),
        )
    )  # fmt: skip
    model.reset_parameters()
    return model


def training_step(peer, size, threads):
    """A training step of a peer's model."""
    import torch

    torch.set_num_threads(threads)
    if peer == "transformers":
        model = transformers_model(
            size, mode="train", return_last_states=True, use_cache=False,
            chunkwise_kernel="chunkwise--native_autograd",
        )  # fmt: skip  # with the cache a backward pass fails

        def forward(ids):
            return model(ids, use_cache=False).logits
    elif size.slstm_at:
        model = forward = xlstm_v1(size)
    else:
        model = xlstm_large(size)

        def forward(ids):
            return model(ids)[0]

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


# -- decoding -------------------------------------------------------------------------------------


def stream(peer, threads):
    """Decode by a library's own generation; counts the seconds after the first token."""
    import torch

    torch.set_num_threads(threads)
    ids, tokens = torch.from_numpy(prompt(SMALL.vocab))[None], smallest(3, TOKENS)
    if peer == "transformers":
        options = {"inference_state_dtype": "float32", "eos_token_id": None, "pad_token_id": 0}
        model = transformers_model(SMALL, **options).eval()

        def generate(count):
            return model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count,
                min_new_tokens=count, do_sample=False, use_cache=True,
            )[:, PROMPT:]  # fmt: skip
    else:
        model = xlstm_large(SMALL, "inference").eval()

        def generate(count):
            return model.generate(prefill_tokens=ids, max_length=count)[0]

    def seconds(count):
        begin = time.perf_counter()
        with torch.inference_mode():
            assert generate(count).shape[1] == count
        return time.perf_counter() - begin

    def step():
        first = seconds(1)
        return (seconds(tokens) - first) * TOKENS / (tokens - 1)

    return step
