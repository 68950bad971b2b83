"""The frozen model beside an adapter: where each process finds its tensors.

A run with an adapter names its base by path and digest. Every worker maps the files of the base by
itself, so that they exist once in a machine's memory; the arena has the adapter only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mlxhog.checkpoint import formats


@dataclass(frozen=True)
class BaseModel:
    """A frozen checkpoint, by name; picklable."""

    path: Path  # of the checkpoint, as `formats.open` takes it
    title: str  # its name on the hub, or its path
    digest: str  # SHA-256 of its tensors by name
    weights: str = "float32"  # how they are held: a key of `backend.WEIGHTS` or `QUANTIZED_BITS`

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """Map the tensors, by our names; their pages are shared with every process that does."""
        return formats.open(self.path, verify=False).tensors
