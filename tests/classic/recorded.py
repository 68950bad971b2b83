"""Reference values of generated data, recorded anew: python -m tests.classic.recorded NAME.

Names are those of the JSON files beside this one:

    netflix_like   what serial SGD of matrix-completion reaches at the problem's default steps,
                   beside what the specification measured with other initial values and shuffles
    abdomen_like   weight and maximum flow of volumes (SciPy, capacities in whole parts of
                   1 / `capacity_scale`), and what serial SGD of graph-cuts reaches
"""

import json
import sys
from pathlib import Path

from mlxhog.classic import generators
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problems.completion import MatrixCompletion, hold_out
from mlxhog.classic.problems.cuts import GraphCuts
from mlxhog.classic.run import train
from tests.classic.test_generators import maximum_flow_of

SPEC = {16: (0.4907, 0.6994), 32: (0.4214, 0.7437)}  # train and test error, recorded
SIDES = (8, 16, 32)
CAPACITY_SCALE = 100_000
MARKS = (1, 10, 50, 100, 200)


def netflix_like():
    ratings = hold_out(generators.netflix_like(), seed=0)
    defaults = MatrixCompletion.defaults
    ranks = {}
    for rank, (train_error, test_error) in SPEC.items():
        run = train(MatrixCompletion(*ratings, rank=rank), ClassicConfig(scheme="serial"))
        spec = {"train_error": train_error, "test_error": test_error}
        ranks[str(rank)] = {"spec": spec, "measured": run.measures}
    steps = {"lr": defaults.lr, "beta": defaults.beta, "epochs": defaults.epochs}
    return {"seed": 0, **steps, "ranks": ranks}


def abdomen_like():
    defaults = GraphCuts.defaults
    return {
        "seed": 0,
        "lr": defaults.lr,
        "beta": defaults.beta,
        "capacity_scale": CAPACITY_SCALE,
        "sides": {str(side): _volume(side) for side in SIDES},
    }


def _volume(side):
    graph = generators.abdomen_like(side)
    run = train(GraphCuts(graph), ClassicConfig(scheme="serial"))
    return {
        "edges": graph.n_edges,
        "weight": float(graph.weights.sum(dtype=float)),
        "maximum_flow": maximum_flow_of(graph, CAPACITY_SCALE),
        "trace": {
            str(epoch.number): epoch.measures for epoch in run.epochs if epoch.number in MARKS
        },
    }


RECORDS = {record.__name__: record for record in (netflix_like, abdomen_like)}


def main():
    """Write the file of each name."""
    for name in sys.argv[1:] or RECORDS:
        record = {"made_by": f"python -m tests.classic.recorded {name}", **RECORDS[name]()}
        path = Path(__file__).with_name(f"{name}.json")
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
