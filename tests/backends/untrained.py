"""Models that nobody trained: backends with given parameters, and batches."""

import numpy as np

from mlxhog import arena, backends
from mlxhog.data.batch import Batch
from mlxhog.models import families
from mlxhog.optim.rule import parameter
from tests.models.sample import SMALLEST

NAMES = ("torch:cpu", "mlx:cpu")


def lay(backend, cfg=SMALLEST, params=None, head=None, recompute=False, weights="float32"):
    """The backend with these parameters, or with the model's first, and the tables among them."""
    params = families.init_params(cfg, 0) if params is None else params
    layout = arena.plan(families.trainable_spec(cfg), max_workers=1, n_tickets=1)
    if cfg.adapter is not None:
        backend.load_frozen(cfg, params, weights=weights)
    backend.bind(cfg, layout, sampled=head, recompute=recompute)
    flat = np.zeros(layout.n_floats, np.float32)
    for name, slot in layout.slots.items():
        parameter(flat, slot)[...] = params[name]
    backend.copy_in(flat)
    return backend


def bound(
    name, cfg, params, kernels="auto", dtype="float32", head=None, recompute=False,
    weights="float32",
):  # fmt: skip
    how = {"kernels": kernels, "dtype": dtype}
    backend = backends.create(name, threads=1, **how)
    return lay(backend, cfg, params, head, recompute, weights)


def values(grads):
    return {name: np.array(getattr(grad, "values", grad)) for name, grad in grads.items()}


def batch(B, S, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, SMALLEST.vocab_size, (B, S), dtype=np.int32)
    return Batch(x, np.roll(x, -1, axis=1), n_bytes=12 * B)
