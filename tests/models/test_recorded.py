"""Recorded cases come in under our names, and every side computes what was recorded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlxhog.models import families
from mlxhog.parity.subject import ModelPlan
from tests.models import cases, made_cases
from tests.models.recorded import SIDES, compared, unmet
from tests.models.sample import config
from tests.pairs import each_of

GOLDEN = Path(__file__).parents[1] / "golden" / "xlstm"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))


@each_of("name", NAMES)
def test_every_tensor_of_a_golden_case_is_understood(name):
    subject = cases.read(GOLDEN / f"{name}.safetensors")
    assert subject.recorded
    assert all("custbw" in note for note in subject.notes), subject.notes


def test_the_target_of_a_position_is_the_next_label_and_nothing_at_the_end():
    subject = cases.read(GOLDEN / "hf_a.safetensors")
    labels = load_file(GOLDEN / "hf_a.safetensors")["labels"]
    np.testing.assert_array_equal(subject.fixed["targets"][:, :-1], labels[:, 1:])
    assert (subject.fixed["targets"][:, -1] == -100).all()


def test_fused_parameters_and_gradients_are_split_by_rows(tmp_path):
    single = cases.read(made_cases.large_model(tmp_path))
    fused = cases.read(made_cases.large_model(tmp_path, fused=True))
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
    tmp_path, changes, message, notes
):
    right = config(**changes)
    subject = cases.read(made_cases.large_model(tmp_path, changes=changes, said=message))
    assert isinstance(subject.plan, ModelPlan)
    assert subject.plan.cfg == right
    assert notes in " ".join(subject.notes)


def test_a_tied_head_that_is_stored_twice_counts_once(tmp_path):
    tied = {"tie_word_embeddings": True}
    path = made_cases.large_model(tmp_path, changes=tied)
    embedding = load_file(path)["param.backbone.embeddings.weight"]
    twice = {"param__lm_head__weight": embedding, "grad__lm_head__weight": embedding}
    subject = cases.read(made_cases.large_model(tmp_path, changes=tied, **twice))
    assert isinstance(subject.plan, ModelPlan)
    assert subject.plan.cfg.tie_word_embeddings
    assert "lm_head.weight" not in subject.inputs
    assert "grad/lm_head.weight" not in subject.recorded["recorded"]


def test_states_of_the_v1_cell_are_scaled_to_ours(tmp_path):
    recorded = cases.read(made_cases.mlstm_cell(tmp_path)).recorded
    for part in "Cnm":
        v1, ours = recorded["recorded_v1"], recorded["recorded_f64"]
        np.testing.assert_allclose(
            v1[f"recurrent/state/{part}"], ours[f"recurrent/state/{part}"], rtol=1e-6
        )


def test_gradients_with_a_constant_denominator_are_left_out_and_said_so(tmp_path):
    subject = cases.read(made_cases.mlstm_cell(tmp_path))
    assert not any("custbw" in side for side in subject.recorded)
    assert any("custbw" in note for note in subject.notes)


@each_of(("name", "repeats"), [("hf_d_generate", True), ("large_a", False)])
def test_greedy_tokens_are_those_after_the_prompt(name, repeats):
    subject = cases.read(GOLDEN / f"{name}.safetensors")
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    begin = tensors["greedy_prompt"].shape[1] if repeats else 0
    expected = tensors["greedy_ids"][:, begin:]
    np.testing.assert_array_equal(subject.recorded["recorded"][cases.GREEDY], expected)


def test_a_name_that_is_unknown_is_said_not_to_be_compared(tmp_path):
    path = made_cases.large_model(tmp_path, entropy=np.zeros(3, np.float32))
    assert "not compared: entropy, a name unknown here" in cases.read(path).notes


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["hf_d_generate", "large_d_fused", "v1_mixed_02", "mlstm_cell_c_init", "slstm_cell_b_init",
     "components"],
)  # fmt: skip
def test_every_backend_and_form_agrees_with_what_was_recorded(name):
    case = cases.read(GOLDEN / f"{name}.safetensors")
    rows = compared(case)
    assert [f"{row.a} {row.b} {row.what}" for row in rows if not row.ok] == []
    assert {row.a for row in rows} == {side.name for side in SIDES}
    assert unmet(case, rows) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    ["grad/backbone.blocks.1.ffn.proj_up.weight", "hidden/1", "logits", "loss", "state/1/n",
     "stepwise/logits"],
)  # fmt: skip
def test_a_wrong_recorded_tensor_is_found_and_named(tmp_path, what):
    case = cases.read(made_cases.large_model(tmp_path))
    wrong = case.recorded["recorded"][what].copy().reshape(-1)
    wrong[-1] += 0.02 * np.abs(wrong).max()
    shape = case.recorded["recorded"][what].shape
    recorded = {**case.recorded["recorded"], what: wrong.reshape(shape)}
    rows = compared(replace(case, recorded={"recorded": recorded}), SIDES[:1])
    assert [f"{row.a} {row.b} {row.what}" for row in rows if not row.ok] == [
        f"numpy recorded {what}"
    ]


def test_a_wrong_gradient_of_the_cell_is_found_and_named(tmp_path):
    wrong = np.zeros((2, 2, 7), np.float64)
    case = cases.read(made_cases.mlstm_cell(tmp_path, recurrent_f64__grad_i=wrong))
    bad = [row for row in compared(case, SIDES[:1]) if not row.ok]
    assert [(row.b, row.what) for row in bad] == [("recorded_f64", "recurrent/grad/i")]


def test_a_recorded_result_that_no_side_computes_is_reported(tmp_path):
    path = made_cases.large_model(tmp_path, **{"state__9__C": np.zeros(3, np.float32)})
    case = cases.read(path)
    assert unmet(case, compared(case, SIDES[:1])) == ["recorded state/9/C"]
