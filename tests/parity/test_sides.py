"""Functions of others as sides: right ones, wrong ones and odd ones, and the arbiter of them."""

import re

import numpy as np
import pytest

import mlxhog
from mlxhog.conformance.sides import peers
from mlxhog.errors import ConfigError, EnvironmentLacks
from tests.cli import command
from tests.pairs import each_of
from tests.processes import python

KERNELS = '''
import os
import time

import numpy as np


def gla(case):
    """Gated linear attention in float64, position by position."""
    q, k, v, log_decay = (case.inputs[name].astype("f8") for name in ("q", "k", "v", "log_decay"))
    B, T, H, K = q.shape
    S, hs = case.inputs.get("state.S", np.zeros((B, H, K, v.shape[-1]))), []
    for t in range(T):
        S = np.exp(log_decay[:, t, ..., None]) * S + k[:, t, ..., None] * v[:, t, :, None]
        hs.append(np.einsum("bhkv,bhk->bhv", S, q[:, t]) / K**0.5)
    return {"h": np.stack(hs, 1), "state.S": S}


def hangs(case):
    time.sleep(600)


def dies(case):
    os.abort()


number = 3
'''
kernels: dict = {}
exec(KERNELS, kernels)
gla = kernels["gla"]


def unscaled(case):
    K = case.inputs["q"].shape[-1]
    return gla(case) | {"h": gla(case)["h"] * K**0.5}


def raises(case):
    raise ValueError("no such kernel\nin this build")


def misshapen(case):
    return {"h": gla(case)["h"].swapaxes(1, 2)}


def not_finite(case):
    h = gla(case)["h"]
    h[0, 0, 1, 2] = np.nan
    return {"h": h}


def unknown(case):
    return gla(case) | {"state.C": np.zeros(3)}


def of_integers(case):
    return {"h": np.zeros(case.cotangents["h"].shape, int)}


def no_arrays(case):
    return gla(case)["h"]


def nothing(case):
    return {}


def only_from_zero(case):
    """It writes into what it gets, which no other side sees, and knows no first state."""
    if "state.S" in case.inputs:
        raise NotImplementedError("it begins at zero")
    results = gla(case)
    for x in case.inputs.values():
        x[...] = 0.0
    assert case.expected == {}
    return results


SIDES = (
    only_from_zero, gla, unscaled, raises, misshapen, not_finite, unknown, of_integers, no_arrays,
    nothing,
)  # fmt: skip


@pytest.fixture(scope="module")
def report():
    return mlxhog.parity("gla", sides={side.__name__: side for side in SIDES})


def of(report, name):
    """The summary of a side, and its rows that fail."""
    (one,) = (one for one in report.summaries if one.side.name == name)
    return one, [row for row in one.rows if not row.ok]


@pytest.mark.slow
def test_a_right_side_agrees_in_what_it_returns_and_the_rest_is_not_checked(report):
    one, failed = of(report, "gla")
    assert not failed
    assert {row.what.partition("/")[2] for row in one.rows} == {"h", "state.S"}
    assert [*one.not_checked] == ["steps", "gradients"]
    one, failed = of(report, "only_from_zero")
    assert not failed
    left_out = "gla-one, gla-state, gla-carry: it begins at zero"
    assert [*one.not_checked] == ["steps", "gradients", left_out]
    assert len(one.rows) < len(of(report, "gla")[0].rows)


@pytest.mark.slow
def test_a_wrong_side_fails_at_its_first_tensor_and_its_fault_is_guessed(report):
    one, failed = of(report, "unscaled")
    first = report.first_bad
    assert not report.ok
    assert (first.a, first.b, first.what) == ("unscaled", "reference", "gla-usual/h")
    assert first.got == pytest.approx(2 * first.wanted, rel=1e-5)
    assert {row.what.partition("/")[2] for row in failed} == {"h"}
    assert one.worst.tolerance_ratio > 1e3
    assert re.search(r"\(h of gla\)", one.guesses[0]), one.guesses


@pytest.mark.slow
@each_of(
    ("name", "what", "says"),
    [
        ("raises", "gla-usual", r"ValueError: no such kernel in this build \(in 9 cases\)"),
        ("misshapen", "gla-usual/h", r"shape is \(2, 2, 16, 6\), expected \(2, 16, 2, 6\) \(in 9"),
        ("not_finite", "gla-usual/h", "not finite"),
        ("unknown", "gla-usual/state.C", r"gla has no such result; did you mean 'state.S'\?"),
        ("of_integers", "gla-usual", r"TypeError: h is of int64, expected an array of NumPy, of"),
        ("no_arrays", "gla-usual", r"TypeError: it returned array.*; return arrays by name"),
        ("nothing", "all cases", "nothing was returned that can be compared"),
    ],
)
def test_what_is_not_a_result_is_one_sentence(report, name, what, says):
    _, failed = of(report, name)
    assert failed[0].what == what
    assert re.search(says, failed[0].reason), failed[0].reason
    assert "\n" not in failed[0].reason


@pytest.mark.slow
def test_the_arbiter_says_which_of_two_values_float64_supports(report):
    of_tensor = {ruling.departing[0].what: ruling for ruling in report.rulings}
    assert "gla-usual/state.S" not in of_tensor  # all sides have the same
    ruling = of_tensor["gla-usual/h"]
    supported = {row.a for row in ruling.supported}
    assert supported == {"only_from_zero", "gla", "unknown"}
    assert {row.a for row in ruling.departing} == {"unscaled", "not_finite"}
    number = r"\(off by \S+ tolerances\)"
    said = rf"gla-usual/h: float64 supports only_from_zero {number}, gla {number}, unknown {number}"
    assert re.fullmatch(rf"{said}, not unscaled {number}, not_finite \(not finite\)", str(ruling))
    record = ruling.to_json()
    assert record["departing"]["not_finite"] is None
    assert record["departing"]["unscaled"] > 1e3 > 1 > record["supported"]["gla"]


@pytest.mark.slow
def test_sides_in_processes_may_hang_or_die_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "kernels.py").write_text(KERNELS)
    monkeypatch.chdir(tmp_path)
    names = ("hangs", "dies", "gla")
    words = [word for name in names for word in ("--side", f"{name}=kernels:{name}")]
    words += ["--side-limit", "5s"]
    record = command.told(capsys, "parity", "gla", *words, code=1)
    reasons = {row["a"]: row["reason"] for row in record["rows"] if not row["ok"]}
    assert reasons.keys() == {"hangs", "dies"}
    assert reasons["hangs"] == "no answer within 5 s"
    assert reasons["dies"].startswith("the process ended (signal SIGABRT)")
    assert record["first_bad"]["what"] == "gla-usual"
    assert record["not_checked"]["gla"] == ["steps", "gradients"]
    out, err = command.said(capsys, "parity", "gla", "--side", "mine=kernels:gla")
    assert out.startswith("Yes: all 18 agree (mine, reference)")
    assert "Traceback" not in err


@pytest.mark.slow
@each_of(
    ("words", "says"),
    [
        (["gla", "--side", "mine=kernels:glaa"], "has no function 'glaa'; did you mean 'gla'?"),
        (["gla", "--side", "mine=kernels:number"], "kernels has no function 'number'"),
        (["gla", "--side", "mine=kernel:gla"], "mine=kernel:gla: cannot import kernel: No module"),
        (["gla", "--side", "mine=broken:gla"], "SyntaxError: "),
        (["gla", "--side", "mine=kernels"], "wanted NAME=module:function, such as mine=kernels:m"),
        (["gla", "--side", "mine"], "no side has this name; wanted NAME=module:function, own, pee"),
        (["gla", "--side", "flaa"], "no side has this name; did you mean 'fla'?"),
        (["gla", "--side", "mlx_lm"], "mlx_lm does not compute gla; it has gated-delta-rule, kda,"),
        (["gla", "--side", "a=k:f", "--side", "a=k:g"], "a is given twice"),
        (["glaa", "--side", "fla"], "no equations 'glaa'"),
        (["--side", "fla"], "a side needs a SUBJECT"),
        (["gla", "--side", "fla", "--backends", "numpy"], "--backends are both given; keep one"),
    ],
)
def test_sides_that_do_not_exist_are_refused(tmp_path, monkeypatch, capsys, words, says):
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "broken.py").write_text("def gla(:")
    monkeypatch.chdir(tmp_path)
    command.refused(capsys, says, "parity", *words)


def test_a_peer_that_is_not_installed_is_left_out_or_named(monkeypatch):
    monkeypatch.setattr(peers, "version_of", lambda name: None if name == "fla-core" else "1.0")
    found, notes = peers.choose(["peers"], ["kda"])
    assert [side.name for side in found] == ["mlx_lm/gated_delta_ops"]
    assert any(note.startswith("left out: fla, which is not installed: ") for note in notes)
    with pytest.raises(EnvironmentLacks, match="--side fla needs fla-core: python -m pip install"):
        peers.choose(["fla"], ["kda"])
    with pytest.raises(ConfigError, match="--side fla/naive_chunk_kda does not compute mlstm"):
        peers.choose(["fla/naive_chunk_kda"], ["mlstm"])
    monkeypatch.setattr(peers, "version_of", lambda name: None)
    with pytest.raises(EnvironmentLacks, match="--side peers: no package that computes these"):
        peers.choose(["peers"], ["kda"])
    found, notes = peers.choose(["own", "peers"], ["kda"])
    assert len(found) == 4
    assert any(note.startswith("left out: fla, ") for note in notes)


@pytest.mark.slow
def test_parity_is_the_function_whatever_has_been_imported():
    modules = "conformance", "conformance.api", "conformance.sides.peers", "cli.parity"
    for module in modules:
        code = f"import mlxhog.{module}, mlxhog; mlxhog.parity; print(mlxhog.parity.__module__)"
        process = python("-c", code)
        assert process.stdout.split() == ["mlxhog.conformance.api"], process.stderr
