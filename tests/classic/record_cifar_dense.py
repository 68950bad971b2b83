"""Record what plain sequential SGD reaches on `cifar_dense`.

Made again by `python -m tests.classic.record_cifar_dense`.

NumPy alone, in float64 on the generated float32 images: no line of it is shared with the native
loops that are tested against it.
"""

import json
from pathlib import Path

import numpy as np

from mlxhog.classic.generators import cifar_dense

FILE = Path(__file__).with_name("cifar_dense_reference.json")
STEPS = {"seed": 0, "order_seed": 1, "lr": 0.002, "decay": 0.9, "batch": 2, "lam": 0}
EPOCHS = (1, 5, 20)


def main() -> None:
    """Run the epochs and write the file."""
    train, test = cifar_dense(seed=STEPS["seed"])
    assert test is not None
    x, y = train.features.astype(np.float64), train.labels.astype(int)
    signs = np.where(y[:, None] == np.arange(10), 1.0, -1.0)
    w, rng = np.zeros((10, 3072)), np.random.default_rng(STEPS["order_seed"])
    lr, trace = STEPS["lr"], {}
    for epoch in range(1, EPOCHS[-1] + 1):
        for two in rng.permutation(len(x)).reshape(-1, STEPS["batch"]):
            slopes = np.where(signs[two] * (x[two] @ w.T) < 1, -signs[two], 0.0)
            w -= lr * slopes.T @ x[two] / len(two)
        lr *= STEPS["decay"]
        if epoch in EPOCHS:
            scores, unseen = x @ w.T, test.features.astype(np.float64) @ w.T
            trace[epoch] = {
                "hinge": np.maximum(0, 1 - signs * scores).sum() / len(x),
                "err": np.mean(scores.argmax(1) != y),
                "test_err": np.mean(unseen.argmax(1) != test.labels),
            }
    pixels = {"std": x.std(), "first": x[0, :5].tolist(), "classes": np.bincount(y).tolist()}
    record = {"made by": "python -m tests.classic.record_cifar_dense", **STEPS}
    FILE.write_text(json.dumps({**record, "pixels": pixels, "trace": trace}, indent=1) + "\n")


if __name__ == "__main__":
    main()
