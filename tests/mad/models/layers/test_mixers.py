"""What mesa, gsa, path and mamba3 promise beside the promises of every layer.

They equal published code (the naive texts of fla-core 0.6.0, and `mamba3_siso_step_ref` of
state-spaces/mamba at e9594ce1), whose outputs are recorded, hold where gates are at their
ends, and become simpler layers at special values of their gates.
"""

import math
from pathlib import Path

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layer import Run
from mlxhog.models.mad.layers import attention, linear, state_space
from mlxhog.models.mad.sequence import parse
from tests.models.twins import TWINS, float64
from tests.pairs import each_of
from tests.tolerances import SEQUENCE_F32, STATE_F32, assert_close

RECORDED = Path(__file__).parent / "golden" / "mixers.npz"
D = 16
twins = each_of("twin", TWINS.values(), ids=TWINS)


def recorded(twin, layer, *names):
    with np.load(RECORDED) as arrays:
        return [twin.array(arrays[f"{layer}.{name}"]) for name in names]


def assert_recorded(twin, actual, layer, name="h"):
    with np.load(RECORDED) as arrays:
        assert_close(twin.numpy(actual), arrays[f"{layer}.{name}"], SEQUENCE_F32)


@twins
def test_mesa_solves_what_the_exact_code_of_fla_does(twin):
    names = ("q", "k", "v", "log_decay", "beta", "ridge")
    q, k, v, log_decay, beta, ridge = recorded(twin, "mesa", *names)
    log_decay, root = log_decay[..., None], beta[..., None] ** 0.5
    x, _ = twin.ops.regression_cell(q, root * k, log_decay, ridge, steps=8, chunk_size=8)
    h, _ = twin.ops.recurrence(x, root * k, root * v, log_decay, chunk_size=4)
    assert_recorded(twin, h, "mesa")


@twins
def test_gated_slot_attention_is_that_of_fla(twin):
    q, k, v, log_alpha = recorded(twin, "gsa", "q", "k", "v", "log_alpha")
    h, _ = linear.slot_attention(twin.ops, q, k, v, -log_alpha, (None, None))
    assert_recorded(twin, h, "gsa")


@each_of(("gate", "name"), [(False, "h"), (True, "h_forget")])
@twins
def test_path_attention_is_that_of_fla(twin, gate, name):
    q, k, v, w, beta, log_forget = recorded(twin, "path", "q", "k", "v", "w", "beta", "log_forget")
    cache = (q[:, :0], q[:, :0], *((beta[:, :0],) if gate else ()))
    gates = log_forget if gate else None
    h, _ = attention.reflected_attention(twin.ops, q, k, v, w, beta, gates, cache, beta[:, 0, 0])
    assert_recorded(twin, h, "path", name)


@twins
def test_the_cell_of_mamba3_is_that_of_its_authors(twin):
    names = ("q", "k", "v", "log_decay", "dt", "own", "w")
    q, k, v, log_decay, dt, own, w = recorded(twin, "mamba3", *names)
    angle = math.pi * twin.ops.xp.tanh(w) * dt[..., None]
    own = twin.ops.xp.sigmoid(own)
    h, _ = state_space.turning_cell(twin.ops, q, k, v, log_decay, dt, own, angle, (None,) * 4)
    assert_recorded(twin, h, "mamba3")


def layer(text, twin, gates=None, S=41):
    """Outputs of one layer and of its reference, and its last state; some parameters are scaled."""
    cfg = MADConfig(vocab_size=8, hidden_size=D, layers=parse(text))
    (one,) = cfg.layers
    rng = np.random.default_rng(4)
    p = {
        spec.name: rng.normal(0, 0.5, spec.shape) * (gates or {}).get(spec.name, 1.0)
        for spec in one.param_spec(D)
    }
    x = rng.standard_normal((2, S, D))
    y, state = one.forward(twin.array(p), twin.array(x), one.start(D), Run(twin.ops))
    return twin.numpy(y), float64(one, p, x), state


@each_of(
    ("text", "gates"),
    [
        ("gsa(h2,slots=3)", {"f_proj.weight": 300.0}),
        ("mesa(h2)", {"a_proj.weight": 300.0, "b_proj.weight": 300.0}),
        ("path(h2,forget=true)", {"f_proj.weight": 300.0, "b_proj.weight": 300.0}),
        ("mamba3(h2)", {"dt_bias": 20.0}),
    ],
)
@twins
def test_gates_at_their_ends_overflow_nowhere(twin, text, gates):
    actual, expected, _ = layer(text, twin, gates)
    assert_close(actual, expected, STATE_F32)


@twins
def test_path_whose_reflections_are_closed_is_attention_without_positions(twin):
    with np.load(RECORDED) as arrays:
        q, k, v, w, beta = (twin.array(arrays[f"path.{name}"]) for name in "q k v w beta".split())
    cache = (q[:, :0], q[:, :0])
    h, _ = attention.reflected_attention(twin.ops, q, k, v, w, 0 * beta, None, cache, beta[:, 0, 0])
    assert_close(twin.numpy(h), twin.numpy(twin.ops.attention(q, k, v)), SEQUENCE_F32)


@twins
def test_the_angle_that_mamba3_keeps_is_within_a_turn(twin):
    _, _, (_, theta, *_) = layer("mamba3(h2)", twin, {"dt_bias": 20.0}, S=120)
    kept = twin.numpy(theta)
    assert (kept >= -1e-4).all()
    assert (kept <= 2 * math.pi + 1e-4).all()
    assert np.ptp(kept) > 1


def test_fewer_steps_of_conjugate_gradients_are_another_layer():
    twin = TWINS["torch-reference"]
    few, exact, _ = layer("mesa(h1,steps=2)", twin)
    assert np.abs(few - exact).max() > 1e-2
