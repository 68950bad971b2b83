"""A training step of the MAD benchmark's Transformer, by plain torch and by `mlxhog mad train`.

Written from the description of the benchmark (`mlxhog/models/mad`, athms/mad-lab at 0f49a45), as
one writes it for torch: fused attention and norm kernels, one joint projection of q, k and v, the
optimizer of torch. Nothing is clipped, counted or logged.
"""

import atexit
import contextlib
import threading
from dataclasses import dataclass

import numpy as np

from mlxhog.mad.options import PUBLISHED, Protocol
from mlxhog.mad.run import RunConfig
from mlxhog.mad.tasks import resolve
from mlxhog.mad.training.candidate import train
from mlxhog.models.mad.sequence import parse

TASK, LAYERS = "in-context-recall", "mh-attention(h16) swiglu mh-attention(h16) swiglu"


@dataclass(frozen=True)
class MADSize:
    """The baseline of in-context recall: [mh-attention swiglu] x 2 on 128 sequences of 128."""

    batch: int = 128
    seq: int = 128
    d: int = 128
    vocab: int = 16
    blocks: int = 2
    heads: int = 16
    inner: int = 352


def sequences(size):
    """Random tokens (B, T) and the token after each, int32, every one of them scored."""
    text = np.random.default_rng(1).integers(0, size.vocab, (size.batch, size.seq + 1), np.int32)
    return text[:, :-1].copy(), text[:, 1:].copy()


def model(size):
    """A torch module: tokens (B, T) -> logits (B, T, V)."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    width = size.d // size.heads
    turns = 1e4 ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(size.seq)[:, None] * turns  # (T, width / 2)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def rotated(x):
        """RoPE of x (B, heads, T, width), its two halves turned together."""
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(size.d, 3 * size.d), nn.Linear(size.d, size.d)

        def forward(self, x):
            B, T, d = x.shape
            joint = self.qkv(x).view(B, T, 3, size.heads, width).permute(2, 0, 3, 1, 4)
            q, k, v = joint.unbind()
            y = F.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
            return self.out(y.transpose(1, 2).reshape(B, T, d))

    class SwiGLU(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = (nn.Linear(size.d, size.inner, bias=False) for _ in range(2))
            self.w3 = nn.Linear(size.inner, size.d, bias=False)

        def forward(self, x):
            return self.w3(F.silu(self.w1(x)) * self.w2(x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(size.vocab, size.d)
            nn.init.normal_(self.embedding.weight, std=0.02)
            self.layers = nn.ModuleList()
            for _ in range(size.blocks):
                self.layers += [Attention(), SwiGLU()]
            self.norms = nn.ModuleList(nn.RMSNorm(size.d, 1e-6) for _ in self.layers)
            self.out_norm, self.head = nn.RMSNorm(size.d, 1e-6), nn.Linear(size.d, size.vocab)

        def forward(self, tokens):
            x = self.embedding(tokens)
            for norm, layer in zip(self.norms, self.layers, strict=True):
                x = x + layer(norm(x))
            return self.head(self.out_norm(x))

    torch.manual_seed(0)
    return Model()


def training_step(size, threads):
    """One step on one batch: forward, cross entropy of every position, backward, AdamW."""
    import torch

    torch.set_num_threads(threads)
    net = model(size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4, weight_decay=0.0)
    tokens, labels = (torch.from_numpy(part).long() for part in sequences(size))

    def step():
        loss = torch.nn.functional.cross_entropy(net(tokens).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class Halting:
    """Callbacks that let a run take one step at a time."""

    def __init__(self):
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._over = False

    def step(self):
        """Let the run take a step, and wait for its end."""
        self._go.release()
        self._done.acquire()

    def end(self):
        """Let the run end without another step."""
        self._over = True
        self._go.release()

    def wait_for_start(self):
        """Called by the thread that trains, before its first step."""
        self._go.acquire()

    def beat(self):
        if not self._over:
            self._done.release()
            self._go.acquire()
        if self._over:
            raise KeyboardInterrupt

    def point(self, point):
        pass

    def should_prune(self, point):
        return False


def our_step(size, threads):
    """A step of a run of ours on real rows: all that a run does in a step.

    It begins when the run is let go on and ends with its next sign of life.
    """
    cut = size.seq + 1  # a row loses its last token
    changes = {
        "vocab": size.vocab,
        "seq_len": cut,
        "train_rows": 10 * size.batch,
        "test_rows": 64,
    }
    settings = resolve(TASK, changes)
    config = RunConfig(
        task=TASK,
        settings=vars(settings),
        layers=parse(LAYERS),
        dim=size.d,
        protocol=Protocol(
            optimizer=PUBLISHED,
            lr=5e-4,
            batch_size=size.batch,
            steps=1_000_000,
            eval_every=1_000_000,
            schedule="constant",
        ),
        seed=0,
        threads=threads,
    )
    callbacks = Halting()

    def run():
        callbacks.wait_for_start()
        with contextlib.suppress(KeyboardInterrupt):
            train(config, callbacks=callbacks)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    atexit.register(lambda: (callbacks.end(), thread.join()))
    return callbacks.step
