"""The kernels of cells and convolutions, beyond what tests/models/test_operators.py asks of all.

Any order of threads, and what is refused.
"""

import numpy as np
import pytest

from mlxhog.base.mapped import BFLOAT16
from mlxhog.errors import ShapeError
from mlxhog.metal.kernels import conv, mlstm, slstm
from mlxhog.metal.registry import KERNELS
from tests.pairs import each_of
from tools.samples import arrays, sample

RNG = np.random.default_rng

LOCKSTEP = [
    (kernel, instance)
    for kernel in KERNELS.values()
    for instance in kernel.instances[:1] or ("",)
    if kernel.uses_barriers
]


@each_of(("kernel", "instance"), LOCKSTEP, ids=[kernel.name for kernel, _ in LOCKSTEP])
def test_any_order_of_threads_gives_the_same_bits(new_emulator, kernel, instance):
    launch = sample(kernel, RNG(0), 1500, instance)
    calm = new_emulator().run(launch)
    for seed in (1, 2, 3):
        actual = new_emulator(fuzz=seed).run(launch)
        for name in calm:
            np.testing.assert_array_equal(actual[name], calm[name])


SLSTM = {"B": 11, "S": 5, "NH": 2, "DH": 6}


@each_of("kernel", slstm.KERNELS, ids=[kernel.name for kernel in slstm.KERNELS])
def test_sequences_that_share_a_threadgroup_have_the_bits_of_each_alone(new_emulator, kernel):
    x = arrays(slstm.SLSTM, kernel, RNG(0), SLSTM)
    assert (together := kernel.launch(x)).instance == "8", "11 sequences fill one and not another"
    results = new_emulator().run(together)
    for b in range(SLSTM["B"]):
        own = {n: y if n in ("R", "R_T", "bias") else y[b : b + 1] for n, y in x.items()}
        assert (alone := kernel.launch(own)).instance == "1"
        for name, y in new_emulator().run(alone).items():
            np.testing.assert_array_equal(results[name][b], y[0], err_msg=name)


READS = {  # B, NH, DH: how often a step reads R; with a sequence a threadgroup, B times
    (8, 4, 192): 1, (16, 4, 192): 2, (9, 4, 192): 2, (3, 4, 12): 1, (8, 2, 512): 2, (8, 1, 1024): 4,
    (1, 4, 1024): 1,
}  # fmt: skip


@each_of("sizes", READS)
def test_a_step_of_the_slstm_reads_its_matrix_once_for_up_to_eight_sequences(sizes):
    for kernel in slstm.KERNELS:
        B, NH, DH = sizes
        x = {one.name: of_shape(*slstm.SLSTM.shape(one.name, {"B": B, "S": 1, "NH": NH, "DH": DH}))
             for one in kernel.inputs if not one.scalar}  # fmt: skip
        launch = kernel.launch(x)
        threads, groups, _ = launch.grid
        assert (threads, groups) == (DH, NH * READS[sizes])
        assert B <= int(launch.instance) * READS[sizes]


def test_a_kernel_rounds_to_bfloat_as_to_the_nearest_or_the_even_one(emulator):
    bits = np.arange(0x3F80_7000, 0x3F82_9000, 0x0800, np.uint32)  # ties and what is beside them
    w = np.append(bits.view(np.float32), np.float32([-1e-41, 3.4e38, np.inf, np.nan, -0.0]))
    x = {"x": np.ones((1, 1, w.size), BFLOAT16), "w": w.reshape(-1, 1, 1)}
    x |= {"bias": np.zeros_like(w), "back": np.zeros((1, 1), np.int32)}
    y = emulator.run(conv.FORWARD.launch(x, silu=0))["y"].reshape(-1)
    assert y.dtype == BFLOAT16
    np.testing.assert_array_equal(y.astype("f4"), (w + np.float32(0)).astype(BFLOAT16).astype("f4"))


def of_shape(*shape):
    """An array that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def launched(family, kernel, letters, given=None, **changed):
    """A launch of random arrays of which some are of other shapes."""
    kernel.launch(arrays(family, kernel, RNG(0), letters) | changed, **(given or letters))


REFUSED = {
    r"conv_forward: bias has shape \(2,\), .* require \(3,\)": lambda: launched(
        conv.CONV, conv.FORWARD, {"B": 1, "S": 4, "CH": 3, "K": 2}, {"silu": 1}, bias=of_shape(2)
    ),
    "one type are needed, these have .*'dy': 'float32'": lambda: launched(
        conv.CONV, conv.PRE, {"B": 1, "S": 4, "CH": 3, "K": 2}, x=np.ones((1, 4, 3), BFLOAT16)
    ),
    "chunks of 65 positions and take 1 to 64": lambda: mlstm.GATES.launch(
        {"i": of_shape(1, 100, 1), "f": of_shape(1, 100, 1)}, L=65
    ),
    "too many elements; run fewer sequences at once": lambda: mlstm.BWD_STATES.launch(
        {"q": of_shape(64, 64, 64, 512), "dh": of_shape(64, 64, 64, 512)}, L=1, FIRST=0, NS=16
    ),
    "heads of 1025 units, and a threadgroup .* at most 1024": lambda: slstm.FORWARD.launch(
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
