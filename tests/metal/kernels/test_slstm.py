"""The sLSTM kernels agree with their references, the recorded cell and float64 autograd."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mlxhog.errors import ShapeError
from mlxhog.metal.engine_reference import ReferenceEngine
from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernel import Kernel, Launch
from mlxhog.metal.kernels import slstm
from mlxhog.metal.kernels.slstm import sample_slstm, slstm_backward, slstm_forward
from tests.tolerances import METAL_SLSTM_F32, assert_close

Arrays = dict[str, Any]
GOLDEN = Path(__file__).parents[2] / "golden" / "xlstm"
CASES = ("slstm_cell_a", "slstm_cell_b_init", "slstm_cell_c_extreme")
SHAPES = {
    "several heads": {"B": 3, "S": 13, "NH": 2, "DH": 8},
    "one unit": {"B": 2, "S": 5, "NH": 1, "DH": 1},
    "one step": {"B": 1, "S": 1, "NH": 3, "DH": 5},
    "odd width": {"B": 1, "S": 7, "NH": 1, "DH": 45},
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
fresh_or_not = pytest.mark.parametrize("fresh", [True, False], ids=["from zeros", "from a state"])


def sample(shape: dict[str, int], fresh: bool) -> Arrays:
    rng = np.random.default_rng(0)
    x = sample_slstm(rng, **shape, fresh=fresh)
    B, S, NH, DH = shape.values()
    x["dh"] = rng.standard_normal((B, S, NH, DH), np.float32)
    x["dc_last"], x["dn_last"] = rng.standard_normal((2, B, NH, DH), np.float32)
    return x


def forward(x: Arrays) -> Launch:
    return slstm_forward(
        *(x[name] for name in ("G", "R", "bias", "h0", "c0", "n0", "m0")), fresh=x["fresh"]
    )


def backward(x: Arrays) -> Launch:
    given = (a.name for a in slstm.BACKWARD.inputs if not a.scalar)
    return slstm_backward(*(x[name] for name in given))


def run(engine: Any, x: Arrays) -> Arrays:
    """x with the outputs of both kernels, dR and dbias."""
    x = x | engine.run(forward(x))
    x |= engine.run(backward(x))
    before = np.concatenate([x["h0"][:, None], x["h"][:, :-1]], 1)
    x["dR"] = np.einsum("btgne,btnj->gnej", x["dG"], before)
    x["dbias"] = x["dG"].sum((0, 1))
    return x


def plain_loop(x: Arrays) -> Arrays:
    """The cell as in the paper, in float64, with the gradients of torch's autograd."""
    names = ("G", "R", "bias", "h0", "c0", "n0")
    t64 = {name: torch.tensor(x[name], dtype=torch.float64, requires_grad=True) for name in names}
    G, R, bias, h, c, n = t64.values()
    m = torch.tensor(x["m0"], dtype=torch.float64)
    states = []
    for t in range(G.shape[1]):
        i, f, z, o = (G[:, t] + torch.einsum("gnej,bnj->bgne", R, h) + bias).unbind(1)
        lf = m + torch.nn.functional.logsigmoid(f)
        m = i if t == 0 and bool((n == 0).all()) else torch.maximum(i, lf)
        I = torch.exp(i - m)  # noqa: E741
        F = torch.exp(torch.minimum(lf - m, torch.zeros_like(m)))
        c = F * c + I * torch.tanh(z)
        n = F * n + I
        h = torch.sigmoid(o) * c / n
        states.append((h, c, n, m))
    h, c, n, m = (torch.stack(part, 1) for part in zip(*states, strict=True))
    # The scale of c and n is that of m, which a gradient takes to be constant.
    scale = torch.exp(m[:, -1] - m[:, -1].detach())
    loss = (h * torch.tensor(x["dh"])).sum()
    loss = loss + (c[:, -1] * scale * torch.tensor(x["dc_last"])).sum()
    loss = loss + (n[:, -1] * scale * torch.tensor(x["dn_last"])).sum()
    loss.backward()
    found = {"h": h, "c": c, "n": n, "m": m}
    return {name: value.detach().numpy() for name, value in found.items()} | {
        f"d{name}": value.grad.numpy() for name, value in t64.items() if value.grad is not None
    }


def assert_is_the_cell(found: Arrays, wanted: Arrays) -> None:
    for name, value in wanted.items():
        assert_close(found[name], value, METAL_SLSTM_F32, label=name)


@shapes
@fresh_or_not
def test_each_kernel_agrees_with_its_reference(
    shim: HostEngine, shape: dict[str, int], fresh: bool
) -> None:
    x = sample(shape, fresh)
    wanted = x | ReferenceEngine().run(forward(x))
    for launch in (forward(wanted), backward(wanted)):
        reference, found = ReferenceEngine().run(launch), shim.run(launch)
        for name, value in reference.items():
            worst = np.abs(found[name] - value).max()
            assert worst <= launch.kernel.rtol * max(1.0, np.abs(value).max()), name


@shapes
@fresh_or_not
def test_the_references_are_the_cell_in_float64(shape: dict[str, int], fresh: bool) -> None:
    x = sample(shape, fresh)
    assert_is_the_cell(run(ReferenceEngine(), x), plain_loop(x))


@shapes
@fresh_or_not
def test_the_kernels_are_the_cell_in_float64(
    shim: HostEngine, shape: dict[str, int], fresh: bool
) -> None:
    x = sample(shape, fresh)
    assert_is_the_cell(run(shim, x), plain_loop(x))


@pytest.mark.parametrize("gates", [(-30.0, 0.0), (15.0, -30.0), (-30.0, -30.0), (15.0, 15.0)])
def test_extreme_gates_give_the_same_as_in_float64(
    shim: HostEngine, gates: tuple[float, float]
) -> None:
    x = sample(SHAPES["several heads"], fresh=True)
    x["G"][:, :, 0] += np.float32(gates[0])
    x["G"][:, :, 1] += np.float32(gates[1])
    assert_is_the_cell(run(shim, x), plain_loop(x))


@pytest.mark.parametrize("name", CASES)
def test_states_and_gradients_equal_the_recorded_ones(shim: HostEngine, name: str) -> None:
    t = load_file(GOLDEN / f"{name}.safetensors")
    S, B, _ = t["Wx"].shape
    NH, _, DH = t["R"].shape
    state = t["state0"].reshape(4, B, NH, DH)
    x = {
        "G": t["Wx"].reshape(S, B, 4, NH, DH).swapaxes(0, 1).copy(),
        "R": t["R"].reshape(NH, 4, DH, DH).swapaxes(0, 1).copy(),
        "bias": t["b"].reshape(4, NH, DH),
        **dict(zip(("h0", "c0", "n0", "m0"), state, strict=True)),
        "fresh": not state[2].any(),
        "dh": t["y_weight"].reshape(S, B, NH, DH).swapaxes(0, 1).copy(),
        "dc_last": np.zeros((B, NH, DH), np.float32),
        "dn_last": np.zeros((B, NH, DH), np.float32),
    }
    found = run(shim, x)
    states = t["f64.states_all"].reshape(4, S, B, NH, DH).swapaxes(1, 2)
    wanted = dict(zip("hcnm", states, strict=True))
    wanted["dG"] = t["f64.grad_Wx"].reshape(S, B, 4, NH, DH).swapaxes(0, 1)
    wanted["dR"] = t["f64.grad_R"].reshape(NH, 4, DH, DH).swapaxes(0, 1)
    wanted["dbias"] = t["f64.grad_b"].reshape(4, NH, DH)
    if "f64.grad_state0" in t:
        gradients = t["f64.grad_state0"].reshape(4, B, NH, DH)
        wanted |= dict(zip(("dh0", "dc0", "dn0"), gradients, strict=False))
    assert_is_the_cell(found, wanted)


@pytest.mark.parametrize("kernel", slstm.KERNELS, ids=lambda kernel: kernel.name)
def test_any_order_of_threads_gives_the_same_bits(
    host_engine: Callable[..., HostEngine], consumer: str, kernel: Kernel
) -> None:
    x = sample(SHAPES["odd width"], fresh=False)
    x |= ReferenceEngine().run(forward(x))
    launch = forward(x) if kernel is slstm.FORWARD else backward(x)
    calm = host_engine(consumer).run(launch)
    for seed in (1, 2, 3):
        found = host_engine(consumer, chaos=seed).run(launch)
        for name in calm:
            np.testing.assert_array_equal(found[name], calm[name])


def test_a_head_that_is_too_wide_is_refused_with_the_limit() -> None:
    class Wide:
        shape = (1, 1, 4, 1, 1025)

    with pytest.raises(ShapeError, match="heads of 1025 units, and a group .* at most 1024"):
        slstm_forward(*[Wide()] * 7, fresh=True)


def test_arrays_that_do_not_belong_together_are_refused_by_name() -> None:
    x = sample(SHAPES["several heads"], fresh=True)
    x["R"] = x["R"][:, :1]
    with pytest.raises(ShapeError, match=r"slstm_forward: R has shape \(4, 1, 8, 8\)"):
        forward(x)
