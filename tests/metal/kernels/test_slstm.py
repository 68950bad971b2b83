"""The sLSTM kernels agree with float64 autograd.

The cell that they make up is compared in tests/models/test_operators.py.
"""

from typing import Any

import numpy as np
import pytest
import torch

from mlxhog.errors import ShapeError
from mlxhog.metal.kernels import slstm
from mlxhog.metal.kernels.slstm import sample_slstm, slstm_backward, slstm_forward
from tests.pairs import each_of
from tests.tolerances import METAL_SLSTM_F32, assert_close

Arrays = dict[str, Any]
GIVEN = ("G", "R", "bias", "h0", "c0", "n0", "m0")
SHAPES = {
    "several heads": {"B": 3, "S": 13, "NH": 2, "DH": 8},
    "one unit": {"B": 2, "S": 5, "NH": 1, "DH": 1},
    "one step": {"B": 1, "S": 1, "NH": 3, "DH": 5},
    "odd width": {"B": 1, "S": 7, "NH": 1, "DH": 45},
    "another instance": {"B": 1, "S": 3, "NH": 2, "DH": 70},
}
shapes = each_of("shape", SHAPES.values(), ids=SHAPES)
fresh_or_not = each_of("fresh", [True, False], ids=["from zeros", "from a state"])
packed_or_not = each_of("packed", [False, True], ids=["one document", "packed"])


def sample(shape, fresh, packed=False):
    rng = np.random.default_rng(0)
    x = sample_slstm(rng, **shape, fresh=fresh, packed=packed)
    B, S, NH, DH = shape.values()
    x["dh"] = rng.standard_normal((B, S, NH, DH), np.float32)
    x["dc_last"], x["dn_last"], x["dm_last"] = rng.standard_normal((3, B, NH, DH), np.float32)
    return x


def forward(x):
    return slstm_forward(x)


def backward(x):
    return slstm_backward(x)


def run(engine, x):
    """x with the outputs of both kernels, dR and dbias."""
    x = x | engine.run(forward(x))
    x |= engine.run(backward(x))
    before = np.concatenate([x["h0"][:, None], x["h"][:, :-1]], 1)
    before[x["starts"] != 0] = 0
    x["dR"] = np.einsum("btgne,btnj->ngej", x["dG"], before)
    x["dbias"] = x["dG"].sum((0, 1))
    return x


def plain_loop(x):
    """The cell as in the paper, in float64, with the gradients of torch's autograd."""
    t64 = {name: torch.tensor(x[name], dtype=torch.float64, requires_grad=True) for name in GIVEN}
    G, R, bias, *now = t64.values()
    starts = torch.tensor(x["starts"] != 0)[:, :, None, None]
    states = []
    for t in range(G.shape[1]):
        h, c, n, m = (torch.where(starts[:, t], 0.0, part) for part in now)
        i, f, z, o = (G[:, t] + torch.einsum("ngej,bnj->bgne", R, h) + bias).unbind(1)
        lf = m + torch.nn.functional.logsigmoid(f)
        m = torch.where(n == 0, i, torch.maximum(i, lf))
        I = torch.exp(i - m)  # noqa: E741
        F = torch.exp(torch.minimum(lf - m, torch.zeros_like(m)))
        c = F * c + I * torch.tanh(z)
        n = F * n + I
        now = [torch.sigmoid(o) * c / n, c, n, m]
        states.append(now)
    h, c, n, m = (torch.stack(part, 1) for part in zip(*states, strict=True))
    loss = (h * torch.tensor(x["dh"])).sum()
    for last, name in ((c, "dc_last"), (n, "dn_last"), (m, "dm_last")):
        loss = loss + (last[:, -1] * torch.tensor(x[name])).sum()
    loss.backward()
    results = {"h": h, "c": c, "n": n, "m": m}
    return {name: value.detach().numpy() for name, value in results.items()} | {
        f"d{name}": value.grad.numpy() for name, value in t64.items() if value.grad is not None
    }


def assert_is_the_cell(actual, expected):
    for name, value in expected.items():
        assert_close(actual[name], value, METAL_SLSTM_F32, label=name)


@shapes
@fresh_or_not
@packed_or_not
def test_the_kernels_are_the_cell_in_float64(shim, shape, fresh, packed):
    x = sample(shape, fresh, packed)
    assert_is_the_cell(run(shim, x), plain_loop(x))


@each_of("gates", [(-30.0, 0.0), (15.0, -30.0), (-30.0, -30.0), (15.0, 15.0)])
def test_extreme_gates_give_the_same_as_in_float64(shim, gates):
    x = sample(SHAPES["several heads"], fresh=True)
    x["G"][:, :, 0] += np.float32(gates[0])
    x["G"][:, :, 1] += np.float32(gates[1])
    assert_is_the_cell(run(shim, x), plain_loop(x))


@fresh_or_not
@each_of("gate", [0, 1], ids=["input gate", "forget gate"])
@each_of("t", [0, 4])
def test_a_nan_in_a_gate_reaches_the_states_and_gradients_of_its_head_alone(shim, fresh, gate, t):
    x = sample(SHAPES["several heads"], fresh)
    x["G"][1, t, gate, 0, 2] = np.nan
    actual = run(shim, x)
    for name in ("h", "c", "n", "dG", "dh0", "dc0", "dn0", "dm0"):
        heads = np.isnan(actual[name]).any(-1).reshape(3, -1, 2).any(1)
        np.testing.assert_array_equal(heads, [[False, False], [True, False], [False, False]], name)
    assert np.isnan(actual["dR"]).any()


@each_of("kernel", slstm.KERNELS, ids=lambda kernel: kernel.name)
def test_any_order_of_threads_gives_the_same_bits(host_engine, consumer, kernel):
    x = sample(SHAPES["odd width"], fresh=False, packed=True)
    x |= host_engine(consumer).run(forward(x))
    launch = forward(x) if kernel is slstm.FORWARD else backward(x)
    calm = host_engine(consumer).run(launch)
    for seed in (1, 2, 3):
        actual = host_engine(consumer, chaos=seed).run(launch)
        for name in calm:
            np.testing.assert_array_equal(actual[name], calm[name])


@each_of(("DH", "instance"), [(1, "64"), (64, "64"), (65, "256"), (192, "256"), (257, "1024")])
def test_a_group_has_threadgroup_memory_for_the_next_number_of_units(DH, instance):
    x = sample({"B": 1, "S": 1, "NH": 1, "DH": DH}, fresh=True)
    assert forward(x).instance == instance


def test_a_head_that_is_too_wide_is_refused_with_the_limit():
    class Wide:
        shape = (1, 1, 4, 1, 1025)

    with pytest.raises(ShapeError, match="heads of 1025 units, and a group .* at most 1024"):
        slstm_forward({"G": Wide()})


def test_arrays_that_do_not_belong_together_are_refused_by_name():
    x = sample(SHAPES["several heads"], fresh=True)
    x["R_T"] = x["R_T"][:1]
    with pytest.raises(ShapeError, match=r"slstm_forward: R_T has shape \(1, 4, 8, 8\)"):
        forward(x)
