"""Measure the reference values of netflix_like anew: python -m tests.classic.netflix_like.

Writes netflix_like.json beside this file: what serial SGD of matrix-completion reaches on the full
size at the problem's default steps, beside what the specification measured with initial values and
shuffles of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.generators import netflix_like
from mlxhog.classic.problems.completion import MatrixCompletion, hold_out
from mlxhog.classic.session import train

SPEC = {16: (0.4907, 0.6994), 32: (0.4214, 0.7437)}  # train and test error, recorded


def main() -> None:
    """Write the file."""
    ratings = hold_out(netflix_like(), seed=0)
    defaults = MatrixCompletion.defaults
    ranks = {}
    for rank, (train_error, test_error) in SPEC.items():
        run = train(MatrixCompletion(*ratings, rank=rank), ClassicConfig(scheme="serial"))
        spec = {"train_error": train_error, "test_error": test_error}
        ranks[str(rank)] = {"spec": spec, "measured": run.measures}
    record = {
        "made_by": "python -m tests.classic.netflix_like",
        "seed": 0,
        "lr": defaults.lr,
        "beta": defaults.beta,
        "epochs": defaults.epochs,
        "ranks": ranks,
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
