"""Stand-ins of a backend that computes less than float32, one for each kind of fault."""

import numpy as np

from mlxhog.backends import probes
from mlxhog.models.ops.operators import MAX_SUM_TERMS

BITS_OF_TF32 = np.uint32(0xFFFFE000)


def cut(x):
    return (x.view(np.uint32) & BITS_OF_TF32).view(np.float32)


def operands_of_10_bits(right, arrays):
    """As an M5's GPU multiplies unless MLX_ENABLE_TF32 is 0."""

    def linears(x, weights, biases=None):
        x, *weights = (arrays.array(cut(arrays.host(each))) for each in (x, *weights))
        return right(x, weights, biases)

    return linears


def wrong_in_the_ninth_row(right, arrays):
    """As a kernel for many rows that was compiled for another system (mlx issue 3585)."""

    def linears(x, weights, biases=None):
        y = arrays.host(right(x, weights, biases)[0]).copy()
        y[8:] *= np.float32(1.01)
        return (arrays.array(y),)

    return linears


def nan_in_long_sums(right, arrays):
    """As torch adds on an M1 or M2 where it reads behind the operands (pytorch issue 177116)."""

    def linears(x, weights, biases=None):
        y = arrays.host(right(x, weights, biases)[0])
        return (arrays.array(np.full_like(y, np.nan) if x.shape[-1] > MAX_SUM_TERMS else y),)

    return linears


def nan_at_minus_infinity(right, arrays):
    """As fast mathematics computes a gate (mlx issue 3592)."""

    def head_norm_gate(h, o, w, eps):
        y, gate = arrays.host(right(h, o, w, eps)), arrays.host(o)
        return arrays.array(np.where(np.isneginf(gate), np.float32(np.nan), y))

    return head_norm_gate


def result_of_the_call_before(right, arrays):
    """As a kernel of a graph that does not wait for the one before it (mlx issue 3347)."""
    last = []

    def soft_cap(x, c):
        last.append(right(x, c))
        return last[-2] if len(last) > 1 else last[-1]

    return soft_cap


FAULTS = {
    operands_of_10_bits: ("linears", probes.PRODUCTS),
    wrong_in_the_ninth_row: ("linears", probes.PRODUCTS),
    nan_in_long_sums: ("linears", probes.PRODUCTS),
    nan_at_minus_infinity: ("head_norm_gate", probes.GATES),
    result_of_the_call_before: ("soft_cap", probes.CHAIN),
}
"""Fault -> the operator that has it, and the kind of probe that notices it."""
