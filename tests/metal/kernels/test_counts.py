"""What the kernels of the mLSTM compute and keep, counted at the widths of models."""

import ctypes

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.metal.kernels import mlstm
from mlxhog.models.ops.native import adapter_mlx
from tests.backends.test_self_check import METAL_OPS
from tests.metal.test_engines import fakes
from tests.models.operators import mlstm_of
from tests.models.test_metal_ops import lazy_kernels, saved_by
from tests.models.twins import Twin
from tests.pairs import each_of

L, S = 64, 128
WIDTHS = {"160m": (96, 192), "125m": (384, 384), "400m": (128, 256), "7b": (256, 512)}


def counted(engine, case):
    """Exponentials and multiply-adds of matrices by kernel, of a gradient of a case in torch."""

    class Emulated(Twin):
        ops = METAL_OPS["torch"](engine)

    twin = Emulated("torch", "metal")
    by_kernel = {
        kernel.name: (ctypes.c_ulong * 2).in_dll(
            ctypes.CDLL(str(engine.built(kernel))), "mlxhog_counts"
        )
        for kernel in mlstm.KERNELS
    }
    before = {name: tuple(counts) for name, counts in by_kernel.items()}
    twin.op_grads(lambda ops, x: case(ops, x | case.fixed)[0].sum(), case.inputs)
    return {name: np.subtract(counts, before[name]) for name, counts in by_kernel.items()}


@pytest.mark.slow
@each_of("model", WIDTHS)
def test_a_cell_computes_each_product_and_each_exponential_once(new_emulator, model):
    DK, DV = WIDTHS[model]
    n = counted(new_emulator(flags=("-DMLXHOG_COUNT",)), mlstm_of(1, S, 1, DK, DV, L))
    exponentials, products = ({name: int(x[i]) for name, x in n.items()} for i in (0, 1))
    vectors = 2 * S * DK  # n, and its products with the queries, for the most a part of 100
    forward = products["mlstm_states"] // 2 + products["mlstm_out"] + vectors  # states twice
    assert forward < 1.15 * S * (L * (DK + DV) + 2 * DK * DV)
    backward = sum(products.values()) - products["mlstm_states"] // 2 - products["mlstm_out"]
    assert backward < 1.15 * S * (L * (3 * DK + 2 * DV) + 5 * DK * DV)
    chunks = S // L
    assert exponentials == dict.fromkeys(products, 0) | {
        "mlstm_gates": S,
        "mlstm_weights": S + chunks,
        "mlstm_out": chunks * L * (L + 1) // 2 + 2 * S,
        "mlstm_bwd_pre": 2 * S,
        "mlstm_bwd_scores": chunks * L * (L + 1) // 2,
    }


NC = 32  # chunks of a position, those of 2,048 positions in a model
STATES = NC + 1  # matrix states of a head, around its chunks


def cell(width):
    return mlstm_of(1, NC, 1, width, width, 1)


def test_between_the_passes_an_eighth_of_the_matrix_states_is_kept(monkeypatch):
    case, ops = cell(9), METAL_OPS["torch"](fakes("mps", monkeypatch)[1])
    inputs = {name: torch.tensor(x, requires_grad=True) for name, x in case.inputs.items()}
    kept = saved_by(lambda: case(ops, inputs | case.fixed))
    assert sum(x.shape[-2:].numel() == 81 and x.numel() // 81 for x in kept) <= STATES / 8


@each_of(("gradient", "most"), [(True, STATES), (False, STATES / 2)])
def test_the_states_of_one_segment_exist_at_a_time(monkeypatch, gradient, most):
    """Matrix states and their gradients, in the peak of MLX's memory; C and dC were 2 `STATES`."""
    width, (ops, launched) = 256, lazy_kernels(monkeypatch)
    case = cell(width)
    inputs = {name: mx.array(x) for name, x in case.inputs.items()}
    mx.eval(inputs)
    if gradient:
        results = mx.grad(lambda x: case(ops, x | case.fixed)[0].sum())(inputs)
    else:
        with adapter_mlx.without_gradient():
            results = case(ops, inputs | case.fixed)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(results)
    runs = launched.count("mlxhog_mlstm_states") - 1  # of zeros, before the first
    assert runs == 3 + 3 * gradient
    assert (mx.get_peak_memory() - before) / (4 * width**2) < most
