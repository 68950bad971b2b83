"""What mesa, gsa, path and mamba3 promise beside the promises of every layer.

They equal published code (the naive texts of fla-core 0.6.0, and `mamba3_siso_step_ref` of
state-spaces/mamba at e9594ce1), whose outputs are recorded, hold where gates are at their
ends, and become simpler layers at special values of their gates.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np

from mlxhog.models.layers import attention, linear, state_space
from mlxhog.models.layers.layer import ForwardContext
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import parse
from tests.models.twins import TWINS, float64, start
from tests.pairs import each_of
from tests.tolerances import SEQUENCE_F32, STATE_F32, assert_close

RECORDED = dict(np.load(Path(__file__).parent / "golden" / "mixers.npz"))
D = 16
twins = each_of("twin", TWINS.values(), ids=TWINS)


def recorded(twin, layer, names):
    return [twin.array(RECORDED[f"{layer}.{name}"]) for name in names.split()]


def mesa(twin):
    q, k, v, log_decay, beta, ridge = recorded(twin, "mesa", "q k v log_decay beta ridge")
    log_decay, root = log_decay[..., None], beta[..., None] ** 0.5
    x, _ = twin.ops.regression_cell(q, root * k, log_decay, ridge, steps=8, chunk_size=8)
    return twin.ops.recurrence(x, root * k, root * v, log_decay, chunk_size=4)[0]


def gsa(twin):
    q, k, v, log_alpha = recorded(twin, "gsa", "q k v log_alpha")
    return linear.slot_attention(twin.ops, q, k, v, -log_alpha, (None, None))[0]


def path(twin, forgets=False):
    q, k, v, w, beta, log_forget = recorded(twin, "path", "q k v w beta log_forget")
    cache = (q[:, :0], q[:, :0], *((beta[:, :0],) if forgets else ()))
    gates, start = log_forget if forgets else None, beta[:, 0, 0]
    return attention.reflected_attention(twin.ops, q, k, v, w, beta, gates, cache, start)[0]


def mamba3(twin):
    q, k, v, log_decay, dt, own, w = recorded(twin, "mamba3", "q k v log_decay dt own w")
    angle = math.pi * twin.ops.xp.tanh(w) * dt[..., None]
    own = twin.ops.xp.sigmoid(own)
    return state_space.rotating_cell(twin.ops, q, k, v, log_decay, dt, own, angle, (None,) * 4)[0]


CELLS = {"mesa.h": mesa, "gsa.h": gsa, "path.h": path, "mamba3.h": mamba3}
CELLS["path.h_forget"] = partial(path, forgets=True)


@each_of(("name", "cell"), CELLS.items())
@twins
def test_a_cell_is_that_of_its_authors(twin, name, cell):
    assert_close(twin.numpy(cell(twin)), RECORDED[name], SEQUENCE_F32)


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
    y, state = one.forward(twin.array(p), twin.array(x), start(one, D), ForwardContext(twin.ops))
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
def test_the_angle_that_mamba3_keeps_is_within_a_turn(twin):
    _, _, (_, theta, *_) = layer("mamba3(h2)", twin, {"dt_bias": 20.0}, S=120)
    kept = twin.numpy(theta)
    assert (kept >= -1e-4).all()
    assert (kept <= 2 * math.pi + 1e-4).all()
    assert np.ptp(kept) > 1
