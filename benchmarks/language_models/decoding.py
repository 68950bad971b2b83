"""Decoding one stream, ours and the peers', for the benchmarks that compare them.

Each `Stream` decodes greedily from a fresh prompt and returns tokens per second after the first
one, by its own framework's means.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from harness.claims import Sample
from harness.interleaved import Program, once, take_turns
from harness.machine import resident, smallest
from language_models.ours import large
from language_models.peers import xlstm_large
from language_models.rows import MLX, PACKAGE, TORCH, TRANSFORMERS
from language_models.sizes import SMALL, LargeSize

from mlxhog import arena, backends
from mlxhog.models import families

PROMPT = 16
Stream = Callable[[int], float]
"""Decodes so many tokens; returns tokens per second."""


@dataclass(frozen=True)
class Ids:
    """A tokenizer of bare ids."""

    vocab_size: int
    bos: int = 0
    name: str = "ids"
    utf8_only: bool = False
    sha256: str = ""

    @property
    def n_ids(self):
        return self.vocab_size

    def decode(self, ids):
        return b""

    def encode(self, text):
        raise NotImplementedError

    byte_lengths = files = encode


def load_backend(name, cfg, *, threads=1, kernels="auto", seed=0):
    """One of our backends with fresh parameters."""
    layout = arena.plan(families.param_spec(cfg), max_workers=1, n_tickets=1)
    backend = backends.create(name, threads=threads, kernels=kernels, cpu_blas="auto")
    backend.bind(cfg, layout.slots, layout.n_floats, None)
    for parameter, value in families.init_params(cfg, seed).items():
        slot = layout.slots[parameter]
        backend.inbox[slot.offset : slot.offset + slot.size] = value.ravel()
    backend.refresh()
    return backend


def prompt(V):
    """Some ids, BOS first."""
    ids = np.random.default_rng(0).integers(1, V, PROMPT)
    ids[0] = 0
    return ids


def ours(backend, cfg, *, temperature=0.0, **sampling):
    """Our own generation on a backend, sampling and text included."""
    from mlxhog.decoding.generate import answer
    from mlxhog.decoding.options import Sampling

    def run(tokens):
        stream = answer(
            backend,
            [prompt(cfg.vocab_size)],
            tokenizer=Ids(cfg.vocab_size),
            sampling=Sampling(max_new_tokens=tokens, temperature=temperature, **sampling),
            stop_at_document_end=False,
        )
        next(stream)
        begin = time.perf_counter()
        count = sum(1 for _ in stream)
        return count / (time.perf_counter() - begin)

    return run


def _after_first(tokens, decode):
    """Tokens per second after the first one of a library that only returns the whole."""

    def seconds(count):
        begin = time.perf_counter()
        decode(count)
        return time.perf_counter() - begin

    first = seconds(1)
    return (tokens - 1) / (seconds(tokens) - first)


def transformers_stream(cfg):
    """`generate` of transformers' xLSTMForCausalLM with its cache."""
    import torch
    from transformers import xLSTMConfig, xLSTMForCausalLM

    model = xLSTMForCausalLM(
        xLSTMConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.hidden_size,
            num_heads=cfg.num_heads,
            num_hidden_layers=cfg.num_hidden_layers,
            chunk_size=cfg.chunk_size,
            autocast_kernel_dtype="float32",
            inference_state_dtype="float32",
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    ids = torch.from_numpy(prompt(cfg.vocab_size))[None]

    def decode(count):
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                use_cache=True,
            )
        assert out.shape[1] == PROMPT + count

    return lambda tokens: _after_first(tokens, decode)


def xlstm_stream(cfg):
    """`generate` of the xlstm package's xLSTMLarge with its native kernels."""
    import torch

    size = LargeSize(
        d=cfg.hidden_size, blocks=cfg.num_hidden_layers, vocab=cfg.vocab_size,
        heads=cfg.num_heads, chunk=cfg.chunk_size, batch=1,
    )  # fmt: skip
    model = xlstm_large(size, "inference").eval()
    ids = torch.from_numpy(prompt(cfg.vocab_size))[None]

    def decode(count):
        with torch.inference_mode():
            out, _ = model.generate(prefill_tokens=ids, max_length=count)
        assert out.shape[1] == count

    return lambda tokens: _after_first(tokens, decode)


def prefill_and_forward(backend, cfg, *, B=8, S=256, repeats=5):
    """Tokens per second of reading one prompt of B * S tokens, and of a forward of (B, S).

    The forward is that of a training step without the backward: it computes the loss of every
    position, of the same number of tokens.
    """
    from mlxhog.data.batch import Batch
    from mlxhog.decoding.engine import PREFILL_CHUNK

    ids = np.random.default_rng(1).integers(1, cfg.vocab_size, (B, S + 1)).astype(np.int32)
    batch = Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), n_bytes=0)
    text = batch.x.reshape(1, -1)

    def prefill():
        state = None
        for start in range(0, text.shape[1], PREFILL_CHUNK):
            _, state = backend.logits(text[:, start : start + PREFILL_CHUNK], state)

    works = {"prefill": prefill, "forward": lambda: backend.evaluate(batch)}

    def rate(name, turn):
        begin = time.perf_counter()
        works[name]()
        return B * S / (time.perf_counter() - begin)

    rates = take_turns(range(1 + repeats), works, rate)
    return {name: Sample.of(values[1:]) for name, values in rates.items()}  # the first warms up


@dataclass(frozen=True)
class Length:
    """What decoding costs after so many tokens."""

    tokens: int
    tokens_per_s: float
    state_bytes: int
    peak_bytes: int


def over_length(backend, cfg, *, marks):
    """Pace over the last 500 tokens, size of the state and peak memory at each mark."""
    token, state = np.array([[0]], np.int32), None
    lengths, read = [], 0
    for mark in marks:
        begin = 0.0
        while read < mark:
            if read == mark - 500:
                begin = time.perf_counter()
            logits, state = backend.logits(token, state)
            token = logits.argmax(-1).astype(np.int32)[:, None]
            read += 1
        pace = 500 / (time.perf_counter() - begin)
        lengths.append(Length(mark, pace, state_bytes(state), resident()[1]))
    return lengths


def state_bytes(state):
    """Size of a recurrent state, whatever its kind."""
    if isinstance(state, np.ndarray):
        return int(state.nbytes)
    return sum(int(part.nbytes) for block in state for part in block)


# -- rows of model_speed.py ------------------------------------------------------------------------

MODULE = "language_models.decoding"
TOKENS = 200  # of one decoded stream
MARKS = (1_000, 10_000, 50_000, 100_000)
PEER_STREAMS = {PACKAGE: xlstm_stream, TRANSFORMERS: transformers_stream}


STREAMS = {
    TORCH: Program(MODULE, "our_stream", {"backend": "torch:cpu"}),
    MLX: Program(MODULE, "our_stream", {"backend": "mlx:cpu"}, ("mlx.core",)),
    PACKAGE: Program(MODULE, "peer_stream", {"peer": PACKAGE}),
    TRANSFORMERS: Program(MODULE, "peer_stream", {"peer": TRANSFORMERS}),
}


def decode(report, thread_counts):
    """One stream of xLSTM Large, greedily, one thread."""
    row = f"decoding one stream, d {SMALL.d} x {SMALL.blocks}, threads 1"
    turns = report.measure(row, STREAMS, TOKENS, 1)
    for peer in (PACKAGE, TRANSFORMERS):
        report.at_least(f"{row}: {TORCH} / {peer}", turns.ratio(peer, TORCH), 2.0)
    for backend in ("torch:cpu", "mlx:cpu"):
        rates = once(
            Program(MODULE, "prefill", {"backend": backend, "repeats": report.turns}), threads=1
        )
        row = f"reading a prompt of {SMALL.tokens:,} tokens, {backend}"
        slower = rates["forward"].median / rates["prefill"].median
        print(f"\n{row}: {rates['prefill'].median:,.0f} tokens per second")
        report.results[row] = {"tokens_per_s": rates}
        report.at_most(f"{row}: training forward / prefill", slower, 1.2)
    lengths = once(Program(MODULE, "lengths", {}), threads=1)
    print("\nstate while one stream grows")
    for length in lengths:
        print(
            f"  {length.tokens:8,} tokens {length.state_bytes:10,} bytes of state "
            f"{length.tokens_per_s:9,.0f} tokens per second"
        )
    report.results["state"] = [asdict(length) for length in lengths]
    grown = lengths[-1].state_bytes / lengths[0].state_bytes
    last = lengths[-1].tokens
    report.at_most(f"state after {last:,} tokens / at the start", grown, 1.0, timing=False)


# -- in processes of their own --------------------------------------------------------------------


def our_stream(backend, threads):
    """Decode by our own generation; counts the seconds after the first token."""
    cfg = large(SMALL)
    loaded = load_backend(backend, cfg, threads=threads)
    stream = ours(loaded, cfg)
    return lambda: TOKENS / stream(smallest(3, TOKENS))


def peer_stream(peer, threads):
    """Decode by a library's own generation; counts the seconds after the first token."""
    import torch

    torch.set_num_threads(threads)
    stream = PEER_STREAMS[peer](large(SMALL))
    return lambda: TOKENS / stream(smallest(3, TOKENS))


def prefill(backend, repeats, threads):
    """Tokens per second of a prompt and of a training forward."""
    cfg = large(SMALL)
    loaded = load_backend(backend, cfg, threads=threads)
    return prefill_and_forward(
        loaded, cfg, B=SMALL.batch, S=SMALL.seq, repeats=smallest(1, repeats)
    )


def lengths(threads):
    """What decoding costs as the text grows."""
    cfg = large(SMALL)
    marks = smallest((10, 20), MARKS)
    return over_length(load_backend("torch:cpu", cfg, threads=threads), cfg, marks=marks)
