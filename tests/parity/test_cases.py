"""Recorded cases come in under our names and in our layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlxhog.errors import DataError
from mlxhog.models import families
from mlxhog.parity import cases
from mlxhog.parity.subject import (
    PEERS,
    ComponentsPlan,
    MlstmPlan,
    ModelPlan,
    SlstmPlan,
    check,
    not_computable,
)
from tests.models.sample import config
from tests.pairs import each_of
from tests.parity import made_cases

GOLDEN = Path(__file__).parents[1] / "golden" / "xlstm"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))


@each_of("name", NAMES)
def test_every_tensor_of_a_golden_case_is_understood(name: str) -> None:
    subject = cases.read(GOLDEN / f"{name}.safetensors", steps=0)
    check(subject)
    assert subject.recorded
    assert all("custbw" in note for note in subject.notes), subject.notes


def test_the_kinds_of_cases_are_told_apart() -> None:
    kinds = {
        "hf_a": ModelPlan,
        "v1_mixed_02": ModelPlan,
        "mlstm_cell_a": MlstmPlan,
        "slstm_cell_b_init": SlstmPlan,
        "components": ComponentsPlan,
    }
    for name, kind in kinds.items():
        assert isinstance(cases.read(GOLDEN / f"{name}.safetensors", steps=0).plan, kind)


def test_the_target_of_a_position_is_the_next_label_and_nothing_at_the_end() -> None:
    subject = cases.read(GOLDEN / "hf_a.safetensors", steps=0)
    labels = load_file(GOLDEN / "hf_a.safetensors")["labels"]
    np.testing.assert_array_equal(subject.fixed["targets"][:, :-1], labels[:, 1:])
    assert (subject.fixed["targets"][:, -1] == -100).all()


def test_fused_parameters_and_gradients_are_split_by_rows(tmp_path: Path) -> None:
    single = cases.read(made_cases.large_model(tmp_path), steps=0)
    fused = cases.read(made_cases.large_model(tmp_path, fused=True), steps=0)
    assert isinstance(fused.plan, ModelPlan)
    assert set(fused.inputs) == set(families.param_spec(fused.plan.cfg))
    for name, value in single.inputs.items():
        np.testing.assert_array_equal(fused.inputs[name], value)
    for name, value in single.recorded["recorded"].items():
        np.testing.assert_array_equal(fused.recorded["recorded"][name], value)


@each_of(
    ("changes", "message", "notes"),
    [
        ({"use_bias": True, "out_norm_bias": True}, {"out_norm_bias": None}, ""),
        ({"use_bias": True}, {}, ""),
        ({}, {"add_out_norm": False}, "the recorded model applies the final norm"),
        ({}, {"tie_word_embeddings": True}, "the recorded head is a separate matrix"),
    ],
    ids=["xlstm's bias of the final norm", "none", "transformers' final norm", "an untied head"],
)
def test_the_model_is_the_one_that_its_package_ran_whatever_the_config_says(
    tmp_path: Path, changes: dict[str, bool], message: dict[str, bool | None], notes: str
) -> None:
    right = config(**changes)
    subject = cases.read(made_cases.large_model(tmp_path, changes=changes, said=message), steps=0)
    assert isinstance(subject.plan, ModelPlan)
    assert subject.plan.cfg == right
    assert notes in " ".join(subject.notes)


def test_a_tied_head_that_is_stored_twice_counts_once(tmp_path: Path) -> None:
    tied = {"tie_word_embeddings": True}
    path = made_cases.large_model(tmp_path, changes=tied)
    embedding = load_file(path)["param.backbone.embeddings.weight"]
    twice = {"param__lm_head__weight": embedding, "grad__lm_head__weight": embedding}
    subject = cases.read(made_cases.large_model(tmp_path, changes=tied, **twice), steps=0)
    assert isinstance(subject.plan, ModelPlan)
    assert subject.plan.cfg.tie_word_embeddings
    assert "lm_head.weight" not in subject.inputs
    assert "grad/lm_head.weight" not in subject.recorded["recorded"]


@each_of(
    ("changes", "peers"),
    [
        ({}, ["transformers", "xlstm"]),
        ({"tie_word_embeddings": True}, []),
        ({"use_bias": True}, ["transformers", "xlstm"]),
        ({"use_bias": True, "out_norm_bias": True}, ["xlstm"]),
        ({"add_out_norm": False}, ["xlstm"]),
        ({"reset_at_document_boundaries": True, "bos_token_id": 0}, []),
    ],
)
def test_a_peer_is_asked_for_the_models_that_it_has(
    changes: dict[str, Any], peers: list[str]
) -> None:
    plan = ModelPlan(config(**changes))
    assert [name for name in PEERS if not_computable(name, plan) is None] == peers


def test_states_of_the_v1_cell_are_scaled_to_ours(tmp_path: Path) -> None:
    recorded = cases.read(made_cases.mlstm_cell(tmp_path), steps=0).recorded
    for part in "Cnm":
        v1, ours = recorded["recorded_v1"], recorded["recorded_f64"]
        np.testing.assert_allclose(
            v1[f"recurrent/state/{part}"], ours[f"recurrent/state/{part}"], rtol=1e-6
        )


def test_gradients_with_a_constant_denominator_are_left_out_and_said_so(tmp_path: Path) -> None:
    subject = cases.read(made_cases.mlstm_cell(tmp_path), steps=0)
    assert not any("custbw" in side for side in subject.recorded)
    assert any("custbw" in note for note in subject.notes)


@each_of(("name", "repeats"), [("hf_d_generate", True), ("large_a", False)])
def test_greedy_tokens_are_those_after_the_prompt(name: str, repeats: bool) -> None:
    subject = cases.read(GOLDEN / f"{name}.safetensors", steps=0)
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    begin = tensors["greedy_prompt"].shape[1] if repeats else 0
    expected = tensors["greedy_ids"][:, begin:]
    np.testing.assert_array_equal(subject.recorded["recorded"]["greedy_ids"], expected)


def test_a_name_that_is_unknown_is_said_not_to_be_compared(tmp_path: Path) -> None:
    path = made_cases.large_model(tmp_path, entropy=np.zeros(3, np.float32))
    assert "not compared: entropy, a name unknown here" in cases.read(path, steps=0).notes


@each_of(
    ("tensors", "facts", "message"),
    [
        ({"a": np.zeros(1)}, "{}", "no known kind of case: it has a"),
        ({"input_ids": np.zeros((1, 2), np.int64)}, "{}", "lacks the field config"),
        ({"a": np.zeros(1)}, "[]", "holds a list, wanted an object"),
        ({"a": np.zeros(1)}, "{", "cannot read the facts of a case"),
        ({"a": np.zeros(1)}, None, "a case is two files"),
    ],
)
def test_what_is_no_case_is_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], facts: str | None, message: str
) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path)
    if facts is not None:
        path.with_suffix(".json").write_text(facts)
    with pytest.raises(DataError, match=message):
        cases.read(path, steps=0)


def test_a_damaged_or_missing_case_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no case .*gone.safetensors"):
        cases.read(tmp_path / "gone.safetensors", steps=0)
    path = made_cases.large_model(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="truncated"):
        cases.read(path, steps=0)


@each_of(
    ("change", "message"),
    [
        ("drop", "lacks param.backbone.out_norm.weight"),
        ("add", "holds param.backbone.odd.weight"),
        ("shape", "param.backbone.out_norm.weight has shape"),
    ],
)
def test_parameters_that_do_not_fit_the_config_are_named(
    tmp_path: Path, change: str, message: str
) -> None:
    path = made_cases.large_model(tmp_path)
    tensors = load_file(path)
    if change == "drop":
        del tensors["param.backbone.out_norm.weight"]
    elif change == "add":
        tensors["param.backbone.odd.weight"] = np.zeros(2, np.float32)
    else:
        tensors["param.backbone.out_norm.weight"] = np.zeros(2, np.float32)
    save_file(tensors, path)
    with pytest.raises(DataError, match=message):
        cases.read(path, steps=0)


def test_a_number_that_is_not_finite_is_named_with_its_place(tmp_path: Path) -> None:
    scale = np.ones(16, np.float32)
    scale[5] = np.nan
    path = made_cases.large_model(tmp_path, **{"param__backbone__out_norm__weight": scale})
    with pytest.raises(DataError, match=r"backbone.out_norm.weight is nan at \[5\]"):
        check(cases.read(path, steps=0))


def test_a_token_out_of_range_is_named_with_its_place(tmp_path: Path) -> None:
    tokens = np.zeros((2, 11), np.int64)
    tokens[1, 4] = 23
    path = made_cases.large_model(tmp_path, input_ids=tokens)
    with pytest.raises(DataError, match=r"tokens holds 23 at \[1, 4\], wanted 0 to 22"):
        check(cases.read(path, steps=0))


def test_the_facts_may_be_named_instead_of_the_tensors(tmp_path: Path) -> None:
    path = made_cases.large_model(tmp_path)
    assert json.loads(path.with_suffix(".json").read_text())["what"] == "made by a test"
    assert cases.read(path.with_suffix(".json"), steps=0).title.startswith("made_large")
