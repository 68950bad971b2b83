"""The native operators keep to their promises where sizes, threads or memory reach a limit."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from mlxhog._native import ops
from tests.models.operators import draw, unwritten

HUGE = 6_000_000
"""Positions whose chunk of scores, in float32, is larger than 47 bits can address."""


def scale_in_pool():
    """One call that needs a second thread."""
    x = np.ones(200_000, np.float32)
    ops.scale(x, factor=2.0, threads=2)
    assert (x == 2).all()


def gradient(outs):
    dx, weights = unwritten(4, 3), [draw(out, 3) for out in outs]
    d_outs, d_weights = [draw(4, out) for out in outs], [unwritten(out, 3) for out in outs]
    ops.linears_grad(draw(4, 3), weights, d_outs, dx, d_weights, [None] * len(outs), threads=1)
    return dx


def test_a_map_of_no_inputs_is_its_bias_and_one_without_outputs_adds_no_input_gradient():
    b, y = draw(3), unwritten(5, 3)
    ops.linears(draw(5, 0), [draw(3, 0)], [b], [y], threads=2)
    np.testing.assert_array_equal(y, np.tile(b, (5, 1)))
    for outs, expected in (([], 0), ([0, 0], 0), ([0, 20], gradient([20]))):
        np.testing.assert_array_equal(gradient(outs), np.broadcast_to(expected, (4, 3)))


def test_memory_that_runs_out_in_a_thread_is_an_error_of_the_call_and_of_no_other():
    B, S = 2, HUGE
    q, gate = np.zeros((B, S, 1, 1), np.float32), np.zeros((B, S, 1), np.float32)
    h, den = np.empty_like(q), np.empty_like(gate)
    C, n, m = (np.zeros((B, 1, 2, *unit), np.float32) for unit in ((1, 1), (1,), ()))
    how = {"chunk": S, "stride": 1, "eps": 1e-6, "threads": 2}
    with pytest.raises(MemoryError):
        ops.mlstm(q, q, q, gate, gate, None, h, den, C, n, m, **how)
    scale_in_pool()


BUSY = """
import threading, time, numpy
from mlxhog._native import ops
q = numpy.zeros((1, 400_000, 8, 4), numpy.float32)
out, lse = numpy.empty_like(q), numpy.full((1, 8, 400_000), numpy.nan, numpy.float32)
call = lambda: ops.attention(q, q, q, None, out, lse, window=None, threads=2)  # takes minutes
threading.Thread(target=call, daemon=True).start()
while numpy.isnan(lse).all():
    time.sleep(0.01)
print("the end")
"""


def test_a_process_ends_while_a_daemon_thread_has_the_pool_at_work():
    command, how = [sys.executable, "-c", BUSY], {"capture_output": True, "timeout": 120}
    ended = subprocess.run(command, check=True, **how)
    assert (ended.stdout, ended.stderr) == (b"the end\n", b"")


# Python 3.12 warns of any fork beside threads; this one is what the test is about.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    scale_in_pool()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that waits for its parent's threads
        try:
            scale_in_pool()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
