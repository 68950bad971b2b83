"""MLX operations never write into imported memory: the arena changes by our kernels alone.

On Metal MLX adopts host memory (`copy=False`); on Linux it cannot. Here the pages of one of MLX's
own allocations are replaced by the arena's, in a process of its own, so that MLX's operations meet
imported memory as they do on a Mac. The allocation is never given back: MLX would hand the arena's
pages to the next array. One difference remains: MLX refuses to donate adopted memory, while it owns
this; the base array is kept alive instead, which keeps every slice of it from being donated, too.
"""

import ctypes
import mmap
import os
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx import optimizers as optim

from mlxhog.arena import Arena, plan
from tests.forked import CONTEXT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="on macOS MLX itself imports memory; see mlxhog doctor"
)
WAIT_S = 60.0
LEAKED = []


def graft(handle, arena, *, keep=True):
    """The arena's parameters as an MLX array, in this process for ever.

    Without `keep` the base array dies: an operation on the only reference may then write its result
    over its input.
    """
    place = arena.layout.segments["params"]
    assert place.offset % mmap.PAGESIZE == 4 * place.count % mmap.PAGESIZE == 0
    base = mx.zeros(place.count + 2 * mmap.PAGESIZE // 4, dtype=mx.float32)
    mx.eval(base)
    host = np.array(base, copy=False)
    skipped = -host.ctypes.data % mmap.PAGESIZE
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype = ctypes.c_void_p
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    at, flags = host.ctypes.data + skipped, mmap.MAP_SHARED | 0x10  # MAP_FIXED
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if call(at, 4 * place.count, protection, flags, handle.fd, place.offset) != at:
        raise OSError(ctypes.get_errno(), "the arena cannot be mapped over MLX's memory")
    grafted = base[skipped // 4 : skipped // 4 + place.count]
    mx.eval(grafted)
    LEAKED.extend([base] if keep else [])
    return grafted


def item_assigned(flat):
    part = flat[0:64]
    part[2] = 9.0
    part[4:8] = mx.ones(4)
    return part


def added_in_place(flat):
    flat += 1
    return flat


def linear_updated_by_sgd(flat):
    layer = nn.Linear(8, 8)
    layer.update({"weight": flat[64:128].reshape(8, 8), "bias": flat[128:136]})
    for _ in range(3):
        loss = nn.value_and_grad(layer, lambda model, x: (model(x) ** 2).sum())
        optim.SGD(learning_rate=0.1).update(layer, loss(layer, mx.ones((4, 8)))[1])
        mx.eval(layer.parameters())
    return layer.weight


OPERATIONS = {
    "a slice added in place": lambda flat: added_in_place(flat[8:40]),
    "the whole added in place": added_in_place,
    "at.add": lambda flat: flat.at[3:9].add(5.0),
    "an item assigned": item_assigned,
    "a reshaped slice": lambda flat: mx.exp(flat[:64].reshape(8, 8)) * 2 - 1,
    "a layer updated": linear_updated_by_sgd,
    "compiled": lambda flat: mx.compile(lambda w: (w + 1) * w - 2)(flat[:4096]),
}


def operate(handle, pipe):
    """Send, per operation, whether its result is new and whether the arena kept its bytes."""
    mx.set_default_device(mx.cpu)
    with Arena.from_handle(handle) as arena:
        params, flat, results = arena.params, graft(handle, arena), {}
        params[:] = np.linspace(-1, 1, params.size, dtype=np.float32)
        visible = bool(mx.array_equal(flat, mx.array(params)).item())
        before = params.copy()
        for name, operation in OPERATIONS.items():
            result = operation(flat)
            mx.eval(result)
            values = np.array(result).reshape(-1)
            changed = not np.array_equal(values, before[: values.size])
            results[name] = (changed, bool((params == before).all()))
        # Memory that MLX gives out afterwards is not the arena's either.
        mx.eval([mx.full((arena.layout.n_floats,), float(k)) for k in range(8)])
        pipe.send((visible, results, bool((params == before).all())))


def write_on_both_sides(handle, pipe):
    with Arena.from_handle(handle) as arena:
        flat = graft(handle, arena)
        np.array(flat, copy=False)[5] = 7.0
        arena.params[6] = 8.0
        pipe.send((float(arena.params[5]), float(flat[6].item())))


def add_to_the_only_reference(handle, pipe):
    """What the graft guards against: no one else holds the memory, so MLX reuses it."""
    with Arena.from_handle(handle) as arena:
        flat = graft(handle, arena, keep=False)
        flat += 1
        mx.eval(flat)
        pipe.send(bool(arena.params.any()))
        os._exit(0)  # MLX would put the arena's pages into its cache


def answer(target):
    """What another process says of an arena."""
    ours, theirs = CONTEXT.Pipe()
    with Arena.create(plan({}, n_tickets=1)) as arena:
        process = CONTEXT.Process(target=target, args=(arena.handle(), theirs))
        process.start()
        theirs.close()
        assert ours.poll(WAIT_S)
        reply = ours.recv()
        process.join(WAIT_S)
    assert process.exitcode == 0
    return reply


def test_mlx_operations_never_write_into_imported_memory():
    visible, results, own_pages = answer(operate)
    assert visible, "MLX sees what the host wrote"
    assert results == dict.fromkeys(OPERATIONS, (True, True))
    assert own_pages, "a new array was given the arena's pages"


@pytest.mark.slow
def test_the_check_would_notice_a_write():
    assert answer(write_on_both_sides) == (7.0, 8.0)
    assert answer(add_to_the_only_reference) is True
