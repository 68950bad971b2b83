"""What one process does with an arena that MLX uses without a copy; it ends with the process."""

import os

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mlxhog.arena import Arena
from tests.backends.grafted import graft


def slice_added_in_place(flat):
    part = flat[8:40]
    part += 1
    return part


def whole_added_in_place(flat):
    flat += 1
    return flat


def at_add(flat):
    return flat.at[3:9].add(5.0)


def item_assigned(flat):
    part = flat[0:64]
    part[2] = 9.0
    part[4:8] = mx.ones(4)
    return part


def unary_on_a_reshaped_slice(flat):
    return mx.exp(flat[:64].reshape(8, 8)) * 2 - 1


def linear_updated_by_sgd(flat):
    layer = nn.Linear(8, 8)
    layer.update({"weight": flat[64:128].reshape(8, 8), "bias": flat[128:136]})

    def loss(model, x):
        return (model(x) ** 2).sum()

    for _ in range(3):
        _, grads = nn.value_and_grad(layer, loss)(layer, mx.ones((4, 8)))
        optim.SGD(learning_rate=0.1).update(layer, grads)
        mx.eval(layer.parameters())
    return layer.weight


def compiled(flat):
    return mx.compile(lambda w: (w + 1) * w - 2)(flat[:4096])


OPERATIONS = {
    f.__name__: f
    for f in (
        slice_added_in_place,
        whole_added_in_place,
        at_add,
        item_assigned,
        unary_on_a_reshaped_slice,
        linear_updated_by_sgd,
        compiled,
    )
}


def run(handle, pipe, names):
    """Send, per operation, whether its result is new and whether the arena kept its bytes."""
    mx.set_default_device(mx.cpu)
    with Arena.from_handle(handle) as arena:
        params = arena.params
        place = arena.layout.segments["params"]
        flat = graft(handle.fd, place.offset, place.count)
        params[:] = np.linspace(-1, 1, params.size, dtype=np.float32)
        visible = bool(mx.array_equal(flat, mx.array(params)).item())
        before = params.copy()
        results = {}
        for name in names:
            result = OPERATIONS[name](flat)
            mx.eval(result)
            values = np.array(result).reshape(-1)
            changed = not np.array_equal(values, before[: values.size])
            results[name] = (changed, bool((params == before).all()))
        # Memory that MLX gives out afterwards is not the arena's either.
        fresh = [mx.full((arena.layout.n_floats,), float(k)) for k in range(8)]
        mx.eval(fresh)
        pipe.send((visible, results, bool((params == before).all())))


def write_to_imported(handle, pipe):
    """Prove that the fixture aliases: a write through MLX's memory shows in the arena."""
    with Arena.from_handle(handle) as arena:
        place = arena.layout.segments["params"]
        flat = graft(handle.fd, place.offset, place.count)
        view = np.array(flat, copy=False)
        view[5] = 7.0
        arena.params[6] = 8.0
        pipe.send((float(arena.params[5]), float(flat[6].item())))


def add_to_the_only_reference(handle, pipe):
    """What the fixture guards against: nobody else holds the memory, so MLX reuses it."""
    with Arena.from_handle(handle) as arena:
        place = arena.layout.segments["params"]
        flat = graft(handle.fd, place.offset, place.count, keep=False)
        flat += 1
        mx.eval(flat)
        pipe.send(bool(arena.params.any()))
        os._exit(0)  # MLX would put the arena's pages into its cache
