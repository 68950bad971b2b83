"""Dropout masks from NumPy: both frameworks drop the same units."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from mlxhog.models import families


def masks(
    cfg: families.ModelConfig, shape: tuple[int, ...], seed: int
) -> dict[str, NDArray[np.float32]] | None:
    """Draw the masks of one training step.

    Args:
        cfg: the model.
        shape: (B, S), sequences and positions.
        seed: of the batch; the same seed and shape give the same masks.

    Returns:
        Site -> (B, S, width) float32 of 0 and 1 / (1 - rate), so that the mean stays; None for a
        model without dropout.
    """
    sites = families.dropout_sites(cfg)
    found = {
        site: _mask(f"{seed}:{site}", (*shape, width), rate)
        for site, (width, rate) in sites.items()
    }
    return found or None


def _mask(key: str, shape: tuple[int, ...], rate: float) -> NDArray[np.float32]:
    digest = hashlib.sha256(key.encode()).digest()[:16]
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    kept = random.random(shape, np.float32) >= rate
    return kept.astype(np.float32) / np.float32(1.0 - rate)
