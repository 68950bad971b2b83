"""The peer: the xlstm package's xLSTMLarge with its native kernels, trained by PyTorch alone.

`serial` is one process; `shared` is two processes on `share_memory()` parameters, each with an
AdamW of its own whose plain in-place adds go to the shared tensors (pytorch's example
mnist_hogwild). Both count tokens over a stretch of time after a warm-up.
"""

import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from harness.interleaved import answer, spawned
from harness.machine import smallest
from language_models.peers import xlstm_large
from language_models.sizes import SMALL

VOCAB = 320


def build():
    """The model of every comparison: d 128, 4 blocks, 4 heads, bytes."""
    return xlstm_large(replace(SMALL, vocab=VOCAB))


def steps(model, seconds, seed, start=None):
    """Train on random bytes; returns tokens per second after a warm-up of three steps."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    random = np.random.default_rng(seed)
    tokens, begin, batch, length = 0, 0.0, SMALL.batch, smallest(64, SMALL.seq)
    for k in range(1_000_000):
        if k == 3:
            if start is not None:
                start.wait(timeout=120)
            begin = time.perf_counter()
        ids = torch.from_numpy(random.integers(0, 256, (batch, length + 1)))
        logits, _ = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if k >= 3:
            tokens += batch * length
            if time.perf_counter() - begin >= seconds:
                return tokens / (time.perf_counter() - begin)
    raise AssertionError("unreachable")


def _shared(model, rank, seconds, start, pipe):
    import torch

    torch.set_num_threads(1)
    pipe.send(steps(model, seconds, seed=rank, start=start))


def serial(threads, seconds):
    """Tokens per second of this process, which is its own."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return steps(build(), seconds, seed=0)


def shared(seconds):
    """Tokens per second of two one-thread processes on shared parameters, added up."""
    import torch

    torch.manual_seed(0)
    model = build()
    model.share_memory()
    start = torch.multiprocessing.get_context("spawn").Barrier(2)  # torch's, to share the model
    with ExitStack() as stack:
        jobs = [(_shared, model, rank, seconds, start) for rank in range(2)]
        pipes = [stack.enter_context(spawned(*job))[0] for job in jobs]
        return sum(float(answer(pipe, "the package")) for pipe in pipes)
