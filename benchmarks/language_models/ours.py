"""A step of one worker of `--strategy serial`, from the snapshot to the arena.

Read the shared parameters, forward and backward, gradient norm and clipping, AdamW into the arena:
all of a run but the text, the ticket and the record, which take microseconds.
"""

import numpy as np
from language_models.peers import tokens_and_labels

from mlxhog import arena, backends, optim
from mlxhog.arena import Arena
from mlxhog.config.config import TrainConfig
from mlxhog.data.batch import Batch
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.optim import Target, gradients, updates

OPTIONS = TrainConfig(optimizer="adamw", lr=1e-3)


def large(size):
    """The architecture of a size."""
    return XLSTMLargeConfig(
        vocab_size=size.vocab,
        hidden_size=size.d,
        num_hidden_layers=size.blocks,
        num_heads=size.heads,
        chunk_size=size.chunk,
    )


def train_large(size, threads, backend="torch:cpu"):
    """A training step of xLSTM Large."""
    return _training_step(large(size), size, threads, backend)


def v1(size):
    """The architecture of a stack of the original blocks."""
    fields = load_architecture("7to1-tiny").to_dict()
    fields |= {
        "vocab_size": size.vocab,
        "embedding_dim": size.d,
        "num_blocks": size.blocks,
        "slstm_at": list(size.slstm_at),
        "context_length": size.seq,
        "bos_token_id": None,
    }
    for block, layer in (("mlstm_block", "mlstm"), ("slstm_block", "slstm")):
        fields[block][layer]["num_heads"] = size.heads
    return families.read(fields)


def train_v1(size, threads, backend="torch:cpu"):
    """A training step of a stack of the original blocks."""
    return _training_step(v1(size), size, threads, backend)


def _training_step(model, size, threads, backend):
    spec, optimizer = families.param_spec(model), optim.build(OPTIONS)
    layout = arena.plan(spec, max_workers=1, n_tickets=1, private=optimizer.state_segments)
    shared = Arena.create(layout)
    for name, value in families.init_params(model, seed=0).items():
        slot = layout.slots[name]
        shared.params[slot.offset : slot.offset + slot.size] = value.reshape(-1)
    target = Target(
        flat=shared.params,
        slots=layout.slots,
        locks=shared.locks(1),
        mode=updates.WRITE_MODES[shared.write],
        private={name: shared.segment(f"{name}.1") for name in optimizer.state_segments},
        shared={},
        decay=frozenset(name for name, parameter in spec.items() if parameter.decay),
    )
    worker = backends.create(backend, threads=threads, kernels="auto", cpu_blas="auto")
    worker.bind(model, layout.slots, layout.n_floats, None)
    batch = Batch(*tokens_and_labels(size), n_bytes=0)
    steps = 0

    def step():
        nonlocal steps
        updates.snapshot(worker.inbox, shared.params)
        worker.refresh()
        loss, grads = worker.loss_and_grads(batch)
        assert np.isfinite(loss)
        scale = gradients.clip_factor(gradients.global_norm(grads), OPTIONS.clip)
        steps += 1
        optimizer.step(target, grads, lr=OPTIONS.top_lr, step=steps, seed=steps, grad_scale=scale)

    return step


# -- products and cells ---------------------------------------------------------------------------


def products(rows, shapes, threads, library):
    """One float32 matrix product (rows, in) x (in, out) for each (in, out) of `shapes`.

    Args:
        rows: of the left factor.
        shapes: of the right factors.
        threads: for the library.
        library: "torch", or "mlxhog" for our own.
    """
    import torch

    from mlxhog._native import ops

    torch.set_num_threads(threads)
    r = np.random.default_rng(0)

    def drawn(*shape):
        return r.standard_normal(shape).astype(np.float32)

    trios = [(drawn(rows, m), drawn(n, m), drawn(rows, n)) for m, n in shapes]
    tensors = [tuple(map(torch.from_numpy, trio)) for trio in trios]

    def by_torch():
        for x, w, y in tensors:
            torch.mm(x, w.T, out=y)

    def by_ours():
        for x, w, y in trios:
            ops.linears(x, [w], [None], [y], threads=threads)

    return {"torch": by_torch, "mlxhog": by_ours}[library]


def draw(*shape, seed, mean=0.0):
    """A normal tensor that wants a gradient."""
    import torch

    values = mean + np.random.default_rng((seed, *shape)).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32)).requires_grad_()


def mlstm_cell(size, threads, form="chunkwise"):
    """The mLSTM cell as models call it in torch, or as one chunk, forward and backward."""
    import torch

    from mlxhog.models.ops.kernels import choose
    from mlxhog.models.ops.reference import ops_torch

    torch.set_num_threads(threads)
    ops, plain = choose("torch", "auto", "cpu"), ops_torch.OPS.form
    B, S, NH = size.batch, size.seq, size.heads
    inputs = [
        draw(B, S, NH, width, seed=seed)
        for seed, width in enumerate((size.key, size.key, size.value))
    ]
    inputs += [draw(B, S, NH, seed=3), draw(B, S, NH, seed=4, mean=3.0)]

    def step():
        if form == "parallel":
            h, _ = plain.mlstm_chunkwise(*inputs, chunk_size=S, eps=1e-6, state=None)
        else:
            h, _ = ops.mlstm_cell(*inputs, chunk_size=size.chunk, eps=1e-6)
        torch.autograd.grad(h.sum(), inputs)

    return step


def slstm_cell(size, threads):
    """The sLSTM cell as models call it in torch, forward and backward."""
    import torch

    from mlxhog.models.ops.kernels import choose

    torch.set_num_threads(threads)
    ops = choose("torch", "auto", "cpu")
    B, S, NH, DH = size.batch, size.seq, size.heads, size.d // size.heads
    inputs = [draw(B, S, NH, DH, seed=seed) for seed in range(4)]
    inputs += [draw(NH, 4 * DH, DH, seed=4), draw(4 * size.d, seed=5)]

    def step():
        h, _ = ops.slstm_cell(*inputs)
        torch.autograd.grad(h.sum(), inputs)

    return step
