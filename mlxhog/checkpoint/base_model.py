"""The frozen model beside an adapter: where each process finds its tensors.

A run with an adapter names its base by path and digest. Every worker maps the files of the base by
itself, so that they exist once in a machine's memory; the arena has the adapter only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from mlxhog.checkpoint import formats
from mlxhog.checkpoint.formats import Opened


@dataclass(frozen=True)
class BaseModel:
    """A frozen checkpoint, by name; picklable."""

    path: Path  # of the checkpoint, as `formats.open` takes it
    title: str  # its name on the hub, or its path
    digest: str  # `Opened.digest`: SHA-256 of its tensors by name
    weights: str = "float32"  # how they are held: a key of `backend.WEIGHTS` or `QUANTIZED_BITS`

    @classmethod
    def of(cls, opened: Opened, weights: str = "float32") -> Self:
        """Return the name of an open checkpoint, whose files are read once for the digest."""
        return cls(opened.path, opened.title, opened.digest(), weights)

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """Map the tensors, by our names; their pages are shared with every process that does.

        Raises:
            CheckpointError: the files are missing or no longer fit their config.
        """
        return formats.open(self.path, verify=False).tensors
