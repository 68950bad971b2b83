"""Planted faults, one changed line of our operators each: they depart, and the kind is named."""

from functools import cache

import numpy as np
import pytest

from mlxhog.conformance.vectors.cells import CELLS
from mlxhog.conformance.vectors.faults import Judged, guesses
from mlxhog.conformance.vectors.judge import judged
from mlxhog.models.ops.eager.ops_float64 import one_thread
from tests.cli.command import said, told
from tests.pairs import each_of
from tests.parity.implementations import EVERY, FAULTS, computed, right_ops, rounded_factors
from tests.parity.results import made, results_of, right, set_of

KNOWN = list({fault.kind: fault for fault in reversed(FAULTS) if fault.kind}.values())[::-1]
UNKNOWN = [fault for fault in FAULTS if not fault.kind]


@pytest.fixture(autouse=True)
def _single_thread():
    with one_thread():
        yield


@cache
def cases(name):
    return [made(name, kind) for kind in CELLS[name].kinds]


def entry(case, ops, dtype="float32"):
    checks = [check for check in EVERY if case.checks[check]]
    results = computed(case, ops, dtype, checks)
    return Judged(case, results, judged(case, results, dtype, checks))


@pytest.mark.slow
@pytest.mark.parametrize("fault", KNOWN, ids=lambda fault: f"{fault.equations}: {fault.kind}")
def test_a_planted_fault_departs_and_the_first_guess_is_its_kind(fault):
    entries = [entry(case, fault.ops()) for case in cases(fault.equations)]
    assert any(one.failed() for one in entries)
    first, *_ = guesses(entries)
    assert fault.kind in first.kind
    assert first.equations == fault.equations
    assert set(first.tensors) <= {name for one in entries for name in one.failed()}


@pytest.mark.slow
@pytest.mark.parametrize("fault", UNKNOWN, ids=lambda fault: f"{fault.equations}: {fault.new[:40]}")
def test_a_planted_fault_of_no_known_kind_departs(fault):
    assert any(entry(case, fault.ops()).failed() for case in cases(fault.equations))


@pytest.mark.slow
@each_of("dtype", ["float32", "bfloat16"])
@each_of("program", ["torch eager", "torch native", "mlx eager", "mlx native"])
def test_a_right_program_has_no_fault_in_either_dtype(program, dtype):
    for name in ("mlstm", "kda", "slstm"):
        for case in (case for case in cases(name) if dtype in case.tolerances):
            assert not entry(case, right_ops(*program.split()), dtype).failed()


def test_products_of_rounded_factors_are_right_in_bfloat16_and_a_fault_in_float32():
    case, ops = made("mlstm", "odd"), right_ops("torch")
    with rounded_factors():
        assert not entry(case, ops, "bfloat16").failed()
        noisy = entry(case, ops)
    assert guesses([noisy])[0].kind == "bfloat16 in matmuls or sums"
    assert guesses([entry(case, ops)]) == []


def test_a_fault_is_named_from_forward_results_alone_in_text_and_json(tmp_path, capsys):
    kinds = ("usual", "odd", "state")
    own = [made("gla", kind) for kind in kinds]
    vectors = set_of(tmp_path / "vectors", *own)
    arrays = {case.name: right(case, checks=["forward"]) for case in own}
    for case in own:
        arrays[case.name]["h"] *= case.inputs["k"].shape[-1] ** 0.5
    results = results_of(tmp_path / "r", arrays, {"*": ["forward"]})
    record = told(capsys, "parity", "judge", vectors, results, code=1)
    guess = {"kind": "an unscaled query", "equations": "gla", "tensors": ["h"]}
    assert record["guesses"] == [guess]
    out, _ = said(capsys, "parity", "judge", vectors, results, code=1)
    assert "perhaps an unscaled query (h of gla)" in out


def test_values_that_are_not_finite_are_those_of_a_missing_stabilizer():
    case = made("mlstm", "gates")
    arrays = right(case)
    arrays["h"][0, 3:] = np.inf
    arrays["grad.k"][:] = np.nan
    one = Judged(case, arrays, judged(case, arrays, "float32", EVERY))
    assert [*one.failed()] == ["h", "grad.k"]
    (guess,) = guesses([one])
    assert guess.kind == "a missing stabilizer: values overflow or are divided by 0"


def test_a_departure_without_a_pattern_has_no_guess():
    case = made("gla", "usual")
    arrays = right(case)
    arrays["h"][0, 3, 1, 2] += 0.5
    one = Judged(case, arrays, judged(case, arrays, "float32", EVERY))
    assert [*one.failed()] == ["h"]
    assert guesses([one]) == []
