"""What MLX dispatches for some arrays, counted in their graph, before anything is computed.

A count holds on every machine, but a norm of `mx.fast` is one primitive on a GPU and several on a
CPU, and `mx.compile`, which a GPU worker uses, makes one of several elementwise primitives.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

VIEWS = frozenset(
    "Broadcast BroadcastAxes Contiguous Copy CustomTransforms Depends ExpandDims Flatten Reshape "
    "Slice Split Squeeze StopGradient Transpose Unflatten".split()
)
"""Primitives that share the memory of a row-major input, and dispatch nothing."""


def primitives(outputs: Sequence[mx.array]) -> Counter[str]:
    """How often each primitive is in the graph of some arrays."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.dot"
        mx.export_to_dot(str(graph), *outputs)
        return Counter(re.findall(r'label ="([A-Za-z_]+)', graph.read_text()))


def dispatched(outputs: Sequence[mx.array]) -> int:
    """Primitives in the graph of some arrays that compute."""
    return sum(count for name, count in primitives(outputs).items() if name not in VIEWS)
