"""Our own side of `model_speed.py`: training steps, cells, layers and decoding, a process each.

A training step is that of one worker of `--strategy serial`, from the snapshot to the arena: read
the shared parameters, forward and backward, gradient norm and clipping, AdamW into the arena: all
of a run but the text, the ticket and the record, which take microseconds.
"""

import time
from dataclasses import dataclass

import numpy as np
from harness.machine import smallest

from mlxhog import arena, backends, strategies
from mlxhog.arena import Arena
from mlxhog.config.config import TrainConfig
from mlxhog.data.batch import Batch
from mlxhog.decoding.engine import answer
from mlxhog.decoding.options import Sampling
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.optim import UpdateTarget, gradients, updates

OPTIONS = TrainConfig(optimizer="adamw", lr=1e-3)
TOKENS, PROMPT = 200, 16
"""Of a decoded stream, and of the text before it."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model, a layer or a cell, and a batch of sequences."""

    d: int = 128
    blocks: int = 4
    vocab: int = 256
    heads: int = 4
    batch: int = 8
    seq: int = 256
    chunk: int = 64
    slstm_at: tuple[int, ...] = ()

    @property
    def tokens(self):
        """Positions in one step."""
        return self.batch * self.seq

    @property
    def name(self):
        """As the tables call it."""
        slstm = f", sLSTM at {self.slstm_at}" if self.slstm_at else ""
        return f"d {self.d} x {self.blocks}{slstm}, B {self.batch}, S {self.seq}, V {self.vocab:,}"


SMALL = Size()


def large(size):
    """The architecture of a size."""
    return XLSTMLargeConfig(
        vocab_size=size.vocab, hidden_size=size.d, num_hidden_layers=size.blocks,
        num_heads=size.heads, chunk_size=size.chunk,
    )  # fmt: skip


def v1(size):
    """The architecture of a stack of the original blocks."""
    fields = load_architecture("7to1-tiny").to_dict()
    fields |= {
        "vocab_size": size.vocab, "embedding_dim": size.d, "num_blocks": size.blocks,
        "slstm_at": list(size.slstm_at), "context_length": size.seq, "bos_token_id": None,
    }  # fmt: skip
    for block, layer in (("mlstm_block", "mlstm"), ("slstm_block", "slstm")):
        fields[block][layer]["num_heads"] = size.heads
    return families.read(fields)


def tokens_and_labels(size):
    """Random tokens (B, S) and the token after each, int32; the same for every program."""
    text = np.random.default_rng(1).integers(0, size.vocab, (size.batch, size.seq + 1), np.int32)
    return text[:, :-1].copy(), text[:, 1:].copy()


def load_backend(name, cfg, *, threads=1, kernels="auto", layout=None):
    """One of our backends with fresh parameters."""
    layout = layout or arena.plan(families.param_spec(cfg), max_workers=1, n_tickets=1)
    backend = backends.create(name, threads=threads, kernels=kernels)
    backend.bind(cfg, layout)
    for parameter, value in families.init_params(cfg, 0).items():
        slot = layout.slots[parameter]
        backend.param_buffer[slot.offset : slot.offset + slot.size] = value.ravel()
    backend.refresh()
    return backend


def training_step(size, threads, backend="torch:cpu"):
    """A step of xLSTM Large, or of a stack of the original blocks where it has an sLSTM."""
    model = v1(size) if size.slstm_at else large(size)
    spec, optimizer = families.param_spec(model), strategies.build_optimizer(OPTIONS)
    layout = arena.plan(spec, max_workers=1, n_tickets=1, private=optimizer.state_segments)
    shared = Arena.create(layout)
    worker = load_backend(backend, model, threads=threads, layout=layout)
    shared.params[:] = worker.param_buffer[: len(shared.params)]
    own = UpdateTarget(
        flat=shared.params, slots=layout.slots, locks=shared.locks(1), shared={},
        mode=updates.WRITE_MODES[shared.write],
        private={name: shared.segment(f"{name}.1") for name in optimizer.state_segments},
        decay=frozenset(name for name, parameter in spec.items() if parameter.decay),
    )  # fmt: skip
    batch, steps = Batch(*tokens_and_labels(size), n_bytes=0), 0

    def step():
        nonlocal steps
        updates.snapshot(worker.param_buffer, shared.params)
        worker.refresh()
        loss, grads = worker.loss_and_grads(batch)
        assert np.isfinite(loss)
        scale = gradients.clip_factor(gradients.global_norm(grads), OPTIONS.clip)
        steps += 1
        optimizer.step(own, grads, lr=OPTIONS.top_lr, step=steps, seed=steps, grad_scale=scale)

    return step


# -- decoding -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ids:
    """A tokenizer of bare ids."""

    vocab_size: int
    bos: int = 0
    name: str = "ids"
    sha256: str = ""

    @property
    def n_ids(self):
        return self.vocab_size

    def decode(self, ids):
        return b""

    def encode(self, text):
        raise NotImplementedError

    byte_lengths = files = encode


def prompt(V):
    """Some ids, BOS first."""
    ids = np.random.default_rng(0).integers(1, V, PROMPT)
    ids[0] = 0
    return ids


def stream(backend, threads):
    """Decode greedily by our own generation; counts the seconds after the first token."""
    cfg = large(SMALL)
    loaded = load_backend(backend, cfg, threads=threads)

    def step():
        tokens = answer(
            loaded, [prompt(cfg.vocab_size)], tokenizer=Ids(cfg.vocab_size),
            sampling=Sampling(max_new_tokens=smallest(3, TOKENS), temperature=0.0),
            stop_ids=(),
        )  # fmt: skip
        next(tokens)
        begin = time.perf_counter()
        count = sum(1 for _ in tokens)
        return (time.perf_counter() - begin) * TOKENS / count

    return step
