"""How often a worker's compiled function was compiled: once for every new shape of its inputs.

MLX keeps every compiled form, and a Metal process runs out of resources after too many of them
(mlx issues 3849 and 4464).
"""

from __future__ import annotations

MOST = 16


class Signatures:
    """The shapes that a compiled function was called with; the worker's log names each."""

    def __init__(self) -> None:
        """None yet."""
        self._seen: set[tuple[int, ...]] = set()

    def __len__(self) -> int:
        """Number of compiled forms."""
        return len(self._seen)

    def call(self, shape: tuple[int, ...]) -> None:
        """Note a call with inputs of this shape."""
        if shape in self._seen:
            return
        self._seen.add(shape)
        print(f"gradient compiled for {shape[0]} x {shape[1]} tokens, form {len(self)}", flush=True)
        if len(self) == MOST + 1:
            print(
                f"warning: more than {MOST} compiled forms; each holds GPU memory for ever, so "
                "keep seq_len and batch_size fixed in a run",
                flush=True,
            )
