"""The compressor baselines, and the unigram entropy of bytes, at the beginning of a text."""

import gzip

import numpy as np

MAX_BYTES = 1 << 20  # of a text that are scored


def bits_per_byte(text: bytes) -> dict[str, float]:
    """Return the bits per byte of every baseline on the first `MAX_BYTES` of a text.

    >>> bits_per_byte(b"never wait, add without a lock. " * 100)
    {'uniform': 8.0, 'unigram': 3.906, 'gzip': 0.19, 'xz': 0.3}
    """
    import lzma  # which a Python may lack, see `data.textfiles`

    text = text[:MAX_BYTES]
    n_bytes = max(len(text), 1)
    shares = np.bincount(np.frombuffer(text, np.uint8)) / n_bytes
    shares = shares[shares > 0]
    # As `xz -9e`, with a dictionary of this size: that of the preset needs 670 MB.
    best = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": MAX_BYTES}
    bits = {
        "unigram": float(-(shares * np.log2(shares)).sum()),
        "gzip": 8 * len(gzip.compress(text, 9)) / n_bytes,
        "xz": 8 * len(lzma.compress(text, filters=[best])) / n_bytes,
    }
    # Not 0 for a text that only repeats itself.
    return {"uniform": 8.0} | {name: max(0.01, round(n, 3)) for name, n in bits.items()}
