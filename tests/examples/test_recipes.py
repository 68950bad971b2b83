"""Every recipe runs and shows what its first line promises."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

import mlxhog.mad
from examples import (
    minimal_xlstm,
    replace_lstm,
    search,
    stateful_training,
    test_my_kernel,
    train_mode,
    variable_length,
    xlstm_on_cpu,
)
from tests.mad.study.made_up import BEST, fails, searched


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_weights_of_a_gpu_give_the_packages_output_on_a_cpu():
    assert xlstm_on_cpu.main()["apart"] < 1e-4


@pytest.mark.slow
def test_a_state_that_is_carried_on_answers_what_a_segment_does_not_contain():
    shares = stateful_training.main()
    assert shares["carried"] > 0.9
    assert shares["anew"] < 0.7


def test_the_minimal_example_learns_its_text():
    first, last, text = minimal_xlstm.main()
    assert last < first / 4
    assert text == "brown fox jumps over the lazy dog."


@pytest.mark.slow
def test_a_search_trains_its_deepened_winner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = search.main(quick=True)
    assert (result.status, result.steps) == ("done", 3)
    assert len([*mlxhog.mad.Study("quick")]) == 2


def test_a_search_prints_a_candidate_that_failed(tmp_path, monkeypatch, capsys):
    study, _ = searched(tmp_path, run=partial(fails, BEST[0]), pairs=0)
    monkeypatch.setattr(search.mad, "search", lambda *of, **how: study)
    monkeypatch.setattr(search.mad, "deepen", lambda *of, **how: SimpleNamespace(file="deep.yaml"))
    monkeypatch.setattr(search.mlxhog, "train", lambda **how: None)
    search.main(quick=True)
    assert f"8.000  {BEST[0]}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_network_works_with_any_of_the_layers_in_the_place_of_lstm():
    shares = replace_lstm.main()
    assert set(shares) == {"nn.LSTM", "SLSTM", "MLSTM"}
    for name in ("SLSTM", "MLSTM"):
        assert shares[name] > 0.4, f"{name} does not beat chance, 0.125"


def test_rows_of_different_lengths_are_each_what_they_are_alone():
    assert max(variable_length.main().values()) < 1e-5


def test_xlstm_large_trains_at_any_length_and_goes_back_to_transformers():
    shown = train_mode.main()
    assert shown["last"] < shown["first"]
    assert shown["apart"] < 1e-4


@pytest.mark.slow
def test_the_test_of_a_kernel_passes_and_finds_a_wrong_one(monkeypatch):
    test = test_my_kernel.test_my_gla_has_the_values_and_gradients_of_float64
    test()
    right = test_my_kernel.my_gla
    monkeypatch.setattr(test_my_kernel, "my_gla", lambda q, *others: right(1.001 * q, *others))
    with pytest.raises(AssertionError, match="gla-usual/h"):
        test()
