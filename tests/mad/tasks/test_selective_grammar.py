"""The selective grammar: its states follow from the tokens, and distractors change none."""

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.mad.tasks import check, make_task
from mlxhog.mad.tasks.dataset import read, write
from mlxhog.mad.tasks.selective_grammar import NOT_ALLOWED
from tests.pairs import each_of

FEW = {"train_rows": 256, "test_rows": 130}


def walked(data, row):
    """States of a training row by the grammar, one token at a time, and which are held."""
    state, states, held = 0, [], []
    for token in data.train_x[row]:
        after = data.grammar[state, token]
        held.append(bool(after == NOT_ALLOWED))
        state = state if held[-1] else int(after)
        states.append(state)
    return states, held


def test_the_share_of_distractors_and_of_allowed_letters_is_the_chosen_one():
    data = make_task("SG", vocab=401, depth=20, gap_prob=0.25, density=0.3, **FEW)
    assert abs((data.grammar[1:, 1:] != NOT_ALLOWED).mean() - 0.3) < 0.02
    assert abs((data.grammar[1:, 0] != NOT_ALLOWED).mean() - 0.3 / 20) < 0.02
    held = np.array([walked(data, row)[1] for row in range(256)])
    assert abs(held[:, 1:][~held[:, :-1]].mean() - 0.25) < 0.02
    assert not np.array(
        [walked(make_task("SG", gap_prob=0, **FEW), row)[1] for row in (0, 9)]
    ).any()


def test_one_seed_has_one_grammar_for_all_rows_and_another_seed_another_one():
    a, b, c = (
        make_task("SG", seed=seed, train_rows=n, test_rows=8)
        for seed, n in ((1, 8), (1, 600), (2, 8))
    )
    np.testing.assert_array_equal(a.grammar, b.grammar)
    assert not np.array_equal(a.grammar, c.grammar)


def test_a_file_keeps_the_grammar(tmp_path):
    data = make_task("SG", **FEW)
    write(tmp_path / "a.npz", data)
    again = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.grammar, data.grammar)
    assert not check(again)
    with np.load(tmp_path / "a.npz") as file:
        arrays = {**file, "grammar": data.grammar[0]}
    np.savez(tmp_path / "a.npz", **arrays)
    assert check(read(tmp_path / "a.npz")) == {"grammar": [0]}


@each_of(
    ("settings", "message"),
    [
        ({"vocab": 30}, "4 states each, of which 4 begin a string: 17, or a multiple of 4 more"),
        ({"starts": 9}, "of which 9 begin a string: 37, or"),
        ({"density": 1}, "below 1"),
        ({"density": 1e-4, "vocab": 401, "depth": 100}, "or a smaller depth"),
    ],
)
def test_settings_that_cannot_be_are_answered_with_what_can_be(settings, message):
    with pytest.raises(ConfigError) as refusal:
        make_task("SG", **FEW, **settings)
    assert message in str(refusal.value)
