"""Test vectors: their files, exactness, gradients, tolerances, and a program in C with them."""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mlxhog.conformance.vectors import export as exporting
from mlxhog.conformance.vectors.case import STEPS, Case, names
from mlxhog.conformance.vectors.cells import CELLS
from mlxhog.conformance.vectors.equations import KINDS, SIZES
from mlxhog.conformance.vectors.export import EQUATIONS, SETS, export, make
from mlxhog.conformance.vectors.layers import LAYERS, MODELS
from mlxhog.errors import ConfigError, DataError
from mlxhog.models.ops import kernels
from mlxhog.models.ops.eager.ops_float64 import one_thread
from tests.own_plugins import mlxhog
from tests.pairs import each_of
from tests.parity import plain

EXAMPLE = Path(__file__).parents[2] / "examples" / "conformance.c"
MAX_BYTES = 5_000_000  # of the set `small`
TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@pytest.fixture(autouse=True)
def _single_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def mlstm(tmp_path_factory):
    """An export of the mLSTM cell."""
    folder = tmp_path_factory.mktemp("vectors") / "mlstm"
    with one_thread():
        export("mlstm", folder)
    return folder


def kinds_of(equations):
    return [kind for kind in equations.kinds if equations.resets or not KINDS[kind].resets]


# -- files ---------------------------------------------------------------------------------------


def test_a_case_that_is_written_is_read_as_it_was(tmp_path):
    case = make(CELLS["mlstm"], "documents")
    case.write(tmp_path)
    again = Case.read(tmp_path, case.name)
    for field in dataclasses.fields(Case):
        mine, read = getattr(case, field.name), getattr(again, field.name)
        if field.name in ("inputs", "cotangents", "expected"):
            assert {name: (x.dtype, x.shape) for name, x in mine.items()} == {
                name: (x.dtype, x.shape) for name, x in read.items()
            }
            assert all(np.array_equal(x, read[name]) for name, x in mine.items())
        else:
            assert read == mine, field.name


def test_two_exports_have_the_same_bytes_in_files_that_a_reader_of_the_page_expects(
    mlstm, tmp_path
):
    export("mlstm", tmp_path / "again")
    files = {path.name: path.read_bytes() for path in mlstm.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    cases = [f"mlstm-{kind}" for kind in KINDS]
    assert names(mlstm) == cases
    assert {*files} == {
        "README.md", "LICENSE", "manifest.json",
        *(f"{name}.{end}" for name in cases for end in ("json", "safetensors")),
    }  # fmt: skip
    header = json.loads(files["mlstm-one.json"])
    data = files["mlstm-one.safetensors"]
    length = int.from_bytes(data[:8], "little")
    stored = json.loads(data[8 : 8 + length])
    for name, tensor in header["tensors"].items():
        assert stored[name]["shape"] == tensor["shape"]
    begin, end = stored["input.state.m"]["data_offsets"]
    own = np.frombuffer(data[8 + length + begin : 8 + length + end], "<f4")
    assert np.array_equal(own, Case.read(mlstm, "mlstm-one").inputs["state.m"].ravel())


@each_of("ending, at", [("json", 5), ("safetensors", -1)])
def test_a_changed_file_does_not_pass_for_the_exported_one(mlstm, tmp_path, ending, at):
    shutil.copytree(mlstm, tmp_path / "set")
    path = tmp_path / "set" / f"mlstm-odd.{ending}"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"mlstm-odd\.{ending}.*is not the file that was exported"):
        names(tmp_path / "set")


def damaged(change, file="mlstm-one.json"):
    def damage(folder):
        header = json.loads((folder / file).read_text())
        change(header)
        (folder / file).write_text(json.dumps(header))

    return damage


@each_of(
    "damage, message",
    [
        (damaged(lambda x: x.update(format=2)), "has format 2, and this mlxhog reads format 1"),
        (damaged(lambda x: x.pop("equations")), "are not a case of format 1"),
        (damaged(lambda x: x.update(case="mlstm-odd")), "are not a case of format 1"),
        (damaged(lambda x: x.update(tolerances=[])), "are not a case of format 1"),
        (damaged(lambda x: x["tensors"].update({"input.p": {}})), "are not a case of format 1"),
        (lambda f: (f / "mlstm-one.json").write_text("{"), "cannot read"),
        (lambda f: (f / "mlstm-one.json").unlink(), "cannot read"),
        (lambda f: (f / "mlstm-one.safetensors").unlink(), "cannot read"),
        (lambda f: (f / "mlstm-one.safetensors").write_bytes(b"short"), "are not a case"),
    ],
)
def test_a_case_that_cannot_be_read_is_named_in_one_sentence(mlstm, tmp_path, damage, message):
    shutil.copytree(mlstm, tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(DataError, match=message) as caught:
        Case.read(tmp_path / "set", "mlstm-one")
    assert "mlstm-one" in str(caught.value)
    assert "\n" not in str(caught.value)


@each_of(
    "change",
    [
        lambda x: x.pop("cases"),
        lambda x: x["cases"].append({"name": "other"}),
        lambda x: x.update(cases=[3]),
        lambda x: x["cases"][0].update(name="../mlstm-usual"),
        lambda x: x.update(format=0),
    ],
)
def test_a_folder_without_a_whole_manifest_is_no_set(mlstm, tmp_path, change):
    shutil.copytree(mlstm, tmp_path / "set")
    damaged(change, "manifest.json")(tmp_path / "set")
    with pytest.raises(DataError, match=r"manifest\.json"):
        names(tmp_path / "set")


# -- inputs --------------------------------------------------------------------------------------


@each_of("name", EQUATIONS)
def test_inputs_are_exact_in_every_dtype_of_a_case(name):
    equations = EQUATIONS[name]
    for kind in kinds_of(equations):
        inputs, cotangents = equations.draw(KINDS[kind])
        floats = [x for x in (*inputs.values(), *cotangents.values()) if x.dtype.kind == "f"]
        small = [np.any((x != 0) & (np.abs(x) < 2.0**-126)) for x in floats]
        assert any(small) == (kind == "denormals"), kind
        for dtype in TYPES if kind != "denormals" else ("float32",):
            with np.errstate(over="ignore"):
                assert all(np.array_equal(x.astype(TYPES[dtype]), x) for x in floats), (kind, dtype)


def test_a_case_of_denormals_is_for_float32_alone():
    assert make(CELLS["gla"], "denormals").dtypes == ("float32",)
    assert make(CELLS["gla"], "usual").dtypes == tuple(TYPES)


def test_adversarial_cases_are_what_they_say():
    def drawn(name, kind):
        return CELLS[name].draw(KINDS[kind])[0]

    assert not any(x.any() for x in drawn("mlstm", "zeros").values())
    assert np.abs(drawn("mlstm", "gates")["i"]).max() > 30
    assert drawn("kda", "gates")["log_decay"].min() < -30
    assert drawn("kda", "one")["q"].shape[1] == 1
    assert drawn("kda", "odd")["q"].shape[1] % 16 not in (0, 8)
    resets = drawn("slstm", "documents")["reset_mask"]
    assert resets[0, 0]
    assert (resets[0, 1:] & resets[0, :-1]).any(), "documents of one token"
    assert resets[-1, -1]
    assert SIZES["K"] != SIZES["V"], "a transposed state has another shape"


# -- results -------------------------------------------------------------------------------------


@each_of("name", EQUATIONS)
def test_gradients_are_those_of_the_loss_by_finite_differences(name):
    equations = EQUATIONS[name]
    kind = next(kind for kind in ("carry", "state", "odd") if kind in equations.kinds)
    inputs, cotangents = equations.draw(KINDS[kind])
    exact = equations.results(inputs, cotangents)
    rng = np.random.default_rng(0)
    directions = {
        key: rng.standard_normal(x.shape) for key, x in inputs.items() if x.dtype.kind == "f"
    }

    def loss(step):
        moved = {key: inputs[key] + step * x for key, x in directions.items()}
        results = equations.results({**inputs, **moved})
        return sum((results[key] * dy).sum() for key, dy in cotangents.items())

    slope = sum((exact[f"grad.{key}"] * x).sum() for key, x in directions.items())
    size = sum(np.abs(exact[f"grad.{key}"] * x).sum() for key, x in directions.items())
    step = 1e-6
    assert abs((loss(step) - loss(-step)) / (2 * step) - slope) < 1e-6 * size
    assert {f"grad.{key}" for key in directions} == {key for key in exact if key[:5] == "grad."}


@each_of("name", EQUATIONS)
def test_one_position_at_a_time_gives_the_results_that_steps_expect(name):
    equations = EQUATIONS[name]
    kind = "documents" if equations.resets else "odd"
    inputs, cotangents = equations.draw(KINDS[kind])
    exact = equations.results(inputs)
    checks = exporting.checks(exact)
    assert bool(checks["steps"]) == any(one.role == "state" for one in equations.tensors)
    if not checks["steps"]:
        return
    along = {one.name for one in equations.tensors if one.axes.split()[1:2] == ["S"]}
    along.add("reset_mask")
    now, parts = dict(inputs), []
    for t in range(len(inputs[next(iter(along & {*inputs}))][0])):
        parts.append(
            equations.results({k: x[:, t : t + 1] if k in along else x for k, x in now.items()})
        )
        now |= {key: x for key, x in parts[-1].items() if key.startswith("state.")}
    for key in (key.removeprefix(STEPS) for key in checks["steps"]):
        last = parts[-1][key]
        whole = last if key in checks["states"] else np.concatenate([p[key] for p in parts], 1)
        np.testing.assert_allclose(whole, exact[key], rtol=1e-9, atol=1e-9)


@each_of("name", CELLS)
def test_plain_loops_over_the_text_of_the_equations_give_the_same_results(name):
    kinds = ("odd", "carry", *["documents"] * CELLS[name].resets)
    for kind in kinds:
        case = make(CELLS[name], kind)
        for key, x in plain.run(case).items():
            np.testing.assert_allclose(x, case.expected[key], rtol=1e-11, atol=1e-11, err_msg=key)


# -- tolerances ----------------------------------------------------------------------------------


def ratios(case, results, dtype="float32"):
    """The deviation of each result over its tolerance."""
    return {
        key: np.abs(results[key] - x).max() / case.tolerances[dtype][key].allowed
        for key, x in case.expected.items()
    }


@each_of("name", CELLS | LAYERS)
def test_our_float32_operators_are_within_the_tolerances(name):
    equations = EQUATIONS[name]
    case = make(equations, kinds_of(equations)[-1], seed=1)
    for implementation in ("eager", "native"):
        ops = kernels.choose("torch", implementation, "cpu")
        found = equations.results(case.inputs, case.cotangents, ops=ops, rounded=True)
        worst = max((ratio, key) for key, ratio in ratios(case, found).items())
        assert worst[0] < 0.5, (implementation, worst)


@each_of("name", CELLS)
def test_results_in_bfloat16_are_within_its_tolerances_and_not_those_of_float32(name):
    equations, narrow = EQUATIONS[name], {}
    case = make(equations, "usual", seed=1)
    ops, _ = kernels.choose("torch", "eager", "cpu").autocast({}, [])
    found = equations.results(case.inputs, case.cotangents, ops=ops, rounded=True)
    for key, x in found.items():
        is_wide = key.startswith("state.") and not key.startswith("state.conv")
        narrow[key] = x if is_wide else x.astype(ml_dtypes.bfloat16).astype(np.float64)
    assert max(ratios(case, narrow, "bfloat16").values()) < 0.6
    assert max(ratios(case, narrow).values()) > 10


@each_of("change", [lambda eps: 0.0, lambda eps: 2 * eps, lambda eps: eps + 1e-5])
def test_another_eps_is_not_within_the_tolerances_of_large_gates(change):
    own = CELLS["mlstm"]
    case = make(own, "gates")
    other = dataclasses.replace(own, options={"eps": change(own.options["eps"])})
    found = ratios(case, other.results(case.inputs, case.cotangents))
    assert found["h"] > 2


def test_every_result_has_a_tolerance_and_belongs_to_one_check():
    for equations in (CELLS["slstm"], LAYERS["layer-mlstm-v1"], MODELS["xlstm-v1"]):
        case = make(equations, equations.kinds[-1])
        for dtype in case.dtypes:
            assert {*case.tolerances[dtype]} == {*case.expected}
            assert all(one.allowed > 0 and one.why for one in case.tolerances[dtype].values())
        checked = [
            key for check in ("forward", "states", "gradients") for key in case.checks[check]
        ]
        assert sorted(checked) == sorted(case.expected)


# -- the command and the example -----------------------------------------------------------------


@pytest.mark.slow
def test_the_small_set_is_below_its_size_and_finite(tmp_path):
    export("small", tmp_path / "small")
    assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) < MAX_BYTES
    cases = [Case.read(tmp_path / "small", name) for name in names(tmp_path / "small")]
    assert {case.equations for case in cases} == {*SETS["small"]}
    for case in cases:
        assert all(np.isfinite(x).all() for x in case.expected.values()), case.name


def test_the_command_says_what_it_wrote_and_replaces_only_its_own_files(tmp_path):
    first = mlxhog(tmp_path, "parity", "export", "causal-conv", "set", "--json")
    assert (first.code, json.loads(first.out)["cases"][0]) == (0, "causal-conv-usual")
    again = mlxhog(tmp_path, "parity", "export", "causal-conv-silu", "set")
    assert "9 cases" in again.out
    assert names(tmp_path / "set")[0] == "causal-conv-silu-usual"
    (tmp_path / "set" / "notes.txt").write_text("mine")
    third = mlxhog(tmp_path, "parity", "export", "causal-conv", "set")
    assert third.code == 2
    assert "notes.txt" in third.err
    assert names(tmp_path / "set")[0] == "causal-conv-silu-usual"


@each_of(
    "words, message",
    [
        (("mlstmm", "new"), "no equations 'mlstmm'.*did you mean 'mlstm'"),
        (("7to1-tiny", "new"), "choose one of small, all, mlstm"),
        (("mlstm", "file"), "is a file"),
        (("mlstm", "full"), "holds 'x'"),
        (("mlstm", "."), "cannot be made or replaced"),
        (("mlstm", "none/new"), "cannot be made or replaced"),
        (("mlstm", "file/new"), "cannot be made or replaced"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_before_anything_is_written(tmp_path, words, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=message) as caught:
            export(words[0], Path(words[1]))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_an_export_that_fails_leaves_the_earlier_one(mlstm, tmp_path, monkeypatch):
    shutil.copytree(mlstm, tmp_path / "set")

    def fails(equations, kind, seed=0):
        if kind == "odd":
            assert (tmp_path / f"set.{os.getpid()}.part").is_dir()  # a later export knows it
            raise KeyboardInterrupt
        return make(equations, kind, seed)

    monkeypatch.setattr(exporting, "make", fails)
    with pytest.raises(KeyboardInterrupt):
        export("causal-conv", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert names(tmp_path / "set") == names(mlstm)


def test_what_a_killed_export_left_is_gone_after_the_next(tmp_path):
    part = tmp_path / "set.999999999.part"
    part.mkdir()
    (part / "mlstm-usual.safetensors").write_text("")
    export("causal-conv", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_c_example_is_short_and_its_results_are_within_the_tolerances(mlstm, tmp_path):
    assert len(EXAMPLE.read_text().splitlines()) <= 150
    compile_it = ["cc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run([*compile_it, EXAMPLE, "-lm", "-o", tmp_path / "c"], check=True)
    subprocess.run([tmp_path / "c", mlstm, tmp_path / "results"], check=True)
    said = json.loads((tmp_path / "results" / "results.json").read_text())
    assert said["claims"] == {"mlstm-*": ["forward", "states", "steps"]}
    for name in names(mlstm):
        case = Case.read(mlstm, name)
        for key in (key for check in said["claims"]["mlstm-*"] for key in case.checks[check]):
            x = np.load(tmp_path / "results" / f"{name}.{key}.npy")
            expected = case.expected[key.removeprefix(STEPS)]
            assert x.shape == expected.shape
            allowed = case.tolerances[said["dtype"]][key.removeprefix(STEPS)].allowed
            assert np.abs(x - expected).max() <= allowed, (name, key)


def test_the_c_example_says_which_file_it_cannot_read(tmp_path):
    subprocess.run(["cc", EXAMPLE, "-lm", "-o", tmp_path / "c"], check=True)
    run = subprocess.run([tmp_path / "c", tmp_path, tmp_path], capture_output=True, text=True)
    assert run.returncode == 1
    assert "cannot read" in run.stderr
    assert "manifest.json" in run.stderr
