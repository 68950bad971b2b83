"""Reference values of generated data, recorded anew: python -m tests.classic.recorded NAME.

Names are those of the JSON files beside this one:

    netflix_like   what serial SGD of matrix-completion reaches at the problem's default steps,
                   beside what the specification measured with other initial values and shuffles
    abdomen_like   weight and maximum flow of volumes (SciPy, capacities in whole parts of
                   1 / `capacity_scale`), and what serial SGD of graph-cuts reaches
    cifar_dense    what plain sequential SGD reaches, by NumPy alone in float64 on the float32
                   images: no line of it is shared with the native loops that are tested
"""

import json
import sys
from pathlib import Path

import numpy as np

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
CIFAR_STEPS = {"seed": 0, "order_seed": 1, "lr": 0.002, "decay": 0.9, "batch": 2, "lam": 0}
CIFAR_EPOCHS = (1, 5, 20)


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


def cifar_dense():
    train, test = generators.cifar_dense(seed=CIFAR_STEPS["seed"])
    assert test is not None
    x, y = train.features.astype(np.float64), train.labels.astype(int)
    signs = np.where(y[:, None] == np.arange(10), 1.0, -1.0)
    w, rng = np.zeros((10, 3072)), np.random.default_rng(CIFAR_STEPS["order_seed"])
    lr, trace = CIFAR_STEPS["lr"], {}
    for epoch in range(1, CIFAR_EPOCHS[-1] + 1):
        for two in rng.permutation(len(x)).reshape(-1, CIFAR_STEPS["batch"]):
            slopes = np.where(signs[two] * (x[two] @ w.T) < 1, -signs[two], 0.0)
            w -= lr * slopes.T @ x[two] / len(two)
        lr *= CIFAR_STEPS["decay"]
        if epoch in CIFAR_EPOCHS:
            scores, unseen = x @ w.T, test.features.astype(np.float64) @ w.T
            trace[epoch] = {
                "hinge": np.maximum(0, 1 - signs * scores).sum() / len(x),
                "err": np.mean(scores.argmax(1) != y),
                "test_err": np.mean(unseen.argmax(1) != test.labels),
            }
    pixels = {"std": x.std(), "first": x[0, :5].tolist(), "classes": np.bincount(y).tolist()}
    return {**CIFAR_STEPS, "pixels": pixels, "trace": trace}


RECORDS = {record.__name__: record for record in (netflix_like, abdomen_like, cifar_dense)}


def main():
    """Write the file of each name."""
    for name in sys.argv[1:] or RECORDS:
        record = {"made_by": f"python -m tests.classic.recorded {name}", **RECORDS[name]()}
        path = Path(__file__).with_name(f"{name}.json")
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
