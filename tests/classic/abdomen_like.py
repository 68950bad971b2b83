"""Measure the reference values of abdomen_like anew: python -m tests.classic.abdomen_like.

Writes abdomen_like.json beside this file: the volume's weight, its maximum flow (SciPy, capacities
in whole parts of 1 / `capacity_scale`), and what serial SGD of graph-cuts reaches at the problem's
default steps.
"""

from __future__ import annotations

import json
from pathlib import Path

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.generators import abdomen_like
from mlxhog.classic.problems.cuts import GraphCuts
from mlxhog.classic.session import train
from tests.classic.test_generators import maximum_flow_of

SIDES = (8, 16, 32)
CAPACITY_SCALE = 100_000
MARKS = (1, 10, 50, 100, 200)


def measure(side: int) -> dict[str, object]:
    """One volume, seed 0."""
    graph = abdomen_like(side)
    run = train(GraphCuts(graph), ClassicConfig(scheme="serial"))
    return {
        "edges": graph.n_edges,
        "weight": float(graph.weights.sum(dtype=float)),
        "maximum_flow": maximum_flow_of(graph, CAPACITY_SCALE),
        "trace": {
            str(epoch.number): epoch.measures for epoch in run.epochs if epoch.number in MARKS
        },
    }


def main() -> None:
    """Write the file."""
    defaults = GraphCuts.defaults
    record = {
        "made_by": "python -m tests.classic.abdomen_like",
        "seed": 0,
        "lr": defaults.lr,
        "beta": defaults.beta,
        "capacity_scale": CAPACITY_SCALE,
        "sides": {str(side): measure(side) for side in SIDES},
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
