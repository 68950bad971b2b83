"""Generation: decoding one stream beside the peers, reading a prompt, the size of the state."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import _decode
from _arms import Program, once
from _harness import Sample
from _model_ours import Step, large
from _report import MLX, PACKAGE, TORCH, TRANSFORMERS, Report
from _sizes import SMALL

ROWS = "_decode_rows"
TOKENS = 200  # of one decoded stream


def decode(report: Report, thread_counts: list[int]) -> None:
    """One stream of xLSTM Large, greedily, one thread."""
    streams = {
        TORCH: Program(ROWS, "our_stream", {"backend": "torch:cpu"}),
        MLX: Program(ROWS, "our_stream", {"backend": "mlx:cpu"}, ("mlx.core",)),
        PACKAGE: Program(ROWS, "peer_stream", {"peer": "xlstm_stream"}),
        TRANSFORMERS: Program(ROWS, "peer_stream", {"peer": "transformers_stream"}),
    }
    row = f"decoding one stream, d {SMALL.d} x {SMALL.blocks}, threads 1"
    found = report.measure(row, streams, TOKENS, 1)
    for peer in (PACKAGE, TRANSFORMERS):
        report.at_least(f"{row}: {TORCH} / {peer}", found.ratio(peer, TORCH), 2.0)
    for backend in ("torch:cpu", "mlx:cpu"):
        rates: dict[str, Sample] = once(
            Program(ROWS, "prefill", {"backend": backend, "repeats": report.turns}), threads=1
        )
        row = f"reading a prompt of {SMALL.tokens:,} tokens, {backend}"
        slower = rates["forward"].median / rates["prefill"].median
        print(f"\n{row}: {rates['prefill'].median:,.0f} tokens per second")
        report.results[row] = {"tokens_per_s": rates}
        report.at_most(f"{row}: training forward / prefill", slower, 1.2)
    lengths: list[_decode.Length] = once(Program(ROWS, "lengths", {}), threads=1)
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


def our_stream(backend: str, threads: int) -> Step:
    """Decode by our own generation; counts the seconds after the first token."""
    cfg = large(SMALL)
    made = _decode.backend(backend, cfg, threads=threads)
    stream = _decode.ours(made, cfg)
    return lambda: TOKENS / stream(TOKENS)


def peer_stream(peer: str, threads: int) -> Step:
    """Decode by a library's own generation; counts the seconds after the first token."""
    import torch

    torch.set_num_threads(threads)
    stream = getattr(_decode, peer)(large(SMALL))
    return lambda: TOKENS / stream(TOKENS)


def prefill(backend: str, repeats: int, threads: int) -> dict[str, Sample]:
    """Tokens per second of a prompt and of a training forward."""
    cfg = large(SMALL)
    made = _decode.backend(backend, cfg, threads=threads)
    return _decode.prefill_and_forward(made, cfg, B=SMALL.batch, S=SMALL.seq, repeats=repeats)


def lengths(threads: int) -> Any:
    """What decoding costs as the text grows."""
    cfg = large(SMALL)
    return _decode.over_length(_decode.backend("torch:cpu", cfg, threads=threads), cfg)
