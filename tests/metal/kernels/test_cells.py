"""The kernels of cells and convolutions, beyond what tests/models/test_operators.py asks of all.

Sizes that fill no group of threads or several, any order of threads, and what is refused.
"""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.errors import ShapeError
from mlxhog.metal.kernels import conv, mlstm, slstm
from mlxhog.metal.registry import KERNELS
from tests.metal.test_ops import mlstm as mlstm_case
from tests.models.operators import METAL
from tests.models.operators import conv as conv_case
from tests.models.operators import slstm as slstm_case
from tests.pairs import each_of

RNG = np.random.default_rng

CASES = {
    # a shorter last chunk, a sequence within a chunk, single positions, one head, widths that are
    # no multiple of 4 or 32 and beyond, two simdgroups in a chunk
    **{
        f"mlstm {shape}": mlstm_case(*shape)
        for shape in (
            (2, 13, 3, 8, 12, 4), (1, 7, 1, 5, 3, 16), (3, 1, 1, 4, 4, 1), (1, 5, 2, 3, 7, 1),
            (1, 20, 1, 70, 33, 9), (1, 70, 1, 33, 5, 64),
        )
    },
    # one unit, widths of two instances
    **{
        f"slstm {shape}": slstm_case(*shape, packed=packed)
        for shape, packed in (((2, 5, 1, 1), True), ((1, 7, 1, 45), False), ((1, 3, 2, 70), True))
    },
    # one tap, one channel, several blocks, fewer positions than taps
    **{
        f"conv {shape}": conv_case(*shape, packed=packed)
        for shape, packed in (
            ((3, 7, 3, 1), False), ((2, 130, 1, 4), True), ((1, 70, 9, 7), True),
            ((1, 2, 5, 4), False),
        )
    },
}  # fmt: skip


@pytest.mark.slow
@each_of("twin", METAL.values(), ids=METAL)
@each_of("case", CASES.values(), ids=CASES)
def test_the_kernels_are_the_operator_in_float64(twin, case):
    case.check(twin)


LOCKSTEP = [
    (kernel, instance)
    for kernel in KERNELS.values()
    for instance in kernel.instances[:1] or ("",)
    if kernel.lockstep
]


@each_of(("kernel", "instance"), LOCKSTEP, ids=[kernel.name for kernel, _ in LOCKSTEP])
def test_any_order_of_threads_gives_the_same_bits(host_engine, kernel, instance):
    launch = replace(kernel.sample(RNG(0), 1500), instance=instance)
    calm = host_engine().run(launch)
    for seed in (1, 2, 3):
        actual = host_engine(chaos=seed).run(launch)
        for name in calm:
            np.testing.assert_array_equal(actual[name], calm[name])


def of_shape(*shape):
    """An array that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def launched(family, kernel, letters, given=None, **changed):
    """A launch of random arrays of which some are of other shapes."""
    names = " ".join(one.name for one in kernel.inputs if not one.scalar)
    kernel.launch(family.sample(RNG(0), letters, names) | changed, **(given or letters))


REFUSED = {
    r"conv_forward: bias has shape \(2,\), .* require \(3,\)": lambda: launched(
        conv.CONV, conv.FORWARD, {"B": 1, "S": 4, "CH": 3, "K": 2}, {"silu": 1}, bias=of_shape(2)
    ),
    "chunks of 65 positions and take 1 to 64": lambda: mlstm.GATES.launch(
        {"i": of_shape(1, 100, 1), "f": of_shape(1, 100, 1)}, L=65
    ),
    "too many elements; run fewer sequences at once": lambda: mlstm.BWD_STATES.launch(
        {"q": of_shape(64, 64, 64, 512), "dh": of_shape(64, 64, 64, 512)}, L=1
    ),
    "heads of 1025 units, and a group .* at most 1024": lambda: slstm.FORWARD.launch(
        {"G": of_shape(1, 1, 4, 1, 1025)}
    ),
    r"slstm_forward: R_T has shape \(1, 4, 8, 8\)": lambda: launched(
        slstm.SLSTM, slstm.FORWARD, {"B": 1, "S": 3, "NH": 2, "DH": 8}, {"B": 1},
        R_T=of_shape(1, 4, 8, 8),
    ),
}  # fmt: skip


@each_of("message", REFUSED)
def test_arrays_that_do_not_belong_together_or_are_too_large_are_refused_by_name(message):
    with pytest.raises(ShapeError, match=message):
        REFUSED[message]()
