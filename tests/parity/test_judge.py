"""`mlxhog parity judge`: claims, results and what is wrong with them, in sentences."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from mlxhog.conformance.vectors.judge import judge, judged
from tests.cli.command import refused, said, told
from tests.pairs import each_of
from tests.parity.results import EVERY, TYPES, made, results_of, right, set_of

USUAL, ODD, TINY = (made("mlstm", kind) for kind in ("usual", "odd", "denormals"))


@pytest.fixture
def vectors(tmp_path):
    return set_of(tmp_path / "vectors", USUAL, ODD, TINY)


@pytest.mark.parametrize("dtype", TYPES)
def test_an_export_agrees_with_itself_in_each_dtype(tmp_path, vectors, capsys, dtype):
    cases = [case for case in (USUAL, ODD, TINY) if dtype in case.dtypes]
    arrays = {case.name: right(case, dtype) for case in cases}
    results = results_of(tmp_path / "r", arrays, {"*": EVERY}, dtype=dtype)
    record = told(capsys, "parity", "judge", vectors, results)
    assert (record["ok"], record["dtype"], record["first_bad"]) == (True, dtype, None)
    assert {row["what"] for row in record["rows"]} == {
        f"{case.name}/{name}" for case in cases for name in arrays[case.name]
    }
    others = {} if dtype == "float32" else {TINY.name: [*EVERY]}
    assert record["not_checked"] == others
    count = len(record["rows"])
    assert f"{count}_of_{count}_tensors_in_{len(cases)}_of_3_cases" in record["badge"]
    out, err = said(capsys, "parity", "judge", vectors, results)
    assert out.startswith(f"Yes: all {count} agree (a.c, reference)")
    assert record["badge"] in out.splitlines()
    assert err == ""


def test_what_is_not_claimed_is_listed_and_results_may_be_npy_files(tmp_path, vectors, capsys):
    results = results_of(tmp_path / "r", {}, {USUAL.name: ["states", "forward"]})
    for name, x in right(USUAL, checks=("forward", "states")).items():
        np.save(results / f"{USUAL.name}.{name}.npy", x)
    record = told(capsys, "parity", "judge", vectors, results)
    assert record["checked"] == {USUAL.name: ["forward", "states"]}
    assert record["notes"] == [
        f"not checked: steps, gradients of {USUAL.name}",
        f"not checked: forward, states, steps, gradients of {ODD.name}, {TINY.name}",
    ]
    assert "4_of_4_tensors_in_1_of_3_cases" in record["badge"]


@each_of("dtype", ["bfloat16", "float16"])
def test_results_of_a_narrow_type_may_be_stored_as_float32_and_bfloat16_as_npy(tmp_path, dtype):
    vectors = set_of(tmp_path / "vectors", USUAL)
    results = results_of(tmp_path / "r", {}, {"*": ["forward"]}, dtype=dtype)
    path = results / f"{USUAL.name}.h.npy"
    for own in (TYPES[dtype], np.float32):
        np.save(path, USUAL.expected["h"].astype(TYPES[dtype]).astype(own))
        assert judge(vectors, results).first_bad is None


def test_the_first_tensor_and_index_that_departs_are_named_with_exit_code_1(
    tmp_path, vectors, capsys
):
    arrays = {case.name: right(case) for case in (USUAL, ODD)}
    arrays[ODD.name]["h"][0, 20, 0, 3:] += 0.25
    arrays[ODD.name]["h"][0, 30] -= 1.0  # further off, and later
    arrays[ODD.name]["grad.q"][:] = 0.0
    results = results_of(tmp_path / "r", arrays)
    record = told(capsys, "parity", "judge", vectors, results, code=1)
    bad = record["first_bad"]
    assert (record["ok"], bad["what"], bad["kind"]) == (False, "mlstm-odd/h", "forward")
    assert bad["where"] == [0, 20, 0, 3]
    assert bad["max_abs"] == pytest.approx(1.0, rel=1e-5)
    assert {"a", "b", "what", "max_abs", "max_rel", "tolerance", "ok", "got", "wanted"} <= set(bad)
    assert bad["got"] == pytest.approx(bad["wanted"] + 0.25)
    assert "red)" in record["badge"]
    out, err = said(capsys, "parity", "judge", vectors, results, code=1)
    assert out.startswith("FAILED: 2 of ")
    assert re.search(r"FAIL +mlstm-odd/grad\.q", out)
    assert "departs: mlstm-odd/h[0, 20, 0, 3] is " in err


@each_of("odd", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_a_failed_check_with_its_index(tmp_path, capsys, odd):
    vectors = set_of(tmp_path / "vectors", USUAL)
    arrays = right(USUAL)
    arrays["state.n"][1, 0, 2] = odd
    results = results_of(tmp_path / "r", {USUAL.name: arrays})
    record = told(capsys, "parity", "judge", vectors, results, code=1)
    bad = record["first_bad"]
    assert (bad["what"], bad["where"]) == ("mlstm-usual/state.n", [1, 0, 2])
    assert (bad["reason"], bad["max_abs"]) == ("not finite", None)
    _, err = said(capsys, "parity", "judge", vectors, results, code=1)
    assert f"mlstm-usual/state.n[1, 0, 2] is {odd:.9g}, expected " in err


def without(name):
    return lambda arrays: arrays.pop(name)


def with_(name, value):
    return lambda arrays: arrays.update({name: value})


H, C = USUAL.expected["h"], USUAL.expected["state.C"]


@each_of(
    ("change", "message"),
    [
        (without("h"), "mlstm-usual: h is missing, though forward is claimed"),
        (without("steps.state.C"), "mlstm-usual: steps.state.C is missing, though steps is"),
        (with_("g", np.zeros(3, np.float32)), "the tensor 'g', which belongs to no claimed check"),
        (with_("h", H[:, 1:].astype(np.float32)), "h has the shape (2, 15, 2, 6), expected (2, 16"),
        (with_("state.C", C.swapaxes(-1, -2).copy()), "expected (2, 2, 4, 6) (is it transposed?)"),
        (with_("h", H.astype(np.float16)), "the type float16, expected float32 or float64"),
        (with_("h", H.astype(np.int32)), "h has the type int32, expected float32"),
    ],
)
def test_tensors_that_are_missing_extra_misshaped_or_mistyped_are_refused(
    tmp_path, capsys, change, message
):
    vectors, arrays = set_of(tmp_path / "vectors", USUAL), right(USUAL)
    change(arrays)
    results = results_of(tmp_path / "r", {USUAL.name: arrays})
    refused(capsys, message, "parity", "judge", vectors, results)


@each_of(
    ("fields", "message"),
    [
        ({"format": 2}, "its format is 2, expected 1"),
        ({"dtype": "float23"}, "has the dtype 'float23'; choose from float32, float16,"),
        ({"dtype": "float64"}, "has the dtype 'float64'; choose from "),
        ({"claims": {"mlstm-usal": ["forward"]}}, "but no exported case has this name; did"),
        ({"claims": {"gla-*": ["forward"]}}, "claims 'gla-*', but no exported case has this name"),
        ({"claims": {}}, "claims nothing that can be checked in float32"),
        ({"claims": {"mlstm-usual": []}}, "claims nothing that can be checked in float32"),
        ({"claims": {"*": ["backward"]}}, "no check is called 'backward'"),
        ({"claims": ["forward"]}, "claims is ['forward']; wanted an object"),
        ({"implementation": None}, "implementation is None; wanted a text"),
        (
            {"claims": {"mlstm-denormals": ["forward"]}, "dtype": "bfloat16"},
            "mlstm-denormals is not judged in dtype 'bfloat16'; choose from float32",
        ),
        (
            {"claims": {"*-denormals": ["forward"]}, "dtype": "bfloat16"},
            "claims nothing that can be checked in bfloat16",
        ),
    ],
)
def test_claims_that_cannot_be_checked_are_refused(tmp_path, vectors, capsys, fields, message):
    results = results_of(tmp_path / "r", {}, **fields)
    refused(capsys, message, "parity", "judge", vectors, results)


@each_of(
    ("file", "content", "message"),
    [
        ("results.json", b"{", "cannot be used: "),
        ("results.json", b"[1]", "it is not a JSON object"),
        ("results.json", None, "results.json' cannot be used: "),
        ("mlstm-usual.safetensors", b"junk", "is missing, truncated or foreign"),
        ("mlstm-odd.safetensors", b"junk", "belongs to no case that results.json claims"),
        ("gla-usual.h.npy", b"junk", "gla-usual.h.npy' belongs to no case"),
    ],
)
def test_files_that_cannot_be_read_or_that_nobody_claimed_are_refused(
    tmp_path, capsys, file, content, message
):
    vectors = set_of(tmp_path / "vectors", USUAL, ODD)
    results = results_of(tmp_path / "r", {USUAL.name: right(USUAL)})
    (results / file).unlink(missing_ok=True)
    if content is not None:
        (results / file).write_bytes(content)
    refused(capsys, message, "parity", "judge", vectors, results)


@each_of(
    ("content", "message"),
    [
        (b"junk", "is not a file of one array: "),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (10**15,), }"
         .ljust(127) + b"\n", "is not a file of one array: "),
        (np.array([None]), "is not a file of one array: "),
        (H.astype(">f4"), "h has the type >f4, expected float32"),
    ],
)  # fmt: skip
def test_npy_files_of_other_contents_are_refused(tmp_path, capsys, content, message):
    vectors = set_of(tmp_path / "vectors", USUAL)
    results = results_of(tmp_path / "r", {}, {USUAL.name: ["forward"]})
    path = results / f"{USUAL.name}.h.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    refused(capsys, message, "parity", "judge", vectors, results)


def test_damaged_vectors_and_folders_of_other_things_are_refused(tmp_path, vectors, capsys):
    results = results_of(tmp_path / "r", {USUAL.name: right(USUAL)})
    refused(capsys, "manifest.json': ", "parity", "judge", tmp_path / "none", results)
    refused(capsys, "cannot be used: ", "parity", "judge", vectors, tmp_path / "none")
    path = vectors / f"{ODD.name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(capsys, "is not the file that was exported", "parity", "judge", vectors, results)
    manifest = json.loads((vectors / "manifest.json").read_text())
    (vectors / "manifest.json").write_text(json.dumps({**manifest, "format": 7}))
    refused(capsys, "has format 7, and this mlxhog reads", "parity", "judge", vectors, results)


def test_an_infinity_that_is_expected_is_no_fault():
    expected = dict(USUAL.expected)
    expected["state.m"] = np.full_like(expected["state.m"], -np.inf)
    case = replace(USUAL, expected=expected)
    computed = right(case, checks=["states"])
    assert all(row.ok for row in judged(case, computed, "float32", ["states"]))
    computed["state.m"][0, 0] = np.inf
    bad = [row for row in judged(case, computed, "float32", ["states"]) if not row.ok]
    assert [(row.what, row.where) for row in bad] == [("mlstm-usual/state.m", (0, 0))]
