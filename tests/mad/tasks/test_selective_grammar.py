"""The selective grammar: its states follow from the tokens, and distractors change none."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.errors import ConfigError, DataError
from mlxhog.mad.tasks import Dataset, check, make_task
from mlxhog.mad.tasks.dataset import read, write
from mlxhog.mad.tasks.selective_grammar import NOT_ALLOWED
from tests.pairs import each_of

FEW = {"train_rows": 256, "test_rows": 130}


def walked(data: Dataset, row: int) -> tuple[list[int], list[bool]]:
    """States of a training row by the grammar, one token at a time, and which are held."""
    state, states, held = 0, [], []
    for token in data.train_x[row]:
        after = data.grammar[state, token]
        held.append(bool(after == NOT_ALLOWED))
        state = state if held[-1] else int(after)
        states.append(state)
    return states, held


def test_a_target_is_the_state_after_the_tokens_that_the_grammar_allows():
    data = make_task("selective-grammar", gap_prob=0.3, gap_start=10, **FEW)
    for row in range(50):
        states, held = walked(data, row)
        assert data.train_y[row].tolist() == states
        assert not any(held[:11])
        assert not any(a and b for a, b in zip(held, held[1:], strict=False))


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
    assert check(again).ok
    with np.load(tmp_path / "a.npz") as file:
        arrays = {**file, "grammar": data.grammar[0]}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=r"grammar has shape \(9,\)"):
        read(tmp_path / "a.npz")


@pytest.mark.slow
@each_of(
    "settings",
    [
        {"vocab": 2, "depth": 1, "starts": 1, "seq_len": 2},
        {"vocab": 5, "depth": 1, "gap_prob": 0.9},
        {"depth": 2, "gap_start": 64},
        {"depth": 32, "starts": 1, "density": 0.9},
        {"vocab": 1601, "depth": 40, "seq_len": 200, "gap_start": 50},
    ],
)
def test_other_sizes_are_drawn_and_accepted(settings):
    findings = check(make_task("SG", **FEW, **settings))
    assert findings.ok, [str(failure) for failure in findings.failures]
    assert findings.invariants == [28, 29]


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


def no_grammar(data):
    object.__setattr__(data, "grammar", None)


def another_shape(data):
    object.__setattr__(data, "grammar", data.grammar[:, 1:])


def state_of_another_letter(data):
    data.grammar[tuple(np.argwhere(data.grammar > 4)[0])] = 1


def no_way_to_the_end(data):
    data.grammar[1:, 0] = NOT_ALLOWED


def nothing_but_allowed_tokens(data):
    data.grammar[3] = [0, *range(1, 33, 4)]


def a_start_less(data):
    data.grammar[0, np.flatnonzero(data.grammar[0] >= 0)[0]] = NOT_ALLOWED


def token_outside(data):
    data.train_x[5, 9] = 9


def wrong_state(data):
    data.train_y[5, 9] = data.train_y[5, 9] % 32 + 1


def row_too_long(data):
    object.__setattr__(data, "meta", {**data.meta, "seq_len": 63})


def two_distractors(data):
    after = np.flatnonzero(walked(data, 5)[1])[0] + 1
    state = data.train_y[5, after - 1]
    data.train_x[5, after:] = np.flatnonzero(data.grammar[state] == NOT_ALLOWED)[0]
    data.train_y[5, after:] = state


def distractor_too_soon(data):
    object.__setattr__(data, "meta", {**data.meta, "gap_start": 40})


def no_distractor_expected(data):
    object.__setattr__(data, "meta", {**data.meta, "gap_prob": 0.0})


@each_of(
    ("rule", "spoil"),
    [
        (28, no_grammar),
        (28, another_shape),
        (28, state_of_another_letter),
        (28, no_way_to_the_end),
        (28, nothing_but_allowed_tokens),
        (28, a_start_less),
        (29, token_outside),
        (29, wrong_state),
        (29, row_too_long),
        (29, two_distractors),
        (29, distractor_too_soon),
        (29, no_distractor_expected),
    ],
)
def test_spoilt_data_break_the_invariant_they_should_and_no_other(rule, spoil):
    data = make_task("SG", gap_prob=0.2, seed=3, **FEW)
    spoil(data)
    assert {failure.rule for failure in check(data).failures} == {rule}


def more_distractors(data):
    return replace(data, meta={**data.meta, "gap_prob": 0.2})


def the_first_choice_is_taken_more_often(data):
    often = np.array([walked(data, row)[0][0] for row in range(len(data.train_x))])
    rows = often == np.unique(often)[0]
    data.train_x[: rows.sum()], data.train_y[: rows.sum()] = data.train_x[rows], data.train_y[rows]
    return data


@each_of(
    ("rule", "spoil"),
    [
        ("distractors", more_distractors),
        ("uniform starts", the_first_choice_is_taken_more_often),
        ("choice of the next token", lambda data: skewed(data)),
    ],
)
def test_rows_of_other_distributions_are_noticed(rule, spoil):
    data = spoil(make_task("SG", gap_prob=0.1, seq_len=64, train_rows=2048, test_rows=1))
    assert rule in {failure.rule for failure in check(data).failures}


def skewed(data: Dataset) -> Dataset:
    """Walks that take the first allowed token after every state in half of the cases."""
    rng = np.random.default_rng(0)
    first = np.where(data.grammar >= 0, np.arange(data.grammar.shape[1]), 99).argmin(1)
    state = np.zeros(len(data.train_x), np.intp)
    for at in range(data.train_x.shape[1]):
        allowed = data.grammar[state] != NOT_ALLOWED
        any_one = np.where(allowed, rng.random(allowed.shape), 0).argmax(1)
        token = np.where(rng.random(len(state)) < 0.5, first[state], any_one)
        data.train_x[:, at], data.train_y[:, at] = token, data.grammar[state, token]
        state = data.train_y[:, at].astype(np.intp)
    return data
