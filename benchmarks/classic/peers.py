"""Peers of the classic problems, on one core each: seconds that a pass over the data takes."""

import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

TORCH_ROWS = 64  # in a batch
BPR_EPOCHS = 2  # ten times as slow as ours, and every pass costs the same


def scikit_learn(rows, lr):
    """SGDClassifier in float32: hinge, L2 by a scaled vector, writes only on violation."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import SGDClassifier

    shape = (rows.n_rows, rows.n_features)
    matrix = csr_matrix((rows.values, rows.indices, rows.indptr.astype(np.int32)), shape=shape)
    labels = rows.labels.astype(np.int32)

    def fit(epochs):
        model = SGDClassifier(
            loss="hinge",
            alpha=1.0 / (10 * rows.n_rows),
            learning_rate="constant",
            eta0=lr,
            max_iter=epochs,
            tol=None,
            random_state=0,
        )
        began = time.monotonic()
        model.fit(matrix, labels)
        return (time.monotonic() - began) / epochs

    return fit


@contextmanager
def vowpal_wabbit(rows, lr):
    """`vw --sgd` with hinge; a second thread of its reads the binary cache in every pass."""
    from vowpalwabbit import Workspace

    with tempfile.TemporaryDirectory() as folder:
        text, cache = Path(folder) / "rows.vw", Path(folder) / "rows.cache"
        with text.open("w") as file:
            for e in range(rows.n_rows):
                at = slice(rows.indptr[e], rows.indptr[e + 1])
                pairs = zip(rows.indices[at].tolist(), rows.values[at].tolist(), strict=True)
                features = " ".join(f"{u}:{z:.7g}" for u, z in pairs)
                file.write(f"{int(rows.labels[e])} |f {features}\n")

        def learn(passes):
            began = time.monotonic()
            vw = Workspace(
                f"--quiet --sgd --loss_function hinge -l {lr} --power_t 0 --holdout_off -b 18 "
                f"--noconstant -d {text} --cache_file {cache} --passes {passes}"
            )
            vw.run_parser()
            vw.finish()
            return (time.monotonic() - began) / passes

        learn(1)  # writes the cache
        yield learn


def torch_shared(rows, lr):
    """A shared tensor, batches of 64 rows, gather and `index_add_` by hand, no L2; seconds a pass.

    Lists of each batch's coordinates are made beforehand, outside of the clock.
    """
    import torch

    torch.set_num_threads(1)
    x = torch.zeros(rows.n_features).share_memory_()
    order = np.random.default_rng(0).permutation(rows.n_rows)
    batches = []
    for start in range(0, rows.n_rows, TORCH_ROWS):
        part = rows.take(order[start : start + TORCH_ROWS])
        row = np.repeat(np.arange(part.n_rows), np.diff(part.indptr))
        arrays = (row, part.indices.astype(np.int64), part.values, part.labels)
        batches.append([torch.from_numpy(np.ascontiguousarray(array)) for array in arrays])

    def train(epochs):
        x.zero_()
        began = time.monotonic()
        with torch.no_grad():
            for _ in range(epochs):
                for row, u, z, y in batches:
                    margin = torch.zeros(len(y)).index_add_(0, row, z * x[u])
                    slope = torch.where(y * margin < 1, -y, 0.0)
                    x.index_add_(0, u, slope[row] * z, alpha=-lr / len(y))
        return (time.monotonic() - began) / epochs

    return train


def implicit_bpr(ratings, rank):
    """implicit's BPR, one thread: SGD on as many (user, film, other film) triples as ratings."""
    from implicit.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix

    matrix = csr_matrix(
        (np.ones(len(ratings.ratings), np.float32), (ratings.users, ratings.items)),
        shape=(ratings.n_users, ratings.n_items),
    )

    def fit(_):
        model = BayesianPersonalizedRanking(
            factors=rank - 1,  # and a bias, which is a factor to it
            iterations=BPR_EPOCHS,
            num_threads=1,
            use_gpu=False,
            verify_negative_samples=False,
            random_state=0,
        )
        began = time.monotonic()
        model.fit(matrix, show_progress=False)
        return (time.monotonic() - began) / BPR_EPOCHS

    return fit
