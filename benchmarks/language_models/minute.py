"""Small language models of other programs, trained for a while as ours is: the arms of `peers.py`.

    python -m language_models.minute '{"arm": "llama", "seed": 1, "tokens": 300000, ...}'

Text, tokens, sequences and validation text are those of `mlxhog train`: whole sequences of the
token file in a random order, each once in an epoch, and no loss at the separators of documents. All
is float32. The last line is a JSON object.

xlstm     the xlstm package's xLSTMLarge with its native kernels, by torch's AdamW
llama     LlamaForCausalLM of transformers, by torch's AdamW (its Trainer needs accelerate, which
          this environment lacks, and would add no other step), or by torch's Muon
nanochat  the GPT of a checkout by its own MuonAdamW, with rates, momentum and weight decay of its
          scripts/base_train.py, its rates times `lr`; written for 92d63d4e
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from language_models.ours import Size
from language_models.peers import xlstm_large

from mlxhog.data import validation_set
from mlxhog.data.batch import IGNORED
from mlxhog.data.tokens import TokenFile

SEQ, WARMUP, CLIP = 256, 0.05, 1.0
SCHEDULES = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.1 + 0.45 * (1 + math.cos(math.pi * progress)),
    "trapezoid": lambda progress: 1 - 0.95 * max(0.0, (progress - 0.35) / 0.65),
}


def products(vocab, d, blocks):
    """Multiplications for a token, nearly: twelve matrices of d x d in each block, and the head."""
    return vocab * d + 12 * blocks * d * d


def package(vocab, point):
    """The xlstm package's model, and its logits."""
    model = xlstm_large(Size(d=point["d"], blocks=point["blocks"], vocab=vocab))
    return model, lambda ids: model(ids)[0]


def llama(vocab, point):
    """A Llama with four heads, and its logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab, hidden_size=point["d"], intermediate_size=8 * point["d"] // 3,
            num_hidden_layers=point["blocks"], num_attention_heads=4, max_position_embeddings=SEQ,
        )
    )  # fmt: skip
    return model, lambda ids: model(ids, use_cache=False).logits


def by_adamw(model, point):
    """Steps of torch's AdamW, which leaves vectors without decay."""
    import torch

    parts = [[p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    groups = [
        {"params": own, "weight_decay": decay} for own, decay in zip(parts, (0.1, 0.0), strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, lr=point["lr"], betas=(0.9, 0.95), fused=True)

    def step(factor, progress, number):
        for group in optimizer.param_groups:
            group["lr"] = factor * point["lr"]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def by_muon(model, point):
    """Steps of torch's Muon for the matrices of the blocks, at AdamW's scale, and of AdamW.

    As Liu et al. 2025 (arXiv:2502.16982) advise: an update as large as one of AdamW, one learning
    rate and one weight decay for both; embeddings, the head and vectors stay with AdamW.
    """
    import torch

    ends = {id(p) for part in (model.get_input_embeddings(), model.get_output_embeddings())
            for p in part.parameters()}  # fmt: skip
    blocks = [p for p in model.parameters() if p.ndim == 2 and id(p) not in ends]
    chosen = {id(p) for p in blocks}
    others = torch.nn.ParameterList(p for p in model.parameters() if id(p) not in chosen)
    muon = torch.optim.Muon(
        blocks, lr=point["lr"], weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    by_adam = by_adamw(others, point)

    def step(factor, progress, number):
        for group in muon.param_groups:
            group["lr"] = factor * point["lr"]
        torch.nn.utils.clip_grad_norm_(blocks, CLIP)
        muon.step()
        muon.zero_grad()
        by_adam(factor, progress, number)

    return step


def nanochat(vocab, point):
    """The GPT of nanochat, and its logits."""
    import torch
    from nanochat.gpt import GPT, GPTConfig

    heads = max(1, point["d"] // 64)
    config = GPTConfig(
        sequence_len=SEQ, vocab_size=vocab, n_layer=point["blocks"], n_head=heads, n_kv_head=heads,
        n_embd=point["d"], window_pattern="L",
    )  # fmt: skip
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights()
    return model, model


def by_nanochat(model, point):
    """Its optimizer, by the rules of scripts/base_train.py for a batch and a depth."""
    ratio, vocab = point["batch_size"] * SEQ / 2**19, model.config.vocab_size
    lr = point["lr"] * ratio**0.5
    longer = products(vocab, 768, 12) / products(vocab, point["d"], point["blocks"])
    decay = 0.28 * ratio**0.5 * longer
    optimizer = model.setup_optimizer(
        unembedding_lr=0.008 * lr, embedding_lr=0.3 * lr, matrix_lr=0.02 * lr, scalar_lr=0.5 * lr,
        weight_decay=decay,
    )  # fmt: skip

    def step(factor, progress, number):
        falling = 0.97 - 0.07 * max(0.0, (progress - 0.35) / 0.65)
        for group in optimizer.param_groups:
            group["lr"] = factor * group["initial_lr"]
            if group["kind"] == "muon":
                group["momentum"] = 0.85 + 0.12 * number / 400 if number < 400 else falling
                group["weight_decay"] = decay * 0.5 * (1 + math.cos(math.pi * progress))
        optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


ARMS = {
    "xlstm": (package, by_adamw),
    "llama": (llama, by_adamw),
    "llama by Muon": (llama, by_muon),
    "nanochat": (nanochat, by_nanochat),
}
"""What makes a model and its logits, and what steps."""


def trained(arm, *, files, seed, point, threads, end_s=None, tokens=None, path=None, most=None):
    """Train until a moment, or on an amount of text; the schedule ends there.

    Args:
        arm: of `ARMS`.
        files: token files, to train on and held out.
        seed: of initial values and the order of the text.
        point: lr, batch_size, d, blocks and schedule.
        threads: of torch.
        end_s: of the monotonic clock, which all processes share; or
        tokens: to train on.
        path: of a checkout that has the arm.
        most: validation tokens that are scored; all by default.

    Returns:
        Validation bits per byte, and the tokens that were trained.
    """
    import torch

    if path is not None:
        sys.path.insert(0, path)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    train, validation = (TokenFile.open(Path(file)) for file in files)
    vocab, rng = len(train.byte_lengths), np.random.default_rng(seed)
    build, optimize = ARMS[arm]
    model, logits = build(vocab, point)
    step, fall = optimize(model, point), SCHEDULES[point["schedule"]]

    def nats(x, y, reduction):
        scores = logits(torch.from_numpy(x).long()).reshape(-1, vocab)
        labels = torch.from_numpy(y).long().reshape(-1)
        return torch.nn.functional.cross_entropy(scores, labels, reduction=reduction)

    number, order, per_step = 0, [], point["batch_size"] * SEQ
    began_s = now_s = time.monotonic()
    while True:
        last_s, now_s = time.monotonic() - now_s, time.monotonic()
        if tokens:
            progress = number * per_step / tokens
        else:  # a step that would end too late is not begun
            progress = (now_s - began_s) / (end_s - began_s) if now_s + last_s < end_s else 1.0
        if progress >= 1:
            break
        if len(order) < point["batch_size"]:
            order = [*order, *rng.permutation(train.n_sequences(SEQ))]
        rows, order = order[: point["batch_size"]], order[point["batch_size"] :]
        text = np.stack([train.tokens[i * SEQ : i * SEQ + SEQ + 1] for i in rows]).astype(np.int64)
        labels = np.where(text[:, 1:] == train.bos, IGNORED, text[:, 1:])
        nats(text[:, :-1], labels, "mean").backward()
        step(min(1.0, (progress + 1e-3) / WARMUP) * fall(progress), progress, number)
        number += 1
    scored = {"seq_len": SEQ, "batch_size": 16, "val_subset_tokens": most}
    with torch.inference_mode():
        ends = [(float(nats(one.x, one.y, "sum")), one.n_bytes)
                for one in validation_set.batches(validation, **scored)]  # fmt: skip
    bits = validation_set.bits_per_byte(*map(sum, zip(*ends, strict=True)))
    return {"bits_per_byte": bits, "tokens": number * per_step}


if __name__ == "__main__":
    print(json.dumps(trained(**json.loads(sys.argv[1]))), flush=True)
